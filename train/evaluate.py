"""Shell: measure a round's network on every sentence of a split, by both protocols.

`metrics.json` holds the figures by split; beside it lies `metrics-SPLIT.npz`, the pixels counted
for every sentence, of which the figures are made and by which two runs are compared.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.columns import file_sha256
from pipeline.config import to_plain
from pipeline.devices import resolve_device, use_threads
from pipeline.errors import ConfigError, StoreError
from pipeline.manifest import SPLITS, Manifest, load_manifest
from pipeline.paths import RunPaths
from pipeline.places import Place
from pipeline.records import FailedItem, read_json, write_json
from train.comparison import compare_with, stored_outcomes
from train.config import EvaluateConfig
from train.measure import measure
from train.outcomes import Outcomes, figures, join, save_outcomes
from train.predictor import Passes, Predictor, predictor_of
from train.processes import ALONE, Processes
from train.sheets import write_result_sheet
from train.trained import Trained, load_trained
from train.training_folder import read_whole


def evaluate_student(
    config: EvaluateConfig,
    run_dir: Place,
    number: int,
    split: str,
    *,
    limit: int | None = None,
    against: Place | None = None,
    processes: Processes | None = None,
) -> dict[str, Any]:
    """Evaluate the EMA teacher of a round and record it in `round-R/metrics.json`.

    What was counted is kept per split, beside the hashes of weights and data that it belongs to;
    asked for again, it is read back, unless an item failed. Best, median and worst sentences are
    drawn in `round-R/evaluation-SPLIT.png`.

    Args:
        config: Protocols, intervals, batch size and device.
        run_dir: Run directory; the round must be trained.
        number: The round.
        split: A split with known truth.
        limit: Only the first `limit` expressions; such a result is not recorded.
        against: `metrics.json` of another round or run on the same data, to compare with.
        processes: Those that evaluate together, each calling this; None for one alone.

    Returns:
        Per protocol the values of `outcomes.figures`; `headline`, the protocol that counts;
        `sentences`, `images`, `failed` items (item, reason), the hashes of its `inputs`; with
        `against`, the differences per protocol.

    Raises:
        ManifestError: If the manifest is missing or a file of it is damaged.
        StoreError: If the round is not trained, the split has no truth, or there is nothing to
            compare with.
    """
    task = _task(config, run_dir, number, split, limit, processes or ALONE)
    outcomes, failures = _find(task)
    result = _result(config, outcomes, failures, task.inputs)
    if task.processes.is_first and task.records:
        _record(task.metrics, split, result)
    if task.processes.is_first and against is not None:
        result["against"] = compare_with(config, result, outcomes, against, split)
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """What is to be evaluated, and by whom."""

    config: EvaluateConfig
    split: str
    trained: Trained
    manifest: Manifest
    expressions: npt.NDArray[np.int64]
    inputs: dict[str, Any]
    """What decides the columns; what is off leaves no trace."""
    metrics: Place
    sheet: Place
    records: bool
    """Whether files are written: not where only some sentences are evaluated."""
    name: str
    """For the progress bar."""
    processes: Processes


def _task(
    config: EvaluateConfig,
    run_dir: Place,
    number: int,
    split: str,
    limit: int | None,
    processes: Processes,
) -> _Task:
    def make() -> _Task:
        paths = RunPaths(run_dir)
        trained = read_whole(paths.student(number), f"train-student --round {number}")
        manifest = load_manifest(paths.manifest, verify=processes.is_first)
        expressions = sentences_with_truth(manifest, split)[:limit]
        if not len(expressions):
            raise StoreError(
                f"expected a split whose objects have masks, found none in {split!r}; "
                f"{_known_splits(manifest)}"
            )
        return _Task(
            config=config,
            split=split,
            trained=trained,
            manifest=manifest,
            expressions=expressions,
            inputs={
                "weights": trained.weights_sha256,
                "manifest": manifest.fingerprint,
                **({"amp": True} if config.amp else {}),
            },
            metrics=paths.metrics(number),
            sheet=sheet_path(run_dir, number, split),
            records=limit is None,
            name=f"evaluate-{number} {split}",
            processes=processes,
        )

    return processes.together(make)


def _find(task: _Task) -> tuple[Outcomes, list[FailedItem]]:
    """Read the columns back, or measure them and write them down; see to the picture."""
    processes, config = task.processes, task.config
    found, shown = processes.from_first(lambda: (_kept(task), task.sheet.exists()))
    draws = task.records and config.sheet_rows > 0
    if found is not None and (shown or not draws):
        return found
    predictor = _predictor(task)
    if found is None:
        found = _share(task, predictor)
        if processes.is_first and task.records:
            save_outcomes(_columns_path(task.metrics, task.split), found[0])
    if processes.is_first and draws and len(found[0]):
        write_result_sheet(predictor, found[0], config.headline, task.sheet, config.sheet_rows)
    return found


def sentences_with_truth(manifest: Manifest, split: str) -> npt.NDArray[np.int64]:
    """List the expression rows of a split whose object has a known mask."""
    rows = manifest.expressions_of(split)
    lengths = np.diff(manifest.object_rle.offsets)
    return np.asarray(rows[lengths[manifest.expression_object[rows]] > 0], np.int64)


def splits_of_round(config: EvaluateConfig, run_dir: Place, *, final: bool) -> tuple[str, ...]:
    """List the splits that `run-rounds` evaluates after a round: those that have a truth.

    Args:
        config: Which are wanted.
        run_dir: Run directory with a manifest.
        final: Whether `final_splits` count, too.

    Raises:
        ManifestError: If there is no manifest.
    """
    manifest = load_manifest(RunPaths(run_dir).manifest)
    wanted = dict.fromkeys(config.splits + (config.final_splits if final else ()))
    return tuple(split for split in wanted if len(sentences_with_truth(manifest, split)))


def refuse_no_truth(config: EvaluateConfig, manifest: Manifest) -> None:
    """Refuse a job none of whose rounds could be evaluated, though that is asked for.

    Raises:
        ConfigError: If none of `splits` has an object with a mask; names those that have.
    """
    if not config.splits or any(len(sentences_with_truth(manifest, s)) for s in config.splits):
        return
    raise ConfigError(
        f"evaluate.splits: expected objects with masks in {' or '.join(config.splits)}, found "
        f"none, so that no round can be evaluated; {_known_splits(manifest)}; give some images "
        "such a split and prepare the data again, or set evaluate.splits to [] to go without"
    )


def _known_splits(manifest: Manifest) -> str:
    known = [split for split in SPLITS if len(sentences_with_truth(manifest, split))]
    return f"splits with masks: {', '.join(known) or 'none'}"


def plan_evaluation(
    config: EvaluateConfig, run_dir: Place, number: int, split: str
) -> tuple[bool, str]:
    """Tell whether an evaluation is there and need not be measured again, and how large it is.

    Raises:
        StoreError: As `evaluate_student`.
    """
    task = _task(config, run_dir, number, split, None, ALONE)
    return _kept(task) is not None, f"{len(task.expressions)} sentences"


def sheet_path(run_dir: Place, number: int, split: str) -> Place:
    """Give the place of the picture of best, median and worst sentences."""
    return RunPaths(run_dir).round(number) / f"evaluation-{split}.png"


def _predictor(task: _Task) -> Predictor:
    use_threads(1)  # two threads that wait for each other stall on a busy machine
    device = task.processes.device(resolve_device(task.config.device))
    loaded = task.processes.together(lambda: load_trained(task.trained, device))
    passes = Passes(amp=task.config.amp)
    return predictor_of(task.trained, task.manifest, loaded, task.config.batch_size, passes)


def _share(task: _Task, predictor: Predictor) -> tuple[Outcomes, list[FailedItem]]:
    """Measure in every process its run of the expressions; give the whole to all of them."""
    processes, protocols = task.processes, task.config.protocols
    mine = np.array_split(task.expressions, processes.count)[processes.rank]
    own = processes.together(
        lambda: measure(predictor, mine, protocols, task.name, silent=not processes.is_first)
    )
    parts = processes.gather(own)
    return join([part for part, _ in parts]), [item for _, failed in parts for item in failed]


def _kept(task: _Task) -> tuple[Outcomes, list[FailedItem]] | None:
    """Read columns that need not be measured again; None if there are none such."""
    if not task.records:
        return None
    try:
        found, outcomes = stored_outcomes(task.metrics, task.split)
    except StoreError:
        return None
    usable = found["inputs"] == task.inputs and not found["failed"]
    if not usable or not set(task.config.protocols) <= set(outcomes.protocols):
        return None
    return outcomes, []


def _result(
    config: EvaluateConfig,
    outcomes: Outcomes,
    failures: list[FailedItem],
    inputs: dict[str, Any],
) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "sizes": config.sizes,
        "resamples": config.resamples,
        "seed": config.seed,
    }
    return {
        **{name: figures(outcomes, name, **settings) for name in config.protocols},
        **settings,
        "headline": config.headline,
        "sentences": len(outcomes),
        "images": len(np.unique(outcomes.image)),
        "failed": [to_plain(failure) for failure in failures],
        "inputs": inputs,
    }


def _columns_path(metrics: Place, split: str) -> Place:
    return metrics.with_name(f"metrics-{split}.npz")


def _record(metrics: Place, split: str, result: dict[str, Any]) -> None:
    """Write the figures, which name the columns that they are made of."""
    recorded = read_json(metrics) if metrics.exists() else {}
    if not isinstance(recorded, dict):
        raise StoreError(f"{metrics}: expected figures by split, found another; delete it")
    path = _columns_path(metrics, split)
    result["outcomes"] = {"file": path.name, "sha256": file_sha256(path)}
    if recorded.get(split) != result:
        write_json(metrics, {**recorded, split: result})
