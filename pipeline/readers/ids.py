"""Read a list of image ids from a file."""

import posixpath
from pathlib import Path
from typing import Any

from pipeline.errors import ManifestError
from pipeline.readers.base import read_json


def read_image_ids(path: Path) -> tuple[str, ...]:
    """Read image ids.

    Args:
        path: One id a line, or .json: a list of ids, or a released split, whose `train` is taken.

    Returns:
        The ids in the order of the file, each once.

    Raises:
        ManifestError: If the file cannot be read or holds no id.
    """
    if path.suffix == ".json":
        ids = _ids_of(read_json(path), path)
    else:
        try:
            ids = path.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, ValueError) as error:
            raise ManifestError(f"{path} cannot be read as text ({error})") from error
    # Paths are ids of one's own images; the readers spell them without "./" too.
    unique = tuple(dict.fromkeys(posixpath.normpath(name.strip()) for name in ids if name.strip()))
    if not unique:
        raise ManifestError(f"expected image ids in {path}, found none")
    return unique


def _ids_of(document: Any, path: Path) -> list[str]:
    try:
        if isinstance(document, dict):
            return [str(entry["iid"]) for entry in document["train"]]
        if isinstance(document, list) and all(isinstance(name, str | int) for name in document):
            return [str(name) for name in document]
    except (KeyError, TypeError) as error:
        raise ManifestError(f"expected a released split in {path}, found no {error}") from error
    raise ManifestError(f"expected a list of image ids or a released split in {path}")
