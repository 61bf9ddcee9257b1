"""Shell: run one stage over its shards, resumably; every stage goes through here."""

import dataclasses
import functools
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

from tqdm import tqdm

from pipeline.attempts import (
    Attempts,
    ClaimedError,
    claimed,
    forget_attempts,
    read_attempts,
    write_attempts,
)
from pipeline.bars import bar_options
from pipeline.engines import Engine, run_tasks
from pipeline.errors import SemiresError, StoreError
from pipeline.isolation import GivenUpError, isolate, probing
from pipeline.places import delete, is_local, reaching
from pipeline.preparation import Replace as Replace
from pipeline.preparation import check_plan as check_plan
from pipeline.preparation import prepared
from pipeline.records import (
    DoneRecord,
    FailedItem,
    Plan,
    done_path,
    file_lengths,
    files_are_whole,
    read_all_done,
    read_done,
    refuse_other_plan,
    shard_is_done,
    versions,
    write_done,
)
from pipeline.shard_files import delete_shard, write_shard
from pipeline.shards import Receipt, Work
from pipeline.shards import ShardResult as ShardResult
from pipeline.stopping import requested, stage_running
from pipeline.store import space_needed
from pipeline.time_limit import at_most


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
        before = tally.num_done
        wanted = range(plan.num_shards if limit is None else shards_of(plan, limit))
        todo = [shard for shard in wanted if not tally.done[shard] and engine.takes(shard)]
        items = wanted.stop * plan.shard_size if limit is not None else plan.num_items
        allowed = None
        if engine.max_failures is not None:
            allowed = engine.max_failures.allowed(min(items, plan.num_items))
        _run_shards(plan, work, engine, todo, tally, allowed)
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


def run_shard(plan: Plan, work: Work, shard: int, *, max_seconds: float | None = None) -> Receipt:
    """Compute and write one shard, then its done record; runs in a worker.

    A shard that was begun `MAX_ATTEMPTS` times and never ended is computed around the items that
    end the process, or do not end within `max_seconds`.

    Returns:
        Failed items and counts; arrays never travel to the driver. A shard that was done meanwhile
        is left as it is.
    """
    with reaching(plan.store):
        return _run_shard(plan, work, shard, max_seconds)


def _run_shard(plan: Plan, work: Work, shard: int, max_seconds: float | None) -> Receipt:
    # A worker that outlived its driver must not write into a store that was since made anew.
    refuse_other_plan(plan, plan.stage)
    if (done := _done(plan, shard)) is not None:
        return done
    before = read_attempts(plan.store, shard)
    write_attempts(plan.store, shard, Attempts(shard=before.shard + 1, items=before.items))
    try:
        with reaching(plan.store):  # here, too: trouble on the way is no fault of the items
            receipt = _compute_and_write(plan, work, shard, before, max_seconds)
    except GivenUpError as error:
        return Receipt(shard=shard, problem=f"shard {shard}: {error}")
    except ClaimedError as error:
        write_attempts(plan.store, shard, before)
        return Receipt(shard=shard, problem=f"shard {shard}: {error}")
    except (SemiresError, KeyboardInterrupt):
        write_attempts(plan.store, shard, before)  # no fault of the items
        raise
    forget_attempts(plan.store, shard)
    return receipt


def _done(plan: Plan, shard: int) -> Receipt | None:
    """Give the receipt of a shard that is done; None if it is not."""
    record = read_done(plan.store, shard, plan.fingerprint)
    if record is None or not files_are_whole(plan.store, record):
        return None
    return Receipt(shard=shard, failures=record.failures, counters=record.counters)


def _compute(plan: Plan, work: Work, rows: range) -> ShardResult:
    """Compute rows; trouble with the object store is about all items, never about one."""
    try:
        with reaching(plan.store):
            return work(rows)
    except SystemExit as error:  # of a library; it must end neither a run nor a worker
        raise RuntimeError(f"its computation asks to exit with {error.code}") from error


def _row_elsewhere(plan: Plan, shard: int) -> range:
    """Give a row of the shard farthest away; none if there is only one shard."""
    other = (shard + plan.num_shards // 2) % plan.num_shards
    return range(0) if other == shard else plan.rows(other)[:1]


def _compute_and_write(
    plan: Plan, work: Work, shard: int, before: Attempts, max_seconds: float | None
) -> Receipt:
    started = time.monotonic()
    rows = plan.rows(shard)
    attempts: dict[str, int] = {}
    if before.exhausted:
        elsewhere = _row_elsewhere(plan, shard)
        with probing(functools.partial(_compute, plan, work), max_seconds, elsewhere) as probe:
            result, attempts = isolate(work, rows, plan.specs, before, probe, elsewhere)
    else:
        with at_most(max_seconds, f"{plan.stage}: shard {shard}"):
            result = _compute(plan, work, rows)
    for failure in result.failures:
        if failure.item in before.items:
            attempts.setdefault(failure.item, before.items[failure.item] + 1)
    refuse_other_plan(plan, plan.stage)
    record = DoneRecord(
        shard=shard,
        start=rows.start,
        stop=rows.stop,
        fingerprint=plan.fingerprint,
        files={},
        failures=result.failures,
        counters=result.counters,
        seconds=0.0,
        versions=versions(here=not before.exhausted),
        attempts=attempts,
    )
    with claimed(plan.store, shard):
        # A worker that was given up, or frozen while another did its shard, leaves it as it is.
        return _done(plan, shard) or _write(plan, record, result, started)


def _write(plan: Plan, record: DoneRecord, result: ShardResult, started: float) -> Receipt:
    """Write a shard's files, then its record with what they are and how long all of it took."""
    shard, rows = record.shard, range(record.start, record.stop)
    delete(done_path(plan.store, shard))
    try:
        with space_needed(plan.store):
            files = write_shard(plan.store, plan.specs, shard, rows, result.columns)
            seconds = round(time.monotonic() - started, 3)
            write_done(plan.store, dataclasses.replace(record, files=files, seconds=seconds))
    except StoreError:
        # Half of it would fill the disk further. Objects may be another's, and are only replaced.
        if is_local(plan.store) and not shard_is_done(plan.store, shard, plan.fingerprint):
            delete_shard(plan.store, plan.specs, shard)
        raise
    return Receipt(shard=shard, failures=record.failures, counters=record.counters)
