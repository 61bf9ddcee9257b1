"""One's own data: one JSON object a line, one referred object each.

{"image": "images/1.jpg", "expressions": ["left dog"], "segmentation": ..., "split": "train",
"id": "dog-1", "category": "dog"}; `image` and `expressions` (or `expression`) are needed.
`segmentation` is COCO polygons, an RLE, or the path of a mask PNG beside the file.
"""

import json
import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.data_config import DataConfig
from pipeline.errors import ItemError, ManifestError
from pipeline.found_values import shown, why
from pipeline.readers.base import Failure, Progress, Record, Source, one_by_key, texts

KEYS = ("image", "expressions", "expression", "segmentation", "split", "id", "category")


def read_jsonl(
    config: DataConfig, _work: Path, _workers: int, _progress: Progress | None = None
) -> Source:
    """Open a file of JSON lines; a malformed line is a failure, not the end.

    Args:
        config: `annotations` and, unless the images lie beside it, `images` are used.
        _work: Not used.
        _workers: Not used.
        _progress: Not used.

    Raises:
        ManifestError: If the file cannot be opened.
    """
    if config.annotations is None:
        raise ManifestError("expected annotations, found none")
    return open_jsonl(config.annotations, config.images)


def open_jsonl(path: Path, images: Path | None) -> Source:
    """Open a file of JSON lines whose images lie in `images`, or beside it if that is None."""
    if not path.is_file():
        raise ManifestError(f"expected JSON lines in {path}, found no such file; check the path")
    root = images or path.parent
    return Source(image_root=root, mask_root=path.parent, items=_records(path))


def _records(path: Path) -> Iterator[Record | Failure]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path.name}: line {number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if text:
                    entry = json.loads(text, object_pairs_hook=one_by_key)
                    yield _record(entry, number, where)
            except ItemError as error:
                yield Failure(item=where, file=path.name, reason=str(error))
            except (ValueError, RecursionError) as error:
                reason = f"expected one JSON object in UTF-8, found another text ({why(error)})"
                yield Failure(item=where, file=path.name, reason=reason)


def _record(entry: Any, number: int, where: str) -> Record:
    if not isinstance(entry, dict):
        raise ItemError(f"expected a JSON object, found {type(entry).__name__}")
    unknown = [key for key in entry if key not in KEYS]
    if unknown:
        raise ItemError(f"unknown key {shown(unknown[0])}; known are {', '.join(KEYS)}")
    image = _text(entry, "image", None)
    identity = entry.get("id", f"line-{number}")
    if not isinstance(identity, str | int) or isinstance(identity, bool):
        raise ItemError(f"expected text or an integer as id, found {shown(identity)}")
    image = posixpath.normpath(image)
    return Record(
        image=image,
        image_id=image,
        object_id=str(identity),
        category=_text(entry, "category", ""),
        split=_text(entry, "split", "train"),
        expressions=_expressions(entry),
        segmentation=entry.get("segmentation"),
        size=_claimed_size(entry.get("segmentation")),
        where=where,
    )


def _claimed_size(segmentation: Any) -> tuple[int, int] | None:
    """Give the (H, W) that an RLE states; other shapes state none."""
    size = segmentation.get("size") if isinstance(segmentation, dict) else None
    if isinstance(size, list) and len(size) == 2 and all(type(side) is int for side in size):
        return size[0], size[1]
    return None


def _text(entry: dict[str, Any], key: str, default: str | None) -> str:
    value = entry.get(key, default)
    if not isinstance(value, str) or (default is None and not value):
        found = "none" if value is None else shown(value)
        raise ItemError(f"expected text as {key}, found {found}")
    return value


def _expressions(entry: dict[str, Any]) -> tuple[str, ...]:
    if ("expressions" in entry) == ("expression" in entry):
        raise ItemError("expected either expressions or expression, found both or neither")
    found = entry["expressions"] if "expressions" in entry else [entry["expression"]]
    try:
        return texts(found)
    except TypeError as error:
        raise ItemError(f"{error} as expressions") from error
