"""Shell: what a run holds, whether it is intact, and how to mend it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import zarr

from pipeline.attempts import Attempts, write_attempts
from pipeline.columns import file_sha256
from pipeline.config import fingerprint as fingerprint_of
from pipeline.errors import ManifestError, SemiresError, StoreError
from pipeline.manifest import load_manifest
from pipeline.places import Place, is_local, names_in, reason_of
from pipeline.records import (
    DoneRecord,
    done_path,
    read_all_done,
    read_any_done,
    read_done,
    read_json,
    records_folder,
    run_lock,
    stored_plan,
)
from pipeline.shard_files import sha256_of_shard
from pipeline.store import open_store

_SUFFIXES = (".zarr", ".stage")
DAMAGE = (ValueError, RuntimeError, OSError, LookupError, TypeError, AttributeError)
"""What zarr, its codecs and JSON raise on damaged files."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What a store's plan says of its shards."""

    stage: str
    fingerprint: str
    unit: str
    num_items: int
    num_shards: int
    metadata: dict[str, str] | None
    """sha256 of every zarr.json by path in the store; None in a plan that does not say."""


@contextmanager
def one_line(what: str, store: Place) -> Iterator[None]:
    """Turn whatever damaged files raise into one StoreError.

    Args:
        what: The store, and the row if it is about one, for the message.
        store: What to verify.
    """
    try:
        yield
    except SemiresError:
        raise
    except DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise StoreError(
            f"{what} cannot be read ({reason}); run 'inspect-shards verify {store}'"
        ) from error


def find_stores(path: Place) -> list[Place]:
    """List the stores at a path: the path itself, or all below a run directory.

    Raises:
        StoreError: If there is none.
    """
    if (path / "zarr.json").exists() or _plan_path(path).exists():
        return [path]
    stores = _stores_below(path)
    if not stores:
        raise StoreError(f"{path}: no store there; give a .zarr folder or a run directory")
    return stores


def _stores_below(path: Place) -> list[Place]:
    """List stores by their metadata or, should that be lost, by their plan."""
    if not is_local(path):  # a search below everything would list every object of the run
        places = [found / name for found in _folders(path) for name in names_in(found)]
        stores = {found.with_suffix(".zarr") for found in places if found.suffix in _SUFFIXES}
        return sorted(stores, key=str)
    by_metadata = {found.parent for found in path.glob("**/*.zarr/zarr.json")}
    by_plan = {found.parent.with_suffix(".zarr") for found in path.glob("**/*.stage/plan.json")}
    return sorted(by_metadata | by_plan)


def _folders(run_dir: Place) -> list[Place]:
    """List the folders of a run that may hold stores: the run, its rounds and folds."""
    rounds = [run_dir / name for name in names_in(run_dir) if name.startswith("round-")]
    folds = run_dir / "calibration"
    return [run_dir, *rounds, *(folds / name for name in names_in(folds))]


def _plan_path(store: Place) -> Place:
    return records_folder(store) / "plan.json"


def verb_of(store: Place) -> str:
    """Name the command that makes a store, by its plan or, without one, by its place."""
    try:
        stage = str(read_json(_plan_path(store))["plan"]["stage"])
    except (StoreError, *DAMAGE):
        number = re.sub(r"^round-", "", store.resolve().parent.name)
        names = {"teacher": f"teacher-{number}", "labels": f"refine-{number}"}
        stage = names.get(store.stem, store.stem)
    kind, _, number = stage.partition("-")
    verbs = {
        "candidates": "sam-candidates",
        "teacher": f"predict-teacher --round {number}",
        "fold": f"predict-teacher --fold {number}",
        "refine": f"refine-labels --round {number}",
    }
    return verbs.get(kind, "the stage that makes it")


def run_dir_of(path: Place) -> Place | None:
    """Give the run directory that a path is or lies in; None if there is no manifest above it."""
    place = path.resolve()
    return next((up for up in (place, *place.parents) if (up / "manifest").is_dir()), None)


def read_arrays(store: Place) -> dict[str, zarr.Array[Any]]:
    """Open all arrays of a store, by name.

    Raises:
        StoreError: If the store or one of its zarr.json is missing or damaged.
    """
    with one_line(str(store), store):
        return dict(sorted(open_store(store).arrays(), key=lambda pair: pair[0]))


