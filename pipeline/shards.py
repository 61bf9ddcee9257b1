"""What a stage computes for a shard, and what comes back to the driver."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy.typing as npt

from pipeline.records import FailedItem
from pipeline.shard_files import join_columns
from pipeline.store import ArraySpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardResult:
    """What a stage computes for one shard: whole columns, failed items, counts that add up."""

    columns: dict[str, npt.NDArray[Any]]
    failures: tuple[FailedItem, ...] = ()
    counters: dict[str, float] = field(default_factory=dict)


class Work(Protocol):
    """A stage's computation: picklable, and a pure function of the rows and its own fields."""

    def __call__(self, rows: range) -> ShardResult:
        """Compute the columns of the given item rows."""
        ...


@runtime_checkable
class FailsRows(Protocol):
    """A stage's computation that can leave an item out, though it cannot be computed."""

    def failed_row(self, row: int, reason: str) -> ShardResult:
        """Give the columns of one failed row, without touching the item, and the failure."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What a worker says of a shard that it has done, or could not do; never arrays."""

    shard: int
    failures: tuple[FailedItem, ...] = ()
    counters: dict[str, float] = field(default_factory=dict)
    problem: str | None = None
    """Why the shard is not done; None if it is."""


def join_results(specs: tuple[ArraySpec, ...], pieces: Sequence[ShardResult]) -> ShardResult:
    """Put the results of consecutive rows together as that of one shard."""
    counters: Counter[str] = Counter()
    for piece in pieces:
        counters.update(piece.counters)
    return ShardResult(
        columns=join_columns(specs, [piece.columns for piece in pieces]),
        failures=tuple(failure for piece in pieces for failure in piece.failures),
        counters=dict(counters),
    )
