"""Read a list of image ids from a file."""

import posixpath
from pathlib import Path
from typing import Any

from pipeline.containment import open_annotations
from pipeline.errors import ManifestError
from pipeline.found_values import shown, why
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
            with open_annotations(path) as file:
                ids = file.read().decode("utf-8-sig").split("\n")
        except ManifestError:
            raise
        except (OSError, ValueError) as error:
            raise ManifestError(f"{path} cannot be read as text ({why(error)})") from error
    # Paths are ids of one's own images; the readers spell them without "./" too.
    unique = tuple(dict.fromkeys(posixpath.normpath(name.strip()) for name in ids if name.strip()))
    if not unique:
        raise ManifestError(f"expected image ids in {path}, found none")
    return unique


def _ids_of(document: Any, path: Path) -> list[str]:
    names = document
    if isinstance(document, dict):
        entries = document.get("train")
        if not isinstance(entries, list):
            raise ManifestError(f"expected a released split in {path}, found no list 'train'")
        names = [entry.get("iid") if isinstance(entry, dict) else None for entry in entries]
    if not isinstance(names, list):
        raise ManifestError(f"expected a list of image ids or a released split in {path}")
    for name in names:
        if not isinstance(name, str | int) or isinstance(name, bool):
            raise ManifestError(
                f"expected image ids as text or integers in {path}, found {shown(name)}"
            )
    return [str(name) for name in names]
