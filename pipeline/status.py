"""Shell: how far the stages of a run are, what no longer fits together, and why."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from pipeline.current_inputs import input_differences
from pipeline.errors import SemiresError, StoreError
from pipeline.failed_items import PREPARE, manifest_or_none
from pipeline.failed_items import Failure as Failure
from pipeline.failed_items import failures_of as failures_of
from pipeline.growth import first_items_are
from pipeline.json_files import read_checked
from pipeline.manifest import DESCRIPTION, Manifest, load_manifest, read_description
from pipeline.paths import RunPaths
from pipeline.places import Place, has_files
from pipeline.records import (
    DoneRecord,
    file_lengths,
    files_are_whole,
    read_all_done,
    stored_plan,
)
from pipeline.run_contents import is_store, run_dir_of, stores_of_run, verb_of
from pipeline.run_order import made_of, name_in_round, order_in_job
from pipeline.trainings import (
    Evaluation,
    evaluations_in,
    left_out_differences,
    left_out_of,
    metrics_below,
    skipped_in,
    still_left_out,
    trainings_below,
    verb_of_evaluations,
    verb_of_training,
)

MAX_REASONS = 5
_PART = re.compile(r"round-\d+|calibration|fold-\d+-of-\d+")
"""Folders of a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStatus:
    """How far one store, training or evaluation is."""

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


def run_status(run_dir: Place) -> list[StageStatus]:
    """Give the status of all that a run holds, in the job's order.

    That is the manifest, the stores, the trainings and the evaluations that were begun. Quick:
    lengths of files are compared, not hashes (`audit.verify_all` does that); of the images those
    are read that a training left out.

    Raises:
        StoreError: If there is neither a manifest nor a store, or it is a store itself or a folder
            inside a run.
    """
    _refuse_part_of_a_run(run_dir)
    stores = [_store_status(store, run_dir) for store in stores_of_run(run_dir)]
    manifest = manifest_or_none(run_dir)
    students = [_student_status(place, run_dir, manifest) for place in trainings_below(run_dir)]
    measured = [found for metrics in metrics_below(run_dir) for found in _evaluations(metrics)]
    found = [*stores, *students, *measured]
    ordered = sorted(found, key=lambda status: order_in_job(status.place, run_dir))
    return [*_manifest_status(run_dir), *_stale_by_inheritance(ordered)]


def _refuse_part_of_a_run(path: Place) -> None:
    """Refuse a store, or a folder inside a run: what it was made of lies beside it."""
    if is_store(path):
        raise StoreError(
            f"{path}: expected a run directory, found a store; give the folder that holds it "
            "and the manifest"
        )
    if has_files(RunPaths(path).manifest):
        return
    run_dir = run_dir_of(path)
    if run_dir is not None and not (RunPaths(run_dir).manifest / DESCRIPTION).exists():
        run_dir = None  # a folder of that name
    if run_dir is not None or _PART.fullmatch(path.name):
        raise StoreError(
            f"{path}: expected a run directory, found a folder inside one; give the folder that "
            f"holds the manifest{'' if run_dir is None else f', {run_dir}'}"
        )


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


def _student_status(folder: Place, run_dir: Place, manifest: Manifest | None) -> StageStatus:
    status = StageStatus(
        place=folder, verb=verb_of_training(folder), unit="training", items=1, shards=1
    )
    try:
        plan, names = read_checked(folder / "plan.json"), left_out_of(folder)
        skipped = skipped_in(folder)
    except StoreError as error:
        return replace(status, damaged=1, reasons=(str(error),))
    lines = input_differences(folder, run_dir, plan)
    if manifest is not None and not lines:
        lines = [
            f"{line}; '{status.verb} --force' trains anew"
            for line in left_out_differences(names, still_left_out(manifest, names))
        ]
    done = int((folder / "student.json").exists())
    return replace(
        status,
        done=done,
        missing=1 - done,
        failed_items=len(names) + len(skipped),
        stale=bool(lines),
        reasons=tuple(lines),
    )


def _evaluations(metrics: Place) -> list[StageStatus]:
    verb = verb_of_evaluations(metrics)
    status = StageStatus(place=metrics, verb=verb, unit="sentences", shards=1)
    try:
        return [_evaluation_status(status, found) for found in evaluations_in(metrics)]
    except StoreError as error:
        return [replace(status, damaged=1, reasons=(str(error),))]


def _evaluation_status(status: StageStatus, found: Evaluation) -> StageStatus:
    """Give the status of one evaluation; one of other weights or data is measured again."""
    folder = found.metrics.parent
    run_dir, plan = folder.parent, {"inputs": found.inputs}
    lines = [
        f"{line}; '{found.verb}' measures again"
        for line in input_differences(found.metrics, run_dir, plan)
    ]
    return replace(
        status,
        verb=found.verb,
        items=found.sentences + len(found.failed),
        done=int(not lines),
        missing=int(bool(lines)),
        failed_items=len(found.failed),
        reasons=tuple(lines),
    )


def _stale_by_inheritance(statuses: list[StageStatus]) -> list[StageStatus]:
    """Call stale what was made of something stale, though that is still there."""
    stale: set[str] = set()
    found = []
    for status in statuses:
        because = [name for name in made_of(status.place) if name in stale]
        if because and not status.stale:
            lines = tuple(f"{name} is stale" for name in because)
            status = replace(status, stale=True, reasons=(*lines, *status.reasons))
        if status.stale:
            stale.add(name_in_round(status.place))
        found.append(status)
    return found
