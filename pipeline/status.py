"""Shell: how far the stages of a run are, what no longer fits together, and why."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.config import differences
from pipeline.errors import SemiresError, StoreError
from pipeline.growth import first_items_are
from pipeline.json_files import read_json
from pipeline.manifest import images_fingerprint, load_manifest
from pipeline.places import Place, relative_name
from pipeline.records import (
    DoneRecord,
    file_lengths,
    files_are_whole,
    read_all_done,
    records_folder,
    stored_plan,
)
from pipeline.run_contents import find_stores, verb_of

MAX_REASONS = 5
_WEIGHTS = "teacher.safetensors"


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
    """Give the status of all stores and trainings of a run, in the order of the job.

    Quick: lengths of files are compared, not hashes (`audit.verify_all` does that).

    Raises:
        StoreError: If there is no store.
    """
    stores = [_store_status(store, run_dir) for store in find_stores(run_dir)]
    folders = [*run_dir.glob("round-*/student"), *run_dir.glob("calibration/*/student")]
    students = [_student_status(folder, run_dir) for folder in folders if _begun(folder)]
    ordered = sorted([*stores, *students], key=lambda status: _order(status.place, run_dir))
    return _stale_by_inheritance(ordered)


def failures_of(path: Place) -> list[Failure]:
    """List the failed items of a store, or of all stores of a run.

    Raises:
        StoreError: If there is no store.
    """
    found = []
    for store in find_stores(path):
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


def _store_status(store: Place, run_dir: Place) -> StageStatus:
    verb = verb_of(store)
    try:
        document = stored_plan(store, verb)
        plan = dict(document["plan"])
        items, size = int(plan["num_items"]), int(plan["shard_size"])
        name, unit = str(document["fingerprint"]), str(document["unit"])
    except (StoreError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        return StageStatus(place=store, verb=verb, unit="shards", damaged=1, reasons=(str(error),))
    num_shards = -(-items // size)
    counted = StageStatus(place=store, verb=verb, unit=unit, items=items, shards=num_shards)
    reasons: list[str] = []
    done = failed = 0
    lengths = file_lengths(store)
    for shard, record in read_all_done(store):
        problem = _problem(store, record, name, lengths)
        if record is None or problem is not None:
            reasons.append(f"shard {shard}: {problem}")
            continue
        done += 1
        failed += len(record.failures)
    lines = _input_differences(store, run_dir, plan)
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
    store: Place, record: DoneRecord | None, fingerprint: str, lengths: Mapping[str, int] | None
) -> str | None:
    """Say what is wrong with a shard that has a done record; None if nothing is."""
    if record is None:
        return "its done record is damaged"
    if record.fingerprint != fingerprint:
        return f"of another plan: {record.fingerprint[:12]}, not {fingerprint[:12]}"
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
    lines = _input_differences(folder, run_dir, plan)
    done = int(finished)
    return replace(status, done=done, missing=1 - done, stale=bool(lines), reasons=tuple(lines))


def _input_differences(place: Place, run_dir: Place, plan: dict[str, Any]) -> list[str]:
    """Name the inputs that are others now than when the plan was made, with both values."""
    recorded = plan.get("inputs")
    if not isinstance(recorded, dict):
        return []
    now = {name: INPUTS[name](place, run_dir) if name in INPUTS else old
           for name, old in recorded.items()}  # fmt: skip
    return differences({"inputs": recorded}, {"inputs": now})


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
    before = f"{_previous(place).name}/student" if folder.startswith("round-") else ""
    if place.stem == "teacher":
        return [before or f"{folder}/student"]
    return [f"{folder}/labels", before] if place.stem == "student" else []


def _previous(place: Place) -> Place:
    """Give the folder of the round before, or a fold's own."""
    found = re.fullmatch(r"round-(\d+)", place.parent.name)
    return place.parent.with_name(f"round-{int(found[1]) - 1}") if found else place.parent


def _manifest(_place: Place, run_dir: Place) -> str | None:
    return _or_none(lambda: load_manifest(run_dir / "manifest").fingerprint)


def _images(_place: Place, run_dir: Place) -> str | None:
    return _or_none(lambda: images_fingerprint(load_manifest(run_dir / "manifest")))


def _plan_of(store: Place) -> str | None:
    return _or_none(lambda: str(read_json(records_folder(store) / "plan.json")["fingerprint"]))


def _student(place: Place, _run_dir: Place) -> str | None:
    path = _previous(place) / "student" / "student.json"
    return _or_none(lambda: str(read_json(path)["fingerprint"]))


def _weights(place: Place, _run_dir: Place) -> str | None:
    path = _previous(place) / "student" / "student.json"
    return _or_none(lambda: str(read_json(path)["files"][_WEIGHTS]))


def _or_none(read: Callable[[], str]) -> str | None:
    try:
        return read()
    except (SemiresError, KeyError, TypeError):
        return None


INPUTS: dict[str, Callable[[Place, Place], str | None]] = {
    "images": _images,
    "manifest": _manifest,
    "candidates": lambda _place, run_dir: _plan_of(run_dir / "candidates.zarr"),
    "teacher": lambda place, _run_dir: _plan_of(place.parent / "teacher.zarr"),
    "labels": lambda place, _run_dir: _plan_of(place.parent / "labels.zarr"),
    "student": _student,
    "previous_student": _student,
    "weights_sha256": _weights,
}
"""Per entry of a plan's `inputs`, what it would be now; given the store or folder, and the run."""
