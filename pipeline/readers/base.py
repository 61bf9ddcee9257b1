"""What every reader yields."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.containment import open_annotations
from pipeline.data_config import DataConfig
from pipeline.errors import ManifestError
from pipeline.found_values import shown, why
from pipeline.segmentation import Segmentation


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One referred object."""

    image: str
    """Path relative to the image root."""
    image_id: str
    """Name of the image in the data set."""
    object_id: str
    """Name of the object in the data set."""
    category: str
    """Name of its category, "" if unknown."""
    split: str
    """train, val, testA, testB or test."""
    expressions: tuple[str, ...]
    """Sentences that refer to it, as annotated."""
    segmentation: Segmentation | None
    """Its shape; None = unlabelled."""
    size: tuple[int, int] | None
    """(H, W) in pixels that the annotation claims; None if it claims none."""
    where: str
    """Where it stands: "refs(unc).p: ref 123", "photos.jsonl: line 7"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One thing that was left out, or converted, and why."""

    item: str
    """Where it stands, as `Record.where`."""
    file: str
    """The file concerned, "" if none in particular."""
    reason: str
    """One line."""
    severity: Literal["failed", "note"] = "failed"
    """failed = left out; note = converted and kept."""
    leads_to: str = ""
    """Where it was left out because of a link that leads out: the file that it leads to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """An opened data set."""

    image_root: Path
    """Folder that `Record.image` is relative to."""
    mask_root: Path
    """Folder that mask files are relative to."""
    items: Iterator[Record | Failure]
    """The objects in the order of the annotations."""


Progress = Callable[[str, int], None]
"""Called after every item with what they are ("objects", "scenes") and the number so far."""

Reader = Callable[[DataConfig, Path, int, Progress | None], Source]
"""Opens the data set of a config, given folder, processes and progress of what is generated."""


def texts(value: Any) -> tuple[str, ...]:
    """Give a list of text as a tuple.

    Raises:
        TypeError: If it is anything else.
    """
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise TypeError(f"expected a list of text, found {shown(value)}")
    return tuple(value)


def one_by_key(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object of its pairs, as `object_pairs_hook`.

    Raises:
        ValueError: If a key is given twice; which of the two is meant, nobody can tell.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for number, key in enumerate(keys) if key in keys[:number])
        raise ValueError(f"key {shown(twice)} is given twice")
    return found


def read_json(path: Path) -> Any:
    """Read a JSON annotation file.

    Raises:
        ManifestError: If it is missing, no file, not JSON, or has a key twice in one object.
    """
    try:
        with open_annotations(path) as file:
            text = file.read().decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=one_by_key)
    except ManifestError:
        raise
    except OSError as error:
        raise ManifestError(f"{path} cannot be read ({error.strerror}); check the path") from error
    except (ValueError, RecursionError) as error:
        raise ManifestError(
            f"expected JSON in {path}, found something else ({why(error)})"
        ) from error
