"""Shell: run one stage over its shards, resumably; every stage goes through here."""

import functools
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy.typing as npt
from tqdm import tqdm

from pipeline.engines import Engine, run_tasks
from pipeline.errors import StoreError
from pipeline.records import (
    DoneRecord,
    FailedItem,
    Plan,
    done_path,
    drop_replaced,
    read_done,
    read_json,
    records_folder,
    refuse_other_plan,
    replacing,
    shard_is_done,
    versions,
    write_done,
    write_json,
)
from pipeline.store import (
    ArraySpec,
    create_store,
    metadata_hashes,
    restore_metadata,
    sha256_of_shard,
    shard_files,
    write_shard,
)

Replace = Literal["never", "differing", "always"]
"""When a store that is there is made anew."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSummary:
    """What a run of a stage came to; `counters` and `failures` cover all done shards."""

    stage: str
    unit: str
    num_items: int
    num_shards: int
    shards_done_before: int
    shards_done_now: int
    items_done_now: int
    seconds: float
    counters: dict[str, float]
    failures: tuple[FailedItem, ...]

    @property
    def complete(self) -> bool:
        """Whether every shard is done."""
        return self.shards_done_before + self.shards_done_now == self.num_shards


def run_stage(
    plan: Plan,
    work: Work,
    *,
    engine: Engine | None = None,
    limit: int | None = None,
    replace: Replace = "never",
    made_by: str,
) -> StageSummary:
    """Bring a store to completion: skip what is done, do what is not.

    Args:
        plan: What to write.
        work: How to compute a shard.
        engine: Where; this process by default.
        limit: Only the shards that hold the first `limit` items.
        replace: Whether to make a store anew that is there: never, if another plan made it, or
            always. The old one comes back if no shard of the new one can be made.
        made_by: The verb, for messages.

    Returns:
        What was done; counters and failures cover all shards that are done, now or before.

    Raises:
        StoreError: If the store was made by another plan and may not be replaced.
    """
    started = time.monotonic()
    with _prepared(plan, replace, made_by):
        wanted = range(plan.num_shards if limit is None else shards_of(plan, limit))
        todo = [shard for shard in wanted if not shard_is_done(plan.store, shard, plan.fingerprint)]
        _run_shards(plan, work, engine or Engine(), todo)
    records = [read_done(plan.store, shard, plan.fingerprint) for shard in range(plan.num_shards)]
    done = [record for record in records if record is not None]
    return _summarise(plan, done, todo, time.monotonic() - started)


def shards_of(plan: Plan, limit: int) -> int:
    """Give the number of shards that hold the first `limit` items."""
    return min(plan.num_shards, -(-limit // plan.shard_size))


def pending_shards(plan: Plan) -> list[int]:
    """List the shards still to do; all of them where the store is missing or of another plan."""
    shards = range(plan.num_shards)
    return [shard for shard in shards if not shard_is_done(plan.store, shard, plan.fingerprint)]


def check_plan(plan: Plan, made_by: str) -> bool:
    """Tell whether the store is there and of this plan; False if it has to be created.

    Raises:
        StoreError: If another plan made it; names the differences.
    """
    path = records_folder(plan.store) / "plan.json"
    if not path.exists() or not plan.store.is_dir():
        return False
    refuse_other_plan(plan, made_by)
    if read_json(path).get("metadata") != metadata_hashes(plan.store):
        restore_metadata(plan.store, *_layout(plan))
    return True


def _layout(plan: Plan) -> tuple[tuple[ArraySpec, ...], int, int, dict[str, Any]]:
    return plan.specs, plan.num_items, plan.shard_size, plan.attributes


@contextmanager
def _prepared(plan: Plan, replace: Replace, made_by: str) -> Iterator[None]:
    """Have the store of this plan ready, creating it where needed."""
    try:
        usable = check_plan(plan, made_by)
    except StoreError:
        if replace == "never":
            raise
        usable = False
    if usable and replace != "always":
        drop_replaced(plan.store, records_folder(plan.store))
        yield
        return
    done = done_path(plan.store, 0).parent
    with replacing((plan.store, records_folder(plan.store)), lambda: any(done.glob("*.json"))):
        create_store(plan.store, *_layout(plan))
        document = {**plan.document(), "metadata": metadata_hashes(plan.store)}
        write_json(records_folder(plan.store) / "plan.json", document)
        yield


def _run_shards(plan: Plan, work: Work, engine: Engine, todo: list[int]) -> None:
    if not todo:
        return
    sizes = {shard: len(plan.rows(shard)) for shard in todo}
    task = functools.partial(run_shard, plan, work)
    with tqdm(
        total=sum(sizes.values()),
        desc=plan.stage,
        unit=f" {plan.unit}",
        file=sys.stderr,
        mininterval=0.5,
        dynamic_ncols=True,
    ) as bar:
        for shard, num_failed in run_tasks(engine, task, todo, plan.stage):
            bar.update(sizes[shard])
            if num_failed:
                bar.write(f"{plan.stage}: shard {shard}: {num_failed} items failed", sys.stderr)


def run_shard(plan: Plan, work: Callable[[range], ShardResult], shard: int) -> int:
    """Compute and write one shard, then its done record; runs in a worker.

    Returns:
        The number of failed items; arrays never travel to the driver.
    """
    started = time.monotonic()
    rows = plan.rows(shard)
    done_path(plan.store, shard).unlink(missing_ok=True)
    result = work(rows)
    # A worker that outlived its driver must not write into a store that was since made anew.
    refuse_other_plan(plan, plan.stage)
    write_shard(plan.store, plan.specs, shard, rows, result.columns)
    files = sha256_of_shard(shard_files(plan.store, plan.specs, shard), plan.store)
    record = DoneRecord(
        shard=shard,
        start=rows.start,
        stop=rows.stop,
        fingerprint=plan.fingerprint,
        files=files,
        failures=result.failures,
        counters=result.counters,
        seconds=round(time.monotonic() - started, 3),
        versions=versions(),
    )
    write_done(plan.store, record)
    return len(result.failures)


def _summarise(plan: Plan, done: list[DoneRecord], todo: list[int], seconds: float) -> StageSummary:
    counters: Counter[str] = Counter()
    for record in done:
        counters.update(record.counters)
    return StageSummary(
        stage=plan.stage,
        unit=plan.unit,
        num_items=plan.num_items,
        num_shards=plan.num_shards,
        shards_done_before=len(done) - len(todo),
        shards_done_now=len(todo),
        items_done_now=sum(len(plan.rows(shard)) for shard in todo),
        seconds=seconds,
        counters=dict(sorted(counters.items())),
        failures=tuple(failure for record in done for failure in record.failures),
    )
