"""Stages without networks for the tests of the runner, and works that go wrong on purpose."""

import ctypes
import hashlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.records import FailedItem, Plan
from pipeline.shards import ShardResult
from pipeline.store import ArraySpec

SPECS = (
    ArraySpec(name="square", dtype="int64"),
    ArraySpec(name="row", dtype="uint8", row_shape=(16,), chunk_rows=1),
    ArraySpec(name="bytes", dtype="uint8", payload=True),
)


def null_plan(folder: Path, **changes) -> Plan:
    """Plan 23 items in shards of 5."""
    fields = {
        "stage": "squares", "store": folder / "squares.zarr", "specs": SPECS, "num_items": 23,
        "shard_size": 5, "unit": "items", "decides": {"power": 2},
    }  # fmt: skip
    return Plan(**{**fields, **changes})


def columns_of(rows: range):
    """Give the columns of some rows."""
    values = np.array(rows, np.int64)
    return {
        "square": values**2,
        "row": np.repeat(values[:, None] % 256, 16, axis=1),
        "bytes": np.asarray(values % 256, np.uint8),
    }


@dataclass(frozen=True)
class Slow:
    """Write i * i, in its time; items of `failing` fail."""

    seconds: float = 0.0
    failing: tuple[int, ...] = ()

    def __call__(self, rows: range) -> ShardResult:
        time.sleep(self.seconds)
        failures = [FailedItem(item=str(i), reason="bad") for i in rows if i in self.failing]
        return ShardResult(columns=columns_of(rows), failures=tuple(failures))


@dataclass(frozen=True)
class Poison:
    """Some items end the process they are computed in, raise, or never come to an end."""

    deadly: tuple[int, ...] = ()
    raising: tuple[int, ...] = ()
    exiting: tuple[int, ...] = ()
    hanging: tuple[int, ...] = ()
    signal_number: int = signal.SIGKILL

    def __call__(self, rows: range) -> ShardResult:
        for row in rows:
            if row in self.deadly:
                os.kill(os.getpid(), self.signal_number)
                time.sleep(10)
            if row in self.hanging:
                time.sleep(600)
            if row in self.exiting:
                raise SystemExit(5)
            if row in self.raising:
                raise MemoryError("the item is too large")
        return ShardResult(columns=columns_of(rows), counters={"items": len(rows)})


@dataclass(frozen=True)
class Avoidable(Poison):
    """The same, with a way to leave items out."""

    def failed_row(self, row: int, reason: str) -> ShardResult:
        columns = columns_of(range(row, row + 1))
        columns["row"][:] = 255
        failure = FailedItem(item=str(row), reason=reason)
        return ShardResult(columns=columns, failures=(failure,), counters={"failed": 1})


@dataclass(frozen=True)
class SlowToLoad(Avoidable):
    """The same, once a process has taken its time for its first rows."""

    load_seconds: float = 0.0

    def __call__(self, rows: range) -> ShardResult:
        if os.getpid() not in _LOADED_IN:
            time.sleep(self.load_seconds)
            _LOADED_IN.add(os.getpid())
        return super().__call__(rows)


_LOADED_IN: set[int] = set()


@dataclass(frozen=True)
class Hangs(Avoidable):
    """Note the process that comes to item 7, and hang there; or hold Python's lock meanwhile."""

    note: Path = Path()
    holds_lock: bool = False

    def __call__(self, rows: range) -> ShardResult:
        if 7 in rows:
            self.note.with_suffix(".new").write_text(str(os.getpid()))
            self.note.with_suffix(".new").replace(self.note)
            if self.holds_lock:
                ctypes.PyDLL(None).sleep(600)
            time.sleep(600)
        return ShardResult(columns=columns_of(rows))


@dataclass(frozen=True)
class DeadlyAt:
    """A real stage's work, one of whose items takes its process with it."""

    work: Any
    row: int

    def __call__(self, rows: range) -> ShardResult:
        if self.row in rows:
            os.kill(os.getpid(), signal.SIGSEGV)
            time.sleep(10)
        return self.work(rows)

    def failed_row(self, row: int, reason: str) -> ShardResult:
        return self.work.failed_row(row, reason)


@dataclass(frozen=True)
class Loads:
    """Notes every process that loads its model, and how often."""

    folder: Path

    def __call__(self, rows: range) -> ShardResult:
        _load(self.folder)
        return ShardResult(columns=columns_of(rows))


_LOADED: set[Path] = set()


def _load(folder: Path) -> None:
    """Stand for a network: loaded once by each process."""
    if folder not in _LOADED:
        _LOADED.add(folder)
        folder.mkdir(exist_ok=True)
        (folder / str(os.getpid())).touch(exist_ok=False)


def digest(store: Path) -> dict[str, str]:
    """Hash all files of a store."""
    files = sorted(path for path in store.rglob("*") if path.is_file())
    return {
        path.relative_to(store).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }
