"""Shell: whether what a run holds is intact, and how to mend it."""

import functools
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice

from pipeline.attempts import Attempts, write_attempts
from pipeline.columns import file_sha256
from pipeline.errors import ManifestError, StoreError
from pipeline.in_threads import default_threads, for_each, in_order
from pipeline.manifest import load_manifest, read_description
from pipeline.places import (
    Place,
    delete,
    has_files,
    is_local,
    is_on_the_way,
    read_bytes,
    reason_of,
)
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
from pipeline.run_contents import plan_path, read_layout, run_dir_of, stores_below
from pipeline.run_contents import verb_of as verb_of
from pipeline.shard_audit import Audited, audit_shards, progress
from pipeline.shard_audit import ShardState as ShardState

_AT_ONCE = 1000  # shards that are dropped together


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is not as it should be: `missing` (never finished) or `damaged`."""

    what: str
    state: str
    reason: str

    def __str__(self) -> str:
        return f"{self.what} {self.state}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the verification of one place came to."""

    place: Place
    """A store, the manifest, or the folder of a student."""
    unit: str
    """What was counted: "shards" or "files"."""
    intact: int
    total: int
    problems: tuple[Problem, ...]

    @property
    def damaged(self) -> bool:
        """Whether something is damaged; what is merely missing is not."""
        return any(problem.state == "damaged" for problem in self.problems)


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
    if (path / "zarr.json").exists() or plan_path(path).exists():
        yield verify_store(path, threads)
        return
    stores = stores_below(path)
    students = _students_below(path)
    manifest = path / "manifest"
    if has_files(manifest):
        yield verify_manifest(manifest, threads)
    elif not stores and not students:
        raise StoreError(f"{path}: no store there; give a .zarr folder or a run directory")
    for store in stores:
        yield verify_store(store, threads)
    for folder in students:
        yield verify_student(folder, threads)


def verify_manifest(folder: Place, threads: int | None = None) -> Report:
    """Hash every file of a manifest against its description; the images are not read."""
    problems: tuple[Problem, ...] = ()
    try:
        damaged = _differing(folder, read_description(folder)["files"], threads)
        load_manifest(folder, verify=bool(damaged))  # names the first of them
    except ManifestError as error:
        problems = (Problem(what="manifest", state="damaged", reason=str(error)),)
    return _report(folder, "manifests", 1, problems)


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
        for name, reason in _differing(store, layout.metadata or {}, threads)
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


def verify_student(folder: Place, threads: int | None = None) -> Report:
    """Hash the files of a finished training against student.json."""
    path = folder / "student.json"
    if not path.exists():
        problem = Problem(what="student.json", state="missing", reason="training is not finished")
        return _report(folder, "files", 1, (problem,) if (folder / "plan.json").exists() else ())
    try:
        document = read_json(path)
        files = None if "files" not in document else dict(document["files"])
    except (StoreError, *DAMAGE) as error:
        problem = Problem(what="student.json", state="damaged", reason=str(error))
        return _report(folder, "files", 1, (problem,))
    if files is None:
        problem = Problem(what="files", state="missing", reason="student.json has no hashes")
        return _report(folder, "files", 1, (problem,))
    problems = tuple(
        Problem(what=name, state="damaged", reason=reason)
        for name, reason in _differing(folder, files, threads)
    )
    return _report(folder, "files", len(files), problems)


def _report(place: Place, unit: str, total: int, problems: tuple[Problem, ...]) -> Report:
    intact = total - len(problems)
    return Report(place=place, unit=unit, intact=intact, total=total, problems=problems)


def _differing(folder: Place, hashes: dict[str, str], threads: int | None) -> list[tuple[str, str]]:
    """Give name and reason of every file that is missing or has another sha256, by name."""
    files = sorted(hashes.items())
    difference = functools.partial(_difference, folder)
    found = in_order(difference, files, threads or default_threads(folder))
    with closing(found), progress(folder, "files", len(files)) as bar:
        reasons = []
        for reason in found:
            reasons.append(reason)
            bar.update()
    return [(name, reason) for (name, _), reason in zip(files, reasons, strict=True) if reason]


def _difference(folder: Place, file: tuple[str, str]) -> str:
    """Say why a file is not the one that was hashed; "" if it is."""
    name, expected = file
    try:
        return "" if file_sha256(folder / name) == expected else "sha256 differs"
    except OSError as error:
        if is_on_the_way(folder, error):
            raise
        return f"cannot be read ({reason_of(error)})"


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
        StoreError: If another process holds the run directory, or the store has no plan. A
            damaged plan is deleted: the stage's next run writes it anew, if the shards are of it.
    """
    threads = threads or default_threads(store)
    with run_lock(run_dir_of(store) or store.resolve().parent):
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


def _students_below(run_dir: Place) -> list[Place]:
    folders = [*run_dir.glob("round-*/student"), *run_dir.glob("calibration/fold-*/student")]
    return sorted(folders, key=str)


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
