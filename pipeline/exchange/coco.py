"""Masks of many images in one COCO-style JSON: {"images": [...], "annotations": [...]}.

`pipeline/export.py` writes such files, pycocotools reads them. Only the places of annotations are
kept in memory, 16 bytes each; an image's annotations are read again when it is asked for.
"""

import posixpath
import re
from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError, ItemError
from pipeline.exchange.annotations import mask_of_annotation
from pipeline.exchange.image_files import MAX_FILE_BYTES, parse_json
from pipeline.exchange.json_scan import Element, scan_sections
from pipeline.exchange.source import Found, MaskSource, Sizes
from pipeline.manifest import Manifest

ImageId = int | str
Key = TypeVar("Key")


def open_coco(path: Path, manifest: Manifest) -> MaskSource:
    """Open a COCO-style file; it is read once, to find where each image's annotations stand.

    An entry of `images` belongs to the manifest's image of the same relative path, else to the one
    of the same base name if no other image on either side has that name, else to the one whose
    data-set id is the entry's, if the entry has no `file_name` or one that ends in that number,
    as COCO's do. Entries of other images, and annotations of images that are not listed, are
    passed over.

    Args:
        path: The file.
        manifest: Whose images the masks belong to.

    Raises:
        ConfigError: If it is no JSON of this structure, or lists no image of the manifest.
    """
    listing = _listing(path)
    index = _index(listing, _matches(listing.names, manifest, path), manifest.num_images)
    if manifest.num_images and not index.listed.any():
        raise ConfigError(
            f"expected images of the manifest in {path}, such as {manifest.image_path[0]}, found "
            f"none among {len(listing.names)}; file_name must be the path or base name"
        )

    def find(row: int, sizes: Sizes) -> Found:
        if not index.listed[row]:
            image = manifest.image_path[row]
            raise ItemError(f"expected masks of {image} in {path}, found no entry of this image")
        return _found(path, index, row, sizes, manifest.image_path[row])

    return MaskSource(manifest=manifest, find=find)


@dataclass(slots=True)
class _Listing:
    """What the file holds, images and annotations in its order."""

    names: dict[ImageId, str | None] = field(default_factory=dict)  # file_name of every image
    stated: dict[ImageId, tuple[Any, Any]] = field(default_factory=dict)  # its height and width
    numbers: dict[ImageId, int] = field(default_factory=dict)  # of image ids of annotations
    image: "array[int]" = field(default_factory=lambda: array("q"))  # of an annotation, its number
    start: "array[int]" = field(default_factory=lambda: array("q"))  # of an annotation, in the file
    stop: "array[int]" = field(default_factory=lambda: array("q"))


@dataclass(frozen=True, slots=True)
class _Index:
    """Where the annotations of each manifest image stand; I images, A annotations."""

    listed: npt.NDArray[np.bool_]  # (I,)
    first: npt.NDArray[np.int64]  # (I + 1,), into the others
    start: npt.NDArray[np.int64]  # (A,), bytes in the file
    stop: npt.NDArray[np.int64]  # (A,)
    stated: dict[int, tuple[Any, Any]]  # height and width of an image as listed, by manifest row


def _listing(path: Path) -> _Listing:
    listing = _Listing()
    for element in scan_sections(path, ("images", "annotations")):
        if element.section == "images":
            _add_image(listing, element, path)
        else:
            image_id = _id_of(element, "image_id", path)
            listing.image.append(listing.numbers.setdefault(image_id, len(listing.numbers)))
            listing.start.append(element.start)
            listing.stop.append(element.stop)
    if listing.numbers and not listing.numbers.keys() & listing.names.keys():
        raise ConfigError(
            f"expected annotations of the images in {path}, found image_id "
            f"{next(iter(listing.numbers))!r:.40} and others that images does not list"
        )
    return listing


def _add_image(listing: _Listing, element: Element, path: Path) -> None:
    image_id, entry = _id_of(element, "id", path), element.value
    name = entry.get("file_name")
    if image_id in listing.names:
        raise ConfigError(f"expected each image once in {path}, found id {image_id!r:.40} twice")
    if name is not None and not isinstance(name, str):
        raise ConfigError(
            f"expected text as file_name of images[{element.number}] in {path}, found {name!r:.40}"
        )
    listing.names[image_id] = None if name is None else posixpath.normpath(name)
    if "height" in entry and "width" in entry:
        listing.stated[image_id] = entry["height"], entry["width"]


