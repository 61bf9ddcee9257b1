"""Shell: run one stage over its shards, resumably; every stage goes through here."""

import functools
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

from tqdm import tqdm

from pipeline.bars import bar_options
from pipeline.engines import Engine, run_tasks
from pipeline.errors import StoreError
from pipeline.preparation import Replace as Replace
from pipeline.preparation import check_plan as check_plan
from pipeline.preparation import prepared
from pipeline.records import (
    DoneRecord,
    FailedItem,
    Plan,
    file_lengths,
    files_are_whole,
    read_all_done,
)
from pipeline.shard_files import delete_leftovers
from pipeline.shard_task import run_shard
from pipeline.shards import Receipt, Work
from pipeline.shards import ShardResult as ShardResult
from pipeline.stopping import requested, stage_running


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
        engine: How and where; this process by default.
        limit: Only the shards that hold the first `limit` items.
        replace: Whether to make a store anew that is there: never, if another plan made it, or
            always. The old one comes back if no shard of the new one can be made.
        made_by: The verb, for messages.

    Returns:
        What was done; counters and failures cover all shards that are done, now or before.

    Raises:
        StoreError: If the store was made by another plan and may not be replaced, more items
            failed than the engine's `max_failures`, or a shard cannot be done.
        KeyboardInterrupt: If the stage was asked to stop; shards that had begun are done.
    """
    started = time.monotonic()
    engine = engine or Engine()
    with prepared(plan, replace, made_by, engine.part), stage_running():
        tally = scan(plan)
        delete_leftovers(plan.store, plan.specs, engine.takes)
        before = tally.num_done
        wanted = range(plan.num_shards if limit is None else shards_of(plan, limit))
        todo = [shard for shard in wanted if not tally.done[shard] and engine.takes(shard)]
        items = wanted.stop * plan.shard_size if limit is not None else plan.num_items
        allowed = None
        if engine.max_failures is not None:
            allowed = engine.max_failures.allowed(min(items, plan.num_items))
        _run_shards(plan, work, engine, todo, tally, allowed)
        # Of workers that were lost on the way; what is not done may still be at work somewhere.
        delete_leftovers(plan.store, plan.specs, lambda s: engine.takes(s) and bool(tally.done[s]))
        _refuse_too_many(plan, tally, engine, allowed)
        if tally.problems:
            raise StoreError(f"{plan.store}: {_shown(tally.problems)}; all other shards are done")
        if requested():
            raise KeyboardInterrupt
    if engine.part is not None:
        tally = scan(plan)  # the other parts were at it, too
    done_now = [shard for shard in todo if tally.done[shard]]
    return StageSummary(
        stage=plan.stage,
        unit=plan.unit,
        num_items=plan.num_items,
        num_shards=plan.num_shards,
        shards_done_before=before if engine.part is None else tally.num_done - len(done_now),
        shards_done_now=len(done_now),
        items_done_now=sum(len(plan.rows(shard)) for shard in done_now),
        seconds=time.monotonic() - started,
        counters=dict(sorted(tally.counters.items())),
        failures=tuple(
            failure for shard in sorted(tally.failures) for failure in tally.failures[shard]
        ),
    )


@dataclass(slots=True)
class Tally:
    """What is known of a stage's shards; grows with failed items, not with shards or items."""

    done: bytearray
    """One byte per shard, 1 where it is done."""
    counters: Counter[str] = field(default_factory=Counter)
    failures: dict[int, tuple[FailedItem, ...]] = field(default_factory=dict)
    """By shard, where there are any."""
    num_failed: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def num_done(self) -> int:
        """Shards that are done."""
        return self.done.count(1)

    def add(self, receipt: Receipt | DoneRecord) -> None:
        """Count a shard in, or note why it is not done."""
        if isinstance(receipt, Receipt) and receipt.problem is not None:
            self.problems.append(receipt.problem)
            return
        self.done[receipt.shard] = 1
        self.counters.update(receipt.counters)
        self.num_failed += len(receipt.failures)
        if receipt.failures:
            self.failures[receipt.shard] = receipt.failures


def scan(plan: Plan) -> Tally:
    """Look which shards of a store are done, by their records and the lengths of their files."""
    tally = Tally(bytearray(plan.num_shards))
    lengths = file_lengths(plan.store)
    for shard, record in read_all_done(plan.store):
        if record is None or record.fingerprint != plan.fingerprint:
            continue
        if record.shard != shard or shard >= plan.num_shards:
            continue
        if files_are_whole(plan.store, record, lengths):
            tally.add(record)
    return tally


def shards_of(plan: Plan, limit: int) -> int:
    """Give the number of shards that hold the first `limit` items."""
    return min(plan.num_shards, -(-limit // plan.shard_size))


def pending_shards(plan: Plan) -> list[int]:
    """List the shards still to do; all of them where the store is missing or of another plan."""
    done = scan(plan).done
    return [shard for shard in range(plan.num_shards) if not done[shard]]


def _run_shards(
    plan: Plan,
    work: Work,
    engine: Engine,
    todo: list[int],
    tally: Tally,
    allowed: int | None,
) -> None:
    def stop() -> bool:
        return requested() or (allowed is not None and tally.num_failed > allowed)

    if not todo:
        return
    task = functools.partial(run_shard, plan, work, max_seconds=engine.max_shard_seconds)
    with tqdm(
        total=sum(len(plan.rows(shard)) for shard in todo),
        desc=plan.stage,
        unit=f" {plan.unit}",
        **bar_options(),
    ) as bar:
        for shard, receipt in run_tasks(engine, task, todo, plan.stage, stop):
            tally.add(receipt)
            bar.update(len(plan.rows(shard)))
            if receipt.problem is not None:
                bar.write(f"{plan.stage}: {receipt.problem}", sys.stderr)
            elif receipt.failures:
                bar.write(
                    f"{plan.stage}: shard {shard}: {len(receipt.failures)} items failed", sys.stderr
                )


def _refuse_too_many(plan: Plan, tally: Tally, engine: Engine, allowed: int | None) -> None:
    if allowed is None or tally.num_failed <= allowed:
        return
    shard, failures = next(iter(tally.failures.items()))
    raise StoreError(
        f"{plan.store}: {tally.num_failed} {plan.unit} failed, more than --max-failures "
        f"{engine.max_failures} allows ({allowed}); stopped, and what is done is kept; the first "
        f"is {failures[0].item} of shard {shard}: {failures[0].reason}; 'inspect-shards failures "
        f"{plan.store}' lists all"
    )


def _shown(problems: list[str]) -> str:
    more = f"; and {len(problems) - 1} more shards" if len(problems) > 1 else ""
    return problems[0] + more
