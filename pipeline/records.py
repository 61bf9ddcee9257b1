"""Shell: what proves that work was done: a plan per store and a done record per shard.

Beside `candidates.zarr` lies `candidates.stage/` with `plan.json` (everything that decided the
result, and its fingerprint) and `done/00000.json` per finished shard, written last. Nothing else
proves completion: a missing chunk reads as zeros, and a file may be half of what was meant.
"""

import fcntl
import json
import os
import platform
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.config import differences, fingerprint, to_plain
from pipeline.errors import StoreError
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


def atomic_write(path: Path, content: bytes) -> None:
    """Write a file so that a reader, even after a power cut, sees all of it or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    partial.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, document: Any) -> None:
    """Write a value as readable JSON, atomically."""
    text = json.dumps(to_plain(document), indent=1, sort_keys=True, allow_nan=False)
    atomic_write(path, (text + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        StoreError: If the file is missing or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise StoreError(
            f"{path}: damaged, not JSON ({error}); delete it and run the stage"
        ) from error


def write_done(store: Path, record: DoneRecord) -> None:
    """Write a shard's done record; the last thing that happens to a shard."""
    write_json(done_path(store, record.shard), record)


def read_done(store: Path, shard: int, expected_fingerprint: str) -> DoneRecord | None:
    """Read a shard's done record; None if there is none, or it is damaged or of another plan."""
    path = done_path(store, shard)
    if not path.exists():
        return None
    try:
        document = read_json(path)
        failures = tuple(FailedItem(**entry) for entry in document.pop("failures"))
        record = DoneRecord(failures=failures, **document)
    except (StoreError, TypeError, KeyError, AttributeError):
        return None
    return record if record.fingerprint == expected_fingerprint else None


def shard_is_done(store: Path, shard: int, expected_fingerprint: str) -> bool:
    """Tell whether a shard is done and its files have the recorded lengths."""
    record = read_done(store, shard, expected_fingerprint)
    return record is not None and all(
        (store / name).is_file() and (store / name).stat().st_size == entry["bytes"]
        for name, entry in record.files.items()
    )


def stored_plan(store: Path, made_by: str) -> dict[str, Any]:
    """Read a store's plan.

    Raises:
        StoreError: If the store was never begun; names the command that makes it.
    """
    path = records_folder(store) / "plan.json"
    if not path.exists() or not store.is_dir():
        raise StoreError(f"{store}: not there; run '{made_by}' first")
    document = read_json(path)
    if not isinstance(document, dict) or not {"plan", "fingerprint"} <= document.keys():
        raise StoreError(f"{path}: damaged; delete {records_folder(store)} and run '{made_by}'")
    return document


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


@contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """Hold a run directory, so that two drivers never write to it at once.

    The folder is made if missing.

    The lock is the kernel's and goes with the process, however that ends.

    Raises:
        StoreError: If another process holds it; names host and pid.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / ".lock"
    with path.open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            handle.seek(0)
            holder = handle.read().strip() or "another process"
            raise StoreError(f"{run_dir}: in use by {holder}; wait for it or stop it") from error
        handle.truncate(0)
        handle.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
        handle.flush()
        yield