def _id_of(element: Element, key: str, path: Path) -> ImageId:
    found = element.value.get(key) if isinstance(element.value, dict) else None
    if not isinstance(found, int | str) or isinstance(found, bool):
        raise ConfigError(
            f"expected an object with an integer or text as {key} in "
            f"{element.section}[{element.number}] of {path}, found {found!r:.40}"
        )
    return found


def _matches(
    names: dict[ImageId, str | None], manifest: Manifest, path: Path
) -> dict[ImageId, int]:
    """Give the manifest row of every listed image that has one, no row twice."""
    paths = {posixpath.normpath(name): row for row, name in enumerate(manifest.image_path)}
    rows = {key: paths[name] for key, name in names.items() if name in paths}
    if len(set(rows.values())) < len(rows):
        twice = Counter(names[key] for key in rows).most_common(1)[0][0]
        raise ConfigError(f"expected each image once in {path}, found {twice!r:.80} twice")
    named = {key: name for key, name in names.items() if name is not None}
    by_base = _unique({row: posixpath.basename(name) for name, row in paths.items()})
    by_id = {name: row for row, name in enumerate(manifest.image_id)}
    guesses = [(key, by_base.get(base)) for base, key in _unique(_bases(named)).items()]
    guesses += [(key, by_id.get(str(key))) for key, name in names.items() if _by_id(key, name)]
    taken = set(rows.values())
    for key, row in guesses:
        if row is not None and row not in taken and key not in rows:
            rows[key] = row
            taken.add(row)
    return rows


def _bases(names: dict[ImageId, str]) -> dict[ImageId, str]:
    return {key: posixpath.basename(name) for key, name in names.items()}


def _unique(names: dict[Key, str]) -> dict[str, Key]:
    """Turn names round, leaving out those that stand more than once."""
    uses = Counter(names.values())
    return {name: key for key, name in names.items() if uses[name] == 1}


def _by_id(image_id: ImageId, name: str | None) -> bool:
    """Tell whether an id may be the data set's: COCO's names end in it, an exporter's need not."""
    if name is None:
        return True
    digits = re.search(r"([0-9]+)$", posixpath.splitext(name)[0])
    return digits is not None and digits[1].lstrip("0") == str(image_id).lstrip("0")


def _index(listing: _Listing, rows: dict[ImageId, int], num_images: int) -> _Index:
    """Sort the annotations of matched images by manifest row, each image's in their order."""
    row_of = np.full(len(listing.numbers), -1, np.int64)
    for image_id, number in listing.numbers.items():
        row_of[number] = rows.get(image_id, -1)
    row = row_of[np.array(listing.image, np.int64)]
    order = np.argsort(row, kind="stable")[np.count_nonzero(row < 0) :]
    listed = np.zeros(num_images, np.bool_)
    listed[list(rows.values())] = True
    return _Index(
        listed=listed,
        first=np.searchsorted(row[order], np.arange(num_images + 1)).astype(np.int64),
        start=np.array(listing.start, np.int64)[order],
        stop=np.array(listing.stop, np.int64)[order],
        stated={rows[key]: size for key, size in listing.stated.items() if key in rows},
    )


def _found(path: Path, index: _Index, row: int, sizes: Sizes, image: str) -> Found:
    where = f"{path}: {image}"
    own = slice(int(index.first[row]), int(index.first[row + 1]))
    pieces = _read_pieces(path, index.start[own].tolist(), index.stop[own].tolist(), where)
    try:
        drawn_at = sizes.checked(*index.stated.get(row, sizes.original))
    except ItemError as error:
        raise ItemError(f"{where}: {error}; do the masks belong to this image?") from error
    return Found(
        where=where,
        count=len(pieces),
        mask_at=lambda n: mask_of_annotation(parse_json(pieces[n], where), sizes, drawn_at),
    )


def _read_pieces(path: Path, starts: list[int], stops: list[int], where: str) -> list[bytes]:
    """Read an image's annotations, as JSON each."""
    num_bytes = sum(stops) - sum(starts)
    if num_bytes > MAX_FILE_BYTES:
        raise ItemError(f"{where}: expected at most {MAX_FILE_BYTES} bytes, found {num_bytes}")
    pieces = []
    try:
        with path.open("rb") as file:
            for start, stop in zip(starts, stops, strict=True):
                file.seek(start)
                pieces.append(file.read(stop - start))
    except OSError as error:
        raise ItemError(f"{where}: cannot be read ({error.strerror})") from error
    return pieces
