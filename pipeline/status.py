"""Shell: how far the stages of a run are, what no longer fits together, and why."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from pipeline.current_inputs import input_differences, previous_folder
from pipeline.errors import SemiresError, StoreError
from pipeline.growth import first_items_are
from pipeline.json_files import read_json
from pipeline.manifest import load_manifest, read_description
from pipeline.paths import RunPaths
from pipeline.places import Place, has_files, relative_name
from pipeline.prepare_summary import failures_of_manifest
from pipeline.records import (
    DoneRecord,
    file_lengths,
    files_are_whole,
    read_all_done,
    stored_plan,
)
from pipeline.run_contents import is_store, stores_of_run, verb_of

MAX_REASONS = 5
PREPARE = "prepare-data"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStatus:
    """How far one store or training is."""

    place: Place
    verb: str
    """The command that makes it."""
    unit: str
    items: int | None = None
    """None where the plan is damaged."""
    shards: int | None = None
    done: int = 0
    missing: int = 0
    """Shards that were not begun, or not ended."""
    damaged: int = 0
    failed_items: int = 0
    stale: bool = False
    """Whether an input is another now, so that the stage refuses to go on."""
    reasons: tuple[str, ...] = ()
    """Why something is damaged or stale, one line each."""

    @property
    def state(self) -> str:
        """In a word."""
        if self.stale:
            return "stale"
        if self.damaged or self.shards is None:
            return "damaged"
        return "to do" if self.missing else "done"


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed item of a stage."""

    item: str
    stage: str
    reason: str
    attempts: int


def run_status(run_dir: Place) -> list[StageStatus]:
    """Give the status of the manifest, all stores and trainings of a run, in the job's order.

    Quick: lengths of files are compared, not hashes (`audit.verify_all` does that).

    Raises:
        StoreError: If there is neither a manifest nor a store, or it is a store itself.
    """
    if is_store(run_dir):
        raise StoreError(
            f"{run_dir}: expected a run directory, found a store; give the folder that holds it "
            "and the manifest"
        )
    stores = [_store_status(store, run_dir) for store in stores_of_run(run_dir)]
    folders = [*run_dir.glob("round-*/student"), *run_dir.glob("calibration/*/student")]
    students = [_student_status(folder, run_dir) for folder in folders if _begun(folder)]
    ordered = sorted([*stores, *students], key=lambda status: _order(status.place, run_dir))
    return [*_manifest_status(run_dir), *_stale_by_inheritance(ordered)]


def failures_of(path: Place) -> list[Failure]:
    """List the failed items of a store; or of a run: of its manifest and all its stores.

    Raises:
        StoreError: If there is neither a manifest nor a store.
        ManifestError: If what the manifest left out cannot be read.
    """
    if not is_store(path) and has_files(RunPaths(path).manifest):
        entries = failures_of_manifest(path)
    else:
        entries = []
    found = [
        Failure(f"{entry.item} {entry.file}".strip(), PREPARE, entry.reason, 1)
        for entry in entries
        if entry.severity == "failed"
    ]
    for store in stores_of_run(path):
        stage = store.stem if store == path else relative_name(store, path).removesuffix(".zarr")
        for record in _records(store):
            found += [
                Failure(failure.item, stage, failure.reason, record.attempts_of(failure))
                for failure in record.failures
            ]
    return found


def _records(store: Place) -> list[DoneRecord]:
    found = read_all_done(store)
    return [record for _, record in found if record is not None and record.failures]


def _begun(folder: Place) -> bool:
    return (folder / "plan.json").exists() or (folder / "student.json").exists()


def _order(place: Place, run_dir: Place) -> tuple[int, int, str]:
    """Sort candidates, then calibration, then rounds; in a round teacher, labels, student."""
    parts = relative_name(place, run_dir).split("/")
    round_of = re.fullmatch(r"round-(\d+)", parts[0])
    steps = {"teacher.zarr": 0, "labels.zarr": 1, "student": 2}
    if parts[0] == "calibration":
        return 0, 1 - steps.get(place.name, 2), parts[1]
    return (int(round_of[1]) + 1 if round_of else -1), steps.get(place.name, 3), place.name


def _manifest_status(run_dir: Place) -> list[StageStatus]:
    """Give the status of the manifest; nothing if there is none."""
    folder = RunPaths(run_dir).manifest
    if not has_files(folder):
        return []
    status = StageStatus(place=folder, verb=PREPARE, unit="images")
    try:
        items = load_manifest(folder).num_images
        failed = int(read_description(folder).get("failed", 0))
    except (SemiresError, TypeError, ValueError) as error:
        return [replace(status, damaged=1, reasons=(str(error),))]
    return [replace(status, items=items, shards=1, done=1, failed_items=failed)]


def _store_status(store: Place, run_dir: Place) -> StageStatus:
    verb = verb_of(store)
    try:
        document = stored_plan(store, verb)
        plan = dict(document["plan"])
        items, size = int(plan["num_items"]), int(plan["shard_size"])
        name, unit = str(document["fingerprint"]), str(document["unit"])
        plans = (name, str(document.get("growing", name)))
    except (StoreError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        return StageStatus(place=store, verb=verb, unit="shards", damaged=1, reasons=(str(error),))
    num_shards = -(-items // size)
    counted = StageStatus(place=store, verb=verb, unit=unit, items=items, shards=num_shards)
    reasons: list[str] = []
    done = failed = 0
    lengths = file_lengths(store)
    for shard, record in read_all_done(store):
        problem = _problem(store, record, plans, lengths)
        if record is None or problem is not None:
            reasons.append(f"shard {shard}: {problem}")
            continue
        done += 1
        failed += len(record.failures)
    lines = input_differences(store, run_dir, plan)
    grown = bool(lines) and first_items_are(str(plan.get("stage")), run_dir, plan)
    if grown:
        lines = [f"images were added after the {items} of now; '{verb}' does them"]
    damaged = len(reasons)
    if damaged > MAX_REASONS:
        reasons = [*reasons[:MAX_REASONS], f"and {damaged - MAX_REASONS} more damaged shards"]
    return replace(
        counted,
        done=done,
        missing=num_shards - done - damaged + int(grown),
        damaged=damaged,
        failed_items=failed,
        stale=bool(lines) and not grown,
        reasons=(*lines, *reasons),
    )


def _problem(
    store: Place,
    record: DoneRecord | None,
    plans: tuple[str, str],
    lengths: Mapping[str, int] | None,
) -> str | None:
    """Say what is wrong with a shard that has a done record; None if nothing is."""
    if record is None:
        return "its done record is damaged"
    if record.fingerprint not in plans:
        return f"of another plan: {record.fingerprint[:12]}, not {plans[0][:12]}"
    whole = files_are_whole(store, record, lengths)
    return None if whole else "a file is missing or of another length"


def _student_status(folder: Place, run_dir: Place) -> StageStatus:
    number = folder.parent.name.removeprefix("round-")
    fold = re.fullmatch(r"fold-(\d+)-of-(\d+)", folder.parent.name)
    verb = (
        f"train-student --fold {fold[1]}/{fold[2]}" if fold else f"train-student --round {number}"
    )
    finished = (folder / "student.json").exists()
    status = StageStatus(place=folder, verb=verb, unit="training", items=1, shards=1)
    try:
        plan = dict(read_json(folder / "plan.json"))
    except (SemiresError, TypeError, ValueError) as error:
        return replace(status, damaged=1, reasons=(str(error),))
    lines = input_differences(folder, run_dir, plan)
    done = int(finished)
    return replace(status, done=done, missing=1 - done, stale=bool(lines), reasons=tuple(lines))


def _stale_by_inheritance(statuses: list[StageStatus]) -> list[StageStatus]:
    """Call stale what was made of something stale, though that is still there."""
    stale: set[str] = set()
    found = []
    for status in statuses:
        because = [name for name in _made_of(status.place) if name in stale]
        if because and not status.stale:
            lines = tuple(f"{name} is stale" for name in because)
            status = replace(status, stale=True, reasons=(*lines, *status.reasons))
        if status.stale:
            stale.add(_name(status.place))
        found.append(status)
    return found


def _name(place: Place) -> str:
    kind = place.stem
    return kind if kind == "candidates" else f"{place.parent.name}/{kind}"


def _made_of(place: Place) -> list[str]:
    folder = place.parent.name
    if place.stem == "labels":
        return ["candidates", f"{folder}/teacher"]
    before = f"{previous_folder(place).name}/student" if folder.startswith("round-") else ""
    if place.stem == "teacher":
        return [before or f"{folder}/student"]
    return [f"{folder}/labels", before] if place.stem == "student" else []
