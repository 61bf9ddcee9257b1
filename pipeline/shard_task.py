"""Shell: compute and write one shard, then its proof; what a worker does."""

import dataclasses
import functools
import time

from pipeline.attempts import (
    Attempts,
    ClaimedError,
    claimed,
    forget_attempts,
    read_attempts,
    write_attempts,
)
from pipeline.errors import SemiresError, StoreError
from pipeline.isolation import GivenUpError, isolate, probing
from pipeline.places import delete, is_local, reaching
from pipeline.records import (
    DoneRecord,
    Plan,
    done_path,
    files_are_whole,
    read_done,
    refuse_other_plan,
    shard_is_done,
    versions,
    write_done,
)
from pipeline.shard_files import delete_shard, write_shard
from pipeline.shards import Receipt, ShardResult, Work
from pipeline.store import space_needed
from pipeline.time_limit import at_most


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
