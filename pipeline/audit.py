"""Shell: whether what a run holds is intact, and how to mend it."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice

from pipeline.attempts import Attempts, write_attempts
from pipeline.columns import file_sha256 as file_sha256
from pipeline.errors import StoreError
from pipeline.file_audit import Problem as Problem
from pipeline.file_audit import Report as Report
from pipeline.file_audit import differing
from pipeline.file_audit import verify_manifest as verify_manifest
from pipeline.file_audit import verify_student as verify_student
from pipeline.in_threads import default_threads, for_each
from pipeline.places import Place, delete, has_files, is_local, read_bytes
from pipeline.records import (
    content_fingerprint,
    done_path,
    note_retry,
    read_json,
    records_folder,
    run_lock,
)
from pipeline.run_contents import DAMAGE as DAMAGE
from pipeline.run_contents import describe as describe
from pipeline.run_contents import find_stores as find_stores
from pipeline.run_contents import is_store, plan_path, read_layout, run_dir_of, stores_below
from pipeline.run_contents import verb_of as verb_of
from pipeline.shard_audit import Audited, audit_shards
from pipeline.shard_audit import ShardState as ShardState
from pipeline.store_links import refuse_links

_AT_ONCE = 1000  # shards that are dropped together


def verify_all(path: Place, threads: int | None = None) -> Iterator[Report]:
    """Verify a store, or a run directory: its manifest, stores and students.

    Args:
        path: A Zarr group or a run directory.
        threads: Shards or files that are read at a time, on which the reports do not depend; None
            is what suits the place.

    Yields:
        A report for each, when it is known.

    Raises:
        StoreError: If there is nothing to verify.
    """
    if is_store(path):
        yield verify_store(path, threads)
        return
    stores = stores_of_any_run(path)
    yield from _manifest_report(path, threads)
    for store in stores:
        yield verify_store(store, threads)
    for folder in _students_below(path):
        yield verify_student(folder, threads)


def verify_unsharded(path: Place, threads: int | None = None) -> Iterator[Report]:
    """Verify what `repair` does not mend: the manifest and the students of a run.

    Args:
        path: A run directory; of a store there is nothing to verify.
        threads: As `verify_all` takes it.

    Yields:
        A report for each, when it is known; the reasons name the commands that mend.
    """
    if is_store(path):
        return
    yield from _manifest_report(path, threads)
    for folder in _students_below(path):
        yield verify_student(folder, threads)


def stores_of_any_run(path: Place) -> list[Place]:
    """List the stores at a path; none in a run that holds no more than a manifest or students.

    Raises:
        StoreError: If there is nothing of a run.
    """
    if is_store(path):
        return [path]
    stores = stores_below(path)
    if not stores and not has_files(path / "manifest") and not _students_below(path):
        raise StoreError(f"{path}: no store there; give a .zarr folder or a run directory")
    return stores


def _manifest_report(run_dir: Place, threads: int | None) -> Iterator[Report]:
    if has_files(run_dir / "manifest"):
        yield verify_manifest(run_dir / "manifest", threads)


def verify_store(store: Place, threads: int | None = None) -> Report:
    """Verify a store's shards, and its metadata where the plan has their hashes."""
    try:
        layout = read_layout(store)
    except StoreError as error:
        state = "damaged" if plan_path(store).exists() else "missing"
        problem = Problem(what="plan", state=state, reason=str(error))
        return Report(place=store, unit="shards", intact=0, total=0, problems=(problem,))
    problems = [
        Problem(what=name, state="damaged", reason=f"{reason}; run '{verb_of(store)}' again")
        for name, reason in differing(store, layout.metadata or {}, threads)
    ]
    intact = 0
    with closing(audit_shards(store, layout, threads or default_threads(store))) as found:
        for shard, _ in found:
            if shard.state == "done":
                intact += 1
            else:
                what = f"shard {shard.shard}"
                problems.append(Problem(what=what, state=shard.state, reason=shard.reason))
    return Report(
        place=store,
        unit="shards",
        intact=intact,
        total=layout.num_shards,
        problems=tuple(problems),
    )


