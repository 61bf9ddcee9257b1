"""Masks as SemiRES' released code stores them: a folder of JSON files, one per ref.

`<mask_id>.json`: [{"counts": [start, length, ...], "size": [H, W]}, ...], runs of the column-major
mask, the first pixel being 1; mask_id is the ref_id, which readers `refer` and `semires-split`
keep as object_id. SAM ran once per ref, so that the files of an image's refs hold the same masks.
No score was stored. The writer left truncated files when it was stopped and never mended them.
"""

import posixpath
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import ConfigError, ItemError
from pipeline.exchange.image_files import is_file, parse_json, read_bytes, require_folder
from pipeline.exchange.runs import Runs, Size, mask_of_runs, runs_of_pairs
from pipeline.exchange.source import Found, FoundMask, MaskSource, Sizes
from pipeline.manifest import Manifest

Shapes = dict[tuple[Size, bytes], Runs]
"""Run lengths of masks, by their size and bytes; in the order of the file."""


def open_semires(path: Path, manifest: Manifest) -> MaskSource:
    """Open a folder `sam_rle_mask`; the files of an image are read when it is asked for.

    All files of an image's refs are looked at. Equal ones count once. If they differ, the masks
    of all of them are taken, in the order of the refs, each once. A file that is damaged is passed
    over if another can be used. Both are told in the notes. An absent file is no loss while another
    is there.

    Args:
        path: The folder.
        manifest: Whose objects the files are named after.

    Raises:
        ConfigError: If there is no such folder, or nothing in it belongs to any object.
    """
    require_folder(path)
    if manifest.num_objects and not any(_file_of(path, name) for name in manifest.object_id):
        raise ConfigError(
            f"expected masks named after the manifest's objects in {path}, such as "
            f"{manifest.object_id[0]}.json, found none; check the path and the reader of the data"
        )

    def find(row: int, sizes: Sizes) -> Found:
        return _found(path, _refs(manifest, row), sizes, manifest.image_path[row])

    return MaskSource(manifest=manifest, find=find)


def _refs(manifest: Manifest, row: int) -> list[str]:
    """Give the ids of an image's objects in their order, each once."""
    first, last = np.searchsorted(manifest.object_image, [row, row + 1]).tolist()
    return list(dict.fromkeys(manifest.object_id[number] for number in range(first, last)))


def _found(folder: Path, refs: list[str], sizes: Sizes, image: str) -> Found:
    """Unite the files of an image's refs."""
    files = [file for ref in refs if (file := _file_of(folder, ref))]
    if not files:
        raise ItemError(
            f"expected masks of {image} in {folder}, found no file of its refs "
            f"({', '.join(refs):.60})"
        )
    shapes: dict[bytes, Shapes] = {}  # by the content of the file
    usable, damaged = [], []
    for file in files:
        try:
            content = read_bytes(file)
            if content not in shapes:
                shapes[content] = _shapes(parse_json(content, str(file)), sizes, file)
            usable.append(file.name)
        except ItemError as error:
            damaged.append(str(error))
    if not usable:
        others = f", nor {len(damaged) - 1} more of the image's refs" if len(damaged) > 1 else ""
        raise ItemError(f"{damaged[0]}{others}; there is no other file of {image}")
    union: Shapes = {key: runs for read in shapes.values() for key, runs in read.items()}
    notes = [f"{reason}; {usable[0]} stands in for it" for reason in damaged]
    if any(read.keys() != union.keys() for read in shapes.values()):
        names = ", ".join(usable)
        notes.append(f"{image}: {names:.100} hold different masks; all {len(union)} are taken")
    masks = [(size, runs) for (size, _), runs in union.items()]
    return Found(
        where=str(folder / usable[0]),
        count=len(masks),
        mask_at=lambda n: FoundMask(mask=mask_of_runs(masks[n][1], masks[n][0])),
        notes=tuple(notes),
    )


def _shapes(document: Any, sizes: Sizes, file: Path) -> Shapes:
    """Check every mask of a file; those that are there twice count once."""
    if not isinstance(document, list):
        raise ItemError(f"expected a list of masks in {file}, found {type(document).__name__}")
    shapes: Shapes = {}
    for number, entry in enumerate(document):
        try:
            size, runs = _shape(entry, sizes)
        except ItemError as error:
            raise ItemError(f"{file}: mask {number}: {error}") from error
        shapes[size, runs.tobytes()] = runs
    return shapes


def _shape(entry: Any, sizes: Sizes) -> tuple[Size, Runs]:
    stated = entry.get("size") if isinstance(entry, dict) else None
    if not isinstance(stated, list) or len(stated) != 2:
        raise ItemError(f"expected an object with counts and size, found {entry!r:.40}")
    size, pairs = sizes.checked(*stated), entry.get("counts")
    if not isinstance(pairs, list):
        raise ItemError(f"expected a list as counts, found {pairs!r:.40}")
    return size, runs_of_pairs(pairs, size)


def _file_of(folder: Path, object_id: str) -> Path | None:
    """Give the file of an object if it is there; an id that is no plain name has none."""
    name = f"{object_id}.json"
    file = folder / name
    return file if posixpath.basename(name) == name and is_file(file) else None
