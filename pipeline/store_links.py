"""Shell: links inside stores on a disk: nothing is written, and nothing deleted, through one.

A run directory may be a link, and so may a store: people put them on other disks. The folder of its
records may be one only if it leads to that beside the store. Inside of both no folder may be a
link. A file may (git-annex and DVC leave such): it is read, and the link itself is replaced or
deleted, never what it leads to. To make a store anew drops its links, and leaves what they lead to.
"""

import os
from pathlib import Path

from upath import UPath

from pipeline.errors import StoreError
from pipeline.found_values import shown

_STORE, _RECORDS = ".zarr", ".stage"
_FOLDERS_OF_RECORDS = ("done", "attempts")


def refuse_links(store: Path | UPath) -> None:
    """Refuse to write into a store if a folder of its arrays or of its records is a link.

    Folders of single shards, of which there may be a million, are not looked at: `delete_shard`
    replaces those that are links. In an object store there are no links.

    Raises:
        StoreError: Names a link, and what to do.
    """
    if not isinstance(store, Path):
        return
    records = store.with_suffix(_RECORDS)
    _refuse_lone(records, store)
    for name in _FOLDERS_OF_RECORDS:
        _refuse(f"{records}/{name}", store)
    if not store.is_dir():
        return
    for name in os.listdir(store):  # noqa: PTH208 - texts, not paths: several times per shard
        _refuse(f"{store}/{name}", store)
        _refuse(f"{store}/{name}/c", store)


def refuse_links_above(where: Path | UPath, *, itself: bool = False) -> None:
    """Refuse to delete or write a file of a store if a folder of that above it is a link.

    Does nothing of what is in no store: in no folder called NAME.zarr or NAME.stage.

    Args:
        where: The file.
        itself: Whether it may not be a link, either, since it is opened to be written.

    Raises:
        StoreError: Names the link, and what to do.
    """
    if not isinstance(where, Path):
        return
    passed = [where] if itself else []
    for folder in where.parents:
        if folder.suffix not in (_STORE, _RECORDS):
            passed.append(folder)
            continue
        store = folder.with_suffix(_STORE)
        if folder.suffix == _RECORDS:
            _refuse_lone(folder, store)
        for inside in reversed(passed):
            _refuse(str(inside), store)
        return


def _refuse_lone(records: Path, store: Path) -> None:
    """Refuse a folder of records that leads elsewhere than beside its store."""
    if not records.is_symlink():
        return
    beside = Path(os.path.realpath(store)).with_suffix(_RECORDS)
    if os.path.realpath(records) != str(beside):
        _refuse(str(records), store)


def _refuse(folder: str, store: Path) -> None:
    if os.path.islink(folder):  # noqa: PTH114
        raise StoreError(
            f"{store}: expected no link inside, found {shown(folder, 300)}, which leads to "
            f"{shown(os.readlink(folder), 300)}; put the folder itself there, or delete the link "  # noqa: PTH115
            f"to have its shards made anew"
        )
