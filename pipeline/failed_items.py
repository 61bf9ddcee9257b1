"""Shell: the items of a run that failed, of whatever stage."""

from dataclasses import dataclass

from pipeline.errors import SemiresError
from pipeline.manifest import Manifest, load_manifest
from pipeline.paths import RunPaths
from pipeline.places import Place, has_files, relative_name
from pipeline.prepare_summary import failures_of_manifest
from pipeline.records import DoneRecord, read_all_done
from pipeline.run_contents import is_store, run_dir_of, stores_below, stores_of_run
from pipeline.run_order import order_in_job
from pipeline.trainings import (
    evaluations_in,
    left_out_now,
    left_out_of,
    metrics_below,
    skipped_in,
    trainings_below,
    verb_of_training,
)

PREPARE = "prepare-data"
_UNKNOWN = "it could not be read, and is no labelled image of the manifest of now"


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed item of a stage."""

    item: str
    stage: str
    reason: str
    attempts: int


def failures_of(path: Place) -> list[Failure]:
    """List the failed items of a store; or of a run: all that `run_status` counts.

    Raises:
        StoreError: If there is neither a manifest nor a store, or what a training left out or
            skipped, or an evaluation came to, cannot be read.
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
    trained = not is_store(path) and bool(trainings_below(path) or metrics_below(path))
    for store in stores_below(path) if trained else stores_of_run(path):
        stage = store.stem if store == path else relative_name(store, path).removesuffix(".zarr")
        for record in _records(store):
            found += [
                Failure(failure.item, stage, failure.reason, record.attempts_of(failure))
                for failure in record.failures
            ]
    return [*found, *_failures_of_training(path)] if trained else found


def _failures_of_training(path: Place) -> list[Failure]:
    """List what trainings left out or skipped, and evaluations did not measure, as the job goes."""
    manifest = manifest_or_none(run_dir_of(path) or path)
    by_place: dict[Place, list[Failure]] = {}
    for folder in trainings_below(path):
        names, verb = left_out_of(folder), verb_of_training(folder)
        reasons = {} if manifest is None else left_out_now(manifest, names)
        mended = f"it can be read now, and '{verb} --force' trains anew with it"
        by_place[folder] = [
            Failure(name, verb, f"left out of training: {reasons.get(name, _UNKNOWN) or mended}", 1)
            for name in names
        ]
        by_place[folder] += [
            Failure(failure.item, verb, failure.reason, 1) for failure in skipped_in(folder)
        ]
    for metrics in metrics_below(path):
        by_place[metrics] = [
            Failure(failure.item, evaluation.verb, failure.reason, 1)
            for evaluation in evaluations_in(metrics)
            for failure in evaluation.failed
        ]
    ordered = sorted(by_place, key=lambda place: order_in_job(place, path))
    return [failure for place in ordered for failure in by_place[place]]


def _records(store: Place) -> list[DoneRecord]:
    found = read_all_done(store)
    return [record for _, record in found if record is not None and record.failures]


def manifest_or_none(run_dir: Place) -> Manifest | None:
    """Give the manifest of a run; None if it has none, or it is damaged."""
    try:
        return load_manifest(RunPaths(run_dir).manifest)
    except SemiresError:
        return None
