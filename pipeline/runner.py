"""Shell: run one stage over its shards, resumably; every stage goes through here."""

import functools
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy.typing as npt
from tqdm import tqdm

from pipeline.engines import Engine, run_tasks
from pipeline.errors import StoreError
from pipeline.records import (
    DoneRecord,
    FailedItem,
    Plan,
    discard,
    done_path,
    read_done,
    records_folder,
    refuse_other_plan,
    shard_is_done,
    versions,
    write_done,
    write_json,
)
from pipeline.store import create_store, sha256_of_shard, shard_files, write_shard


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
    force: bool = False,
    made_by: str,
) -> StageSummary:
    """Bring a store to completion: skip what is done, do what is not.

    Args:
        plan: What to write.
        work: How to compute a shard.
        engine: Where; this process by default.
        limit: Only the shards that hold the first `limit` items.
        force: Replace a store that another plan made.
        made_by: The verb, for messages.

    Raises:
        StoreError: If the store was made by another plan and `force` is not given.
    """
    started = time.monotonic()
    prepare_store(plan, force=force, made_by=made_by)
    wanted = range(plan.num_shards)
    if limit is not None:
        wanted = range(min(plan.num_shards, -(-limit // plan.shard_size)))
    todo = [shard for shard in wanted if not shard_is_done(plan.store, shard, plan.fingerprint)]
    _run_shards(plan, work, engine or Engine(), todo)
    records = [read_done(plan.store, shard, plan.fingerprint) for shard in wanted]
    done = [record for record in records if record is not None]
    return _summarise(plan, done, len(todo), time.monotonic() - started)


def pending_shards(plan: Plan) -> list[int]:
    """List the shards still to do; all of them where the store is missing or of another plan."""
    shards = range(plan.num_shards)
    return [shard for shard in shards if not shard_is_done(plan.store, shard, plan.fingerprint)]


def prepare_store(plan: Plan, *, force: bool, made_by: str) -> None:
    """Create the store and its plan record, or check that they are of this plan."""
    path = records_folder(plan.store) / "plan.json"
    if path.exists() and plan.store.is_dir():
        try:
            refuse_other_plan(plan, made_by)
        except StoreError:
            if not force:
                raise
            discard(plan.store)
        else:
            return
    else:
        discard(plan.store)
    create_store(plan.store, plan.specs, plan.num_items, plan.shard_size, plan.attributes)
    write_json(path, plan.document())


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


def _summarise(plan: Plan, done: list[DoneRecord], done_now: int, seconds: float) -> StageSummary:
    counters: Counter[str] = Counter()
    for record in done:
        counters.update(record.counters)
    return StageSummary(
        stage=plan.stage,
        unit=plan.unit,
        num_items=plan.num_items,
        num_shards=plan.num_shards,
        shards_done_before=len(done) - done_now,
        shards_done_now=done_now,
        seconds=seconds,
        counters=dict(sorted(counters.items())),
        failures=tuple(failure for record in done for failure in record.failures),
    )
