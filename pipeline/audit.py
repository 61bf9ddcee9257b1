"""Shell: whether what a run holds is intact, and how to mend it."""

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.attempts import Attempts, write_attempts
from pipeline.columns import file_sha256
from pipeline.errors import ManifestError, StoreError
from pipeline.manifest import load_manifest
from pipeline.places import Place, has_files, is_local, is_on_the_way, reason_of
from pipeline.records import (
    DoneRecord,
    begun_shards,
    done_path,
    read_all_done,
    read_any_done,
    read_json,
    records_folder,
    run_lock,
)
from pipeline.run_contents import DAMAGE as DAMAGE
from pipeline.run_contents import describe as describe
from pipeline.run_contents import find_stores as find_stores
from pipeline.run_contents import plan_path, read_layout, run_dir_of, stores_below
from pipeline.run_contents import verb_of as verb_of
from pipeline.shard_files import sha256_of_shard


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardState:
    """One shard: `done`, `missing` (never finished), `damaged` or `failed`, with the reason."""

    shard: int
    state: str
    reason: str


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


def verify_all(path: Place) -> list[Report]:
    """Verify a store, or a run directory: its manifest, stores and students.

    Raises:
        StoreError: If there is nothing to verify.
    """
    if (path / "zarr.json").exists() or plan_path(path).exists():
        return [verify_store(path)]
    reports = [verify_manifest(path / "manifest")] if has_files(path / "manifest") else []
    reports += [verify_store(store) for store in stores_below(path)]
    students = [*path.glob("round-*/student"), *path.glob("calibration/fold-*/student")]
    reports += [verify_student(folder) for folder in sorted(students, key=str)]
    if not reports:
        raise StoreError(f"{path}: no store there; give a .zarr folder or a run directory")
    return reports


def verify_manifest(folder: Place) -> Report:
    """Hash every file of a manifest against its description; the images are not read."""
    problems: tuple[Problem, ...] = ()
    try:
        load_manifest(folder, verify=True)
    except ManifestError as error:
        problems = (Problem(what="manifest", state="damaged", reason=str(error)),)
    return _report(folder, "manifests", 1, problems)


def verify_store(store: Place) -> Report:
    """Verify a store's shards, and its metadata where the plan has their hashes."""
    try:
        layout, states = read_layout(store), verify(store)
    except StoreError as error:
        state = "damaged" if plan_path(store).exists() else "missing"
        problem = Problem(what="plan", state=state, reason=str(error))
        return Report(place=store, unit="shards", intact=0, total=0, problems=(problem,))
    problems = tuple(
        Problem(what=f"shard {state.shard}", state=state.state, reason=state.reason)
        for state in states
        if state.state != "done"
    )
    report = _report(store, "shards", len(states), problems)
    damaged = [
        Problem(what=name, state="damaged", reason=f"{reason}; run '{verb_of(store)}' again")
        for name, reason in _differing(store, layout.metadata or {})
    ]
    return Report(
        place=store,
        unit=report.unit,
        intact=report.intact,
        total=report.total,
        problems=(*damaged, *problems),
    )


def verify_student(folder: Place) -> Report:
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
        for name, reason in _differing(folder, files)
    )
    return _report(folder, "files", len(files), problems)


def _report(place: Place, unit: str, total: int, problems: tuple[Problem, ...]) -> Report:
    intact = total - len(problems)
    return Report(place=place, unit=unit, intact=intact, total=total, problems=problems)


def _differing(folder: Place, hashes: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Give name and reason of every file that is missing or has another sha256."""
    for name, expected in sorted(hashes.items()):
        try:
            if file_sha256(folder / name) != expected:
                yield name, "sha256 differs"
        except OSError as error:
            if is_on_the_way(folder, error):
                raise
            yield name, f"cannot be read ({reason_of(error)})"


def verify(store: Place) -> list[ShardState]:
    """Hash every file of every shard against its done record.

    Returns:
        One state per shard, in order.
    """
    layout = read_layout(store)
    begun = set(begun_shards(store))
    shards = range(layout.num_shards)
    records = read_all_done(store, [shard for shard in shards if shard in begun])
    states = {
        shard: _verify_shard(store, shard, record, layout.fingerprint) for shard, record in records
    }
    return [
        states.get(shard) or ShardState(shard=shard, state="missing", reason="no done record")
        for shard in shards
    ]


def _verify_shard(
    store: Place, shard: int, record: DoneRecord | None, fingerprint: str
) -> ShardState:
    """Hash every file of a shard that has a done record, readable or not."""
    if record is None or record.fingerprint != fingerprint:
        reason = "done record unreadable or of another plan"
        return ShardState(shard=shard, state="damaged", reason=reason)
    try:
        found = sha256_of_shard([store / name for name in record.files], store)
    except StoreError as error:
        return ShardState(shard=shard, state="damaged", reason=str(error))
    for name, entry in record.files.items():
        if found[name] != entry:
            what = "sha256" if found[name]["bytes"] == entry["bytes"] else "length"
            return ShardState(shard=shard, state="damaged", reason=f"{name}: {what} differs")
    return ShardState(shard=shard, state="done", reason="")


def repair(store: Place, *, failed: bool = False) -> list[ShardState]:
    """Delete damaged shards, proof first, so that the stage's next run makes them anew.

    Holds the run directory meanwhile: what looks half made may be a worker's that is at it.

    Args:
        store: The Zarr group.
        failed: Drop the proof of whole shards that contain failed items too, so that these are
            tried again.

    Returns:
        The shards to be made anew, `damaged` or `failed`.

    Raises:
        StoreError: If another process holds the run directory, or the store has no plan. A
            damaged plan is deleted: the stage's next run writes it anew, if the shards are of it.
    """
    with run_lock(run_dir_of(store) or store.resolve().parent):
        removed: list[ShardState] = []
        try:
            states = verify(store)
        except StoreError as error:
            removed.append(_drop_plan(store, error))
            states = _verify_by_records(store)
        for state in states:
            record = read_any_done(store, state.shard)
            if state.state == "damaged":
                done_path(store, state.shard).unlink(missing_ok=True)
                for name in record.files if record is not None else ():
                    (store / name).unlink(missing_ok=True)
                removed.append(state)
            elif failed and record is not None and record.failures:
                tried = {item.item: record.attempts_of(item) for item in record.failures}
                write_attempts(store, state.shard, Attempts(items=tried))
                done_path(store, state.shard).unlink()
                reason = f"{len(record.failures)} failed items"
                removed.append(ShardState(shard=state.shard, state="failed", reason=reason))
        for folder in (store, records_folder(store)):
            if is_local(folder):  # an object store has no partial ones
                for partial in folder.glob("**/*.partial"):
                    partial.unlink(missing_ok=True)
        return removed


def _verify_by_records(store: Place) -> list[ShardState]:
    """Hash the files of the shards that have a done record, where the plan is lost."""
    return [
        _verify_shard(store, shard, record, "" if record is None else record.fingerprint)
        for shard, record in read_all_done(store)
    ]


def _drop_plan(store: Place, error: StoreError) -> ShardState:
    """Delete a damaged plan; the done records prove of which plan the shards are."""
    if not plan_path(store).exists():
        raise error
    plan_path(store).unlink()
    return ShardState(shard=-1, state="damaged", reason=str(error))