def read_layout(store: Place) -> Layout:
    """Read what a store's plan says of its shards.

    Raises:
        StoreError: If there is no plan, or it is damaged.
    """
    document = stored_plan(store, verb_of(store))
    with one_line(str(_plan_path(store)), store):
        plan = document["plan"]
        num_items, shard_size = int(plan["num_items"]), int(plan["shard_size"])
        metadata = document.get("metadata")
        if fingerprint_of(plan) != document["fingerprint"]:
            raise StoreError(f"{_plan_path(store)}: damaged, it is not what its fingerprint names")
        return Layout(
            stage=str(plan["stage"]),
            fingerprint=str(document["fingerprint"]),
            unit=str(document["unit"]),
            num_items=num_items,
            num_shards=-(-num_items // shard_size),
            metadata=None if metadata is None else dict(metadata),
        )


def describe(store: Place) -> dict[str, Any]:
    """Give a store's figures: arrays with shape, type and bytes, shards, failures, plan."""
    layout = read_layout(store)
    found = read_all_done(store, range(layout.num_shards))
    done = [record for _, record in found if record and record.fingerprint == layout.fingerprint]
    return {
        "stage": layout.stage,
        "fingerprint": layout.fingerprint,
        "items": layout.num_items,
        "unit": layout.unit,
        "shards": layout.num_shards,
        "done": len(done),
        "failures": [failure for record in done for failure in record.failures],
        "seconds": sum(record.seconds for record in done),
        "arrays": _describe_arrays(store, done),
    }


def _describe_arrays(store: Place, done: list[DoneRecord]) -> list[list[Any]]:
    stored: dict[str, int] = {}
    with one_line(f"{records_folder(store)}: a done record", store):
        for record in done:
            for file, entry in record.files.items():
                owner = file.split("/", 1)[0]
                stored[owner] = stored.get(owner, 0) + int(entry["bytes"])
    rows: list[list[Any]] = []
    for name, array in read_arrays(store).items():
        shape = "x".join(map(str, array.shape))
        chunks = "x".join(map(str, array.chunks))
        rows.append([name, str(array.dtype), shape, chunks, stored.get(name, 0)])
    return rows


def verify_all(path: Place) -> list[Report]:
    """Verify a store, or a run directory: its manifest, stores and students.

    Raises:
        StoreError: If there is nothing to verify.
    """
    if (path / "zarr.json").exists() or _plan_path(path).exists():
        return [verify_store(path)]
    reports = [verify_manifest(path / "manifest")] if (path / "manifest").is_dir() else []
    reports += [verify_store(store) for store in _stores_below(path)]
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
        state = "damaged" if _plan_path(store).exists() else "missing"
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
            yield name, f"cannot be read ({reason_of(error)})"


def verify(store: Place) -> list[ShardState]:
    """Hash every file of every shard against its done record.

    Returns:
        One state per shard, in order.
    """
    layout = read_layout(store)
    return [_verify_shard(store, shard, layout.fingerprint) for shard in range(layout.num_shards)]


def _verify_shard(store: Place, shard: int, fingerprint: str) -> ShardState:
    record = read_done(store, shard, fingerprint)
    if record is None:
        present = done_path(store, shard).exists()
        reason = "done record unreadable or of another plan" if present else "no done record"
        return ShardState(shard=shard, state="damaged" if present else "missing", reason=reason)
    for name, entry in record.files.items():
        try:
            found = sha256_of_shard([store / name], store)[name]
        except StoreError as error:
            return ShardState(shard=shard, state="damaged", reason=str(error))
        if found != entry:
            what = "sha256" if found["bytes"] == entry["bytes"] else "length"
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
        _verify_shard(store, shard, "" if record is None else record.fingerprint)
        for shard, record in read_all_done(store)
    ]


def _drop_plan(store: Place, error: StoreError) -> ShardState:
    """Delete a damaged plan; the done records prove of which plan the shards are."""
    if not _plan_path(store).exists():
        raise error
    _plan_path(store).unlink()
    return ShardState(shard=-1, state="damaged", reason=str(error))