def verify(store: Place, threads: int | None = None) -> list[ShardState]:
    """Hash every file of every shard against its done record.

    Returns:
        One state per shard, in order.
    """
    with closing(
        audit_shards(store, read_layout(store), threads or default_threads(store))
    ) as found:
        return [state for state, _ in found]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Dropped:
    """A shard to be made anew: `damaged`, or `failed`, whose files stay until then."""

    state: ShardState
    files: tuple[str, ...] = ()
    """What to delete."""
    tried: dict[str, int] = field(default_factory=dict)
    """How often the failed items were tried."""


def repair(store: Place, *, failed: bool = False, threads: int | None = None) -> list[ShardState]:
    """Delete damaged shards, proof first, so that the stage's next run makes them anew.

    Holds the run directory meanwhile: what looks half made may be a worker's that is at it.

    Args:
        store: The Zarr group.
        failed: Drop the proof of whole shards that contain failed items too, so that these are
            tried again.
        threads: Shards that are read, and files that are deleted, at a time; None is what suits
            the place.

    Returns:
        The shards to be made anew, `damaged` or `failed`.

    Raises:
        StoreError: If another process holds the run directory, a folder of the store is a link, or
            the store has no plan. A
            damaged plan is deleted: the stage's next run writes it anew, if the shards are of it.
    """
    threads = threads or default_threads(store)
    with run_lock(run_dir_of(store) or store.resolve().parent):
        refuse_links(store)  # before any proof is gone
        removed: list[ShardState] = []
        layout, noted = None, False
        try:
            layout = read_layout(store)
        except StoreError as error:
            removed.append(_drop_plan(store, error))
        with closing(audit_shards(store, layout, threads)) as found:
            wrong = (bad for audited in found if (bad := _to_drop(audited, failed)) is not None)
            while some := list(islice(wrong, _AT_ONCE)):
                if any(bad.tried for bad in some) and not noted and _is_used(store):
                    note_retry(store)
                    noted = True
                _drop(store, some, threads)
                removed += [bad.state for bad in some]
        for folder in (store, records_folder(store)):
            if is_local(folder):  # an object store has no partial ones
                for partial in folder.glob("**/*.partial"):
                    partial.unlink(missing_ok=True)
        return removed


def _is_used(store: Place) -> bool:
    """Tell whether a store or a training of the run was begun with this one as an input."""
    run_dir = run_dir_of(store)
    if run_dir is None or not plan_path(store).exists():
        return False
    name = content_fingerprint(read_json(plan_path(store)))
    others = [plan_path(other) for other in stores_below(run_dir) if other != store]
    others += [folder / "plan.json" for folder in _students_below(run_dir)]
    return any(name.encode() in read_bytes(plan) for plan in others if plan.exists())


def _students_below(path: Place) -> list[Place]:
    """List the students of a run directory, or of a folder of one."""
    patterns = "student", "fold-*/student", "round-*/student", "calibration/fold-*/student"
    return sorted((found for pattern in patterns for found in path.glob(pattern)), key=str)


def _to_drop(audited: Audited, failed: bool) -> _Dropped | None:
    """Give what to drop of a shard; None if it may stay."""
    state, record = audited
    if state.state == "damaged":
        return _Dropped(state=state, files=() if record is None else tuple(record.files))
    if not failed or record is None or not record.failures:
        return None
    tried = {item.item: record.attempts_of(item) for item in record.failures}
    reason = f"{len(record.failures)} failed items"
    return _Dropped(state=ShardState(shard=state.shard, state="failed", reason=reason), tried=tried)


def _drop(store: Place, shards: list[_Dropped], threads: int) -> None:
    """Drop shards: all proofs before any file.

    An item of work is one request, which is all that may still be under way where this ends early,
    and somebody else holds the run directory.
    """

    def remember(bad: _Dropped) -> None:
        write_attempts(store, bad.state.shard, Attempts(items=bad.tried))

    for_each(remember, [bad for bad in shards if bad.tried], threads)
    for_each(delete, [done_path(store, bad.state.shard) for bad in shards], threads)
    for_each(delete, [store / name for bad in shards for name in bad.files], threads)


def _drop_plan(store: Place, error: StoreError) -> ShardState:
    """Delete a damaged plan; the done records prove of which plan the shards are."""
    if not plan_path(store).exists():
        raise error
    delete(plan_path(store))
    return ShardState(shard=-1, state="damaged", reason=str(error))
