"""Shell: what proves that a shard was done: its record, written last.

`candidates.stage/done/00000.json` beside `candidates.zarr`. Nothing else proves completion: a
missing chunk reads as zeros, and a file may be half of what was meant.
"""

import functools
import os
import platform
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import islice
from typing import Any

from upath import UPath

from pipeline.config import to_plain
from pipeline.errors import StoreError
from pipeline.json_files import checked_object, read_checked, write_checked
from pipeline.places import Place, is_local, is_on_the_way, lengths_below, names_in, read_bytes

_AT_ONCE = 1000  # records fetched together from an object store
_FILE = re.compile(r"\w[\w.-]*(/\w[\w.-]*)+", re.ASCII)
"""A chunk: its array, "c" and numbers; no name of it leads out of the store."""
_NO_RECORD = (TypeError, KeyError, AttributeError)


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedItem:
    """One item that could not be used, with the reason in one line."""

    item: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DoneRecord:
    """Proof that one shard was written: what it holds and how it came about."""

    shard: int
    start: int
    stop: int
    fingerprint: str
    files: dict[str, dict[str, Any]]
    failures: tuple[FailedItem, ...]
    counters: dict[str, float]
    seconds: float
    versions: dict[str, str]
    attempts: dict[str, int] = field(default_factory=dict)
    """How often a failed item was tried, where that is more than once."""

    def attempts_of(self, failure: FailedItem) -> int:
        """Give how often a failed item was tried."""
        return self.attempts.get(failure.item, 1)


_PACKAGES = {
    "numpy": "numpy", "zarr": "zarr", "numcodecs": "numcodecs", "PIL": "pillow",
    "pycocotools": "pycocotools", "scipy": "scipy", "skimage": "scikit-image", "torch": "torch",
    "segment_anything": "segment-anything", "transformers": "transformers",
}  # fmt: skip
"""Packages that a store's bytes may depend on, by the module that this process has loaded."""


def versions(*, here: bool = True) -> dict[str, str]:
    """Name the versions that matter to a store's bytes: of what this process has loaded.

    Args:
        here: Whether this process computed; if so and torch is loaded, its `device` is named too:
            the GPU, or what the CPU's instructions are to torch. The last bits depend on it.
    """
    loaded = {name: _version(name) for module, name in _PACKAGES.items() if module in sys.modules}
    device = {"device": _device()} if here and "torch" in sys.modules else {}
    return {"python": platform.python_version(), **loaded, **device}


def _device() -> str:
    torch = sys.modules["torch"]  # never imported from here: refinement needs none
    if torch.cuda.is_initialized():
        return str(torch.cuda.get_device_name())
    return f"cpu {torch.backends.cpu.get_cpu_capability()}"


@functools.cache
def _version(package: str) -> str:
    return version(package)


def records_folder(store: Place) -> Place:
    """Give the folder of plan and done records that belongs to a store."""
    return store.with_suffix(".stage")


def done_path(store: Place, shard: int) -> Place:
    """Give the place of a shard's done record."""
    return records_folder(store) / "done" / f"{shard:05d}.json"


def write_done(store: Place, record: DoneRecord) -> None:
    """Write a shard's done record; the last thing that happens to a shard."""
    write_checked(done_path(store, record.shard), to_plain(record))


def read_done(store: Place, shard: int, expected_fingerprint: str) -> DoneRecord | None:
    """Read a shard's done record; None if there is none, or it is damaged or of another plan."""
    record = read_any_done(store, shard)
    return record if record and record.fingerprint == expected_fingerprint else None


def read_any_done(store: Place, shard: int) -> DoneRecord | None:
    """Read a shard's done record, whatever plan it is of; None if it is missing or damaged."""
    try:
        return _record(read_checked(done_path(store, shard)))
    except (StoreError, *_NO_RECORD):
        return None


def _record(document: dict[str, Any]) -> DoneRecord:
    if not all(map(_FILE.fullmatch, document["files"])):  # files are hashed, and deleted by repair
        raise KeyError("files outside the store")
    failures = tuple(FailedItem(**entry) for entry in document.pop("failures"))
    return DoneRecord(failures=failures, **document)


def read_all_done(
    store: Place, shards: Iterable[int] | None = None
) -> Iterator[tuple[int, DoneRecord | None]]:
    """Read the done records of many shards, of an object store many at a time.

    Args:
        store: The Zarr group.
        shards: Which; None reads all that are there.

    Yields:
        Shard and record as `read_any_done` gives it, in the order of `shards`, else rising.
    """
    shards = begun_shards(store) if shards is None else shards
    if is_local(store):
        yield from ((shard, read_any_done(store, shard)) for shard in shards)
        return
    folder = store.with_suffix(".stage") / "done"
    left = iter(shards)
    while some := list(islice(left, _AT_ONCE)):
        paths = [f"{folder.path}/{shard:05d}.json" for shard in some]
        # Whole, as a range: without one s3fs asks for each size first.
        found = store.fs.cat_ranges(paths, [0] * len(paths), [None] * len(paths))
        for shard, content in zip(some, found, strict=True):
            yield shard, _parsed(folder / f"{shard:05d}.json", content)


def _parsed(place: UPath, content: object) -> DoneRecord | None:
    if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
        content = read_bytes(place)  # an empty one has no ranges; else this fails, too
    try:
        return _record(checked_object(place, content)) if isinstance(content, bytes) else None
    except (StoreError, *_NO_RECORD):
        return None


def file_lengths(store: Place) -> Mapping[str, int] | None:
    """List the lengths of all objects of a store, for `files_are_whole`; None on a disk.

    A disk is asked file by file, which costs microseconds; a request costs milliseconds.
    """
    return None if is_local(store) else lengths_below(store)


def files_are_whole(
    store: Place, record: DoneRecord, lengths: Mapping[str, int] | None = None
) -> bool:
    """Tell whether a shard's files are there and have the recorded lengths.

    Args:
        store: The Zarr group.
        record: Of the shard.
        lengths: What `file_lengths` gave, to ask about many shards; None asks for each file.
    """
    try:
        if lengths is not None:
            return all(lengths.get(name) == entry["bytes"] for name, entry in record.files.items())
        if not is_local(store):
            sizes = store.fs.sizes([f"{store.path}/{name}" for name in record.files])
            return list(sizes) == [entry["bytes"] for entry in record.files.values()]
        return all(
            os.stat(f"{store}/{name}").st_size == entry["bytes"]  # noqa: PTH116 - a million times
            for name, entry in record.files.items()
        )
    except OSError as error:
        if is_on_the_way(store, error):
            raise
        return False
    except (ValueError, TypeError, KeyError, AttributeError):
        return False


def shard_is_done(store: Place, shard: int, expected_fingerprint: str) -> bool:
    """Tell whether a shard is done and its files have the recorded lengths."""
    record = read_done(store, shard, expected_fingerprint)
    return record is not None and files_are_whole(store, record)


def begun_shards(store: Place) -> list[int]:
    """List the shards that have a done record of any plan, readable or not, rising."""
    names = names_in(done_path(store, 0).parent)
    return sorted(int(name[:-5]) for name in names if name[:-5].isdigit() and name[-5:] == ".json")
