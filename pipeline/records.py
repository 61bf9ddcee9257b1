"""Shell: what proves that work was done: a plan per store and a done record per shard.

Beside `candidates.zarr` lies `candidates.stage/` with `plan.json` (everything that decided the
result, and its fingerprint) and `done/00000.json` per finished shard, written last. Nothing else
proves completion: a missing chunk reads as zeros, and a file may be half of what was meant.
"""

import functools
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.config import differences, fingerprint, to_plain
from pipeline.errors import StoreError
from pipeline.json_files import atomic_write as atomic_write
from pipeline.json_files import read_checked, write_checked
from pipeline.json_files import read_json as read_json
from pipeline.json_files import sync_folder as sync_folder
from pipeline.json_files import write_json as write_json
from pipeline.locks import run_lock as run_lock
from pipeline.store import ArraySpec

PLAN_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a stage will write, and all that decides its bytes."""

    stage: str
    """Name of the stage, as the verbs and messages say it."""
    store: Path
    """The Zarr group."""
    specs: tuple[ArraySpec, ...]
    num_items: int
    shard_size: int
    """Items per shard; part of the fingerprint, since batches and files follow it."""
    unit: str
    """What an item is: "images" or "expressions"."""
    decides: dict[str, Any]
    """Config, inputs' fingerprints and algorithm version: everything that changes the result."""
    attributes: dict[str, Any] = field(default_factory=dict)
    """JSON attributes of the group, for readers with plain zarr."""

    @property
    def num_shards(self) -> int:
        """Number of tasks."""
        return -(-self.num_items // self.shard_size)

    @property
    def fingerprint(self) -> str:
        """sha256 over everything that decides the store's bytes."""
        return fingerprint(self._identity())

    def rows(self, shard: int) -> range:
        """Give the item rows of a shard."""
        start = shard * self.shard_size
        return range(start, min(start + self.shard_size, self.num_items))

    def _identity(self) -> dict[str, Any]:
        return {
            "format": PLAN_FORMAT,
            "stage": self.stage,
            "num_items": self.num_items,
            "shard_size": self.shard_size,
            "arrays": to_plain(self.specs),
            **to_plain(self.decides),
        }

    def document(self) -> dict[str, Any]:
        """Give what `plan.json` holds."""
        return {"fingerprint": self.fingerprint, "unit": self.unit, "plan": self._identity()}


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


@functools.cache
def versions() -> dict[str, str]:
    """Name the versions that matter to a store's bytes."""
    packages = ("numpy", "zarr", "numcodecs")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def records_folder(store: Path) -> Path:
    """Give the folder of plan and done records that belongs to a store."""
    return store.with_suffix(".stage")


def done_path(store: Path, shard: int) -> Path:
    """Give the place of a shard's done record."""
    return records_folder(store) / "done" / f"{shard:05d}.json"


def write_done(store: Path, record: DoneRecord) -> None:
    """Write a shard's done record; the last thing that happens to a shard."""
    write_checked(done_path(store, record.shard), to_plain(record))


def read_done(store: Path, shard: int, expected_fingerprint: str) -> DoneRecord | None:
    """Read a shard's done record; None if there is none, or it is damaged or of another plan."""
    record = read_any_done(store, shard)
    return record if record and record.fingerprint == expected_fingerprint else None


def read_any_done(store: Path, shard: int) -> DoneRecord | None:
    """Read a shard's done record, whatever plan it is of; None if it is missing or damaged."""
    try:
        document = read_checked(done_path(store, shard))
        failures = tuple(FailedItem(**entry) for entry in document.pop("failures"))
        return DoneRecord(failures=failures, **document)
    except (StoreError, TypeError, KeyError, AttributeError):
        return None


def files_are_whole(store: Path, record: DoneRecord) -> bool:
    """Tell whether a shard's files are there and have the recorded lengths."""
    try:
        return all(
            os.stat(f"{store}/{name}").st_size == entry["bytes"]  # noqa: PTH116 - a million times
            for name, entry in record.files.items()
        )
    except (OSError, TypeError, KeyError):
        return False


def shard_is_done(store: Path, shard: int, expected_fingerprint: str) -> bool:
    """Tell whether a shard is done and its files have the recorded lengths."""
    record = read_done(store, shard, expected_fingerprint)
    return record is not None and files_are_whole(store, record)


def begun_shards(store: Path) -> list[int]:
    """List the shards that have a done record of any plan, readable or not, rising."""
    folder = done_path(store, 0).parent
    names = os.listdir(folder) if folder.is_dir() else []  # noqa: PTH208 - a million names
    return sorted(int(name[:-5]) for name in names if name[:-5].isdigit() and name[-5:] == ".json")


def stored_plan(store: Path, made_by: str) -> dict[str, Any]:
    """Read a store's plan.

    Raises:
        StoreError: If the store was never begun; names the command that makes it.
    """
    path = records_folder(store) / "plan.json"
    if not path.exists() or not store.is_dir():
        raise StoreError(f"{store}: not there; run '{made_by}' first")
    document = read_checked(path)
    known = {"plan", "fingerprint", "unit", "metadata"}
    if not {"plan", "fingerprint"} <= document.keys() <= known:
        raise StoreError(f"{path}: damaged; delete it and run '{made_by}'")
    return document


def write_plan(plan: Plan, metadata: dict[str, str]) -> None:
    """Write a store's plan; with the hashes of its zarr.json files, by path in the store."""
    document = {**plan.document(), "metadata": metadata}
    write_checked(records_folder(plan.store) / "plan.json", document)


def refuse_other_plan(plan: Plan, made_by: str) -> None:
    """Refuse to mix results: a store begun with another plan is left as it is.

    Raises:
        StoreError: Names up to five differences.
    """
    document = stored_plan(plan.store, made_by)
    if document["fingerprint"] == plan.fingerprint:
        return
    lines = differences(document["plan"], plan.document()["plan"])
    shown = "; ".join(lines[:5]) + (f"; and {len(lines) - 5} more" if len(lines) > 5 else "")
    raise StoreError(
        f"{plan.store}: made otherwise ({shown}); go back to that, choose a new --run-dir, "
        f"or add --force to replace it"
    )


def drop_replaced(*folders: Path) -> None:
    """Delete what a killed replacement left aside."""
    for folder in folders:
        shutil.rmtree(folder.with_name(folder.name + ".replaced"), ignore_errors=True)


@contextmanager
def replacing(folders: tuple[Path, ...], has_begun: Callable[[], bool]) -> Iterator[None]:
    """Put finished work aside while it is made anew, and back if that fails at once.

    Args:
        folders: What is replaced; those that exist are renamed to `NAME.replaced`.
        has_begun: Asked when the body raises: whether anything of the new work is worth keeping.
            If not, the old comes back; in every other case it is deleted.
    """
    aside = {folder: folder.with_name(folder.name + ".replaced") for folder in folders}
    for folder, old in aside.items():
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
    try:
        yield
    except BaseException:
        if not has_begun():
            for folder, old in aside.items():
                if old.exists():
                    shutil.rmtree(folder, ignore_errors=True)
                    old.rename(folder)
        raise
    finally:
        drop_replaced(*folders)


def require_rows(store: Path, made_by: str, rows: range | None = None) -> str:
    """Check that a stage's store is done for the rows that a later stage reads.

    Args:
        store: The Zarr group.
        made_by: The verb that makes it, for the message.
        rows: Item rows that will be read; None means all.

    Returns:
        The store's fingerprint.

    Raises:
        StoreError: If shards are missing.
    """
    document = stored_plan(store, made_by)
    plan = document["plan"]
    size, items = int(plan["shard_size"]), int(plan["num_items"])
    rows = range(items) if rows is None else rows
    needed = range(rows.start // size, -(-rows.stop // size)) if len(rows) else range(0)
    name: str = document["fingerprint"]
    missing = [shard for shard in needed if not shard_is_done(store, shard, name)]
    if missing:
        raise StoreError(
            f"{store}: {len(missing)} of {len(needed)} shards are not done (first: {missing[0]}); "
            f"run '{made_by}' to the end"
        )
    return name
