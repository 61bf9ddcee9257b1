"""Shell: what a training would do, without doing it; what is refused before an image is read."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import ConfigError, StoreError
from pipeline.folds import Fold, held_out_images
from pipeline.manifest import load_manifest
from pipeline.paths import RunPaths
from pipeline.places import Place
from pipeline.records import require_rows
from pipeline.trainings import left_out_of, still_left_out
from train.config import TrainConfig
from train.training_folder import folder_of, is_done, phase_of, student_plan
from train.workspace import DESCRIPTION, PLAN


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """What a training is to be, beside what lies in its folder."""

    folder: Place
    plan: dict[str, Any]
    steps: int

    def is_done(self) -> bool:
        """Tell whether it is finished and intact.

        Raises:
            StoreError: If one made otherwise is in the way; names the differences.
        """
        return is_done(self.folder, self.plan, "never")

    @property
    def text(self) -> str:
        """Its length, and whether a part of it is done."""
        begun = (self.folder / PLAN).exists() and not (self.folder / DESCRIPTION).exists()
        return f"{self.steps} steps" + (", begun" if begun else "")


def plan_training(
    config: TrainConfig,
    run_dir: Place,
    number: int,
    limit: int | None = None,
    fold: Fold | None = None,
) -> TrainingPlan:
    """List what decides a training; arguments as `train_student` takes them.

    Of the labelled images those are read that the training there has left out: one that can be read
    now is no longer left out. Another that cannot be read any more is found when it is trained on.

    Raises:
        ConfigError: If what is asked does not fit together.
        ManifestError: If the manifest is missing or a file of it is damaged.
        StoreError: If an input is missing, not done or of another data set.
    """
    refuse_misfits(config, number, fold, processes=1)
    paths = RunPaths(run_dir)
    if number:
        needed = None if limit is None else range(limit)
        require_rows(paths.labels(number), f"refine-labels --round {number}", needed)
    _refuse_nothing_labelled(run_dir, fold)
    plan, folder = (
        student_plan(config, run_dir, number, limit, fold=fold),
        folder_of(run_dir, number, fold),
    )
    if (folder / PLAN).exists():
        manifest = load_manifest(paths.manifest)
        plan["left_out"] = still_left_out(manifest, left_out_of(folder))
    return TrainingPlan(folder=folder, plan=plan, steps=phase_of(config, number).steps)


def refuse_misfits(config: TrainConfig, number: int, fold: Fold | None, processes: int) -> None:
    """Refuse a request that no data set could meet.

    Raises:
        ConfigError: If a fold is asked of a later round, or a step has too few samples for all
            processes and micro-batches.
    """
    phase = phase_of(config, number)
    samples = phase.labelled_batch + (phase.unlabelled_batch if number else 0)
    if samples < config.accumulate * processes:
        raise ConfigError(
            f"expected at least {config.accumulate * processes} samples per step, one for each of "
            f"{config.accumulate} micro-batches on {processes} processes, found {samples}; raise "
            f"the batch, or lower train.accumulate or the number of processes"
        )
    if fold is not None and number:
        raise ConfigError(f"--fold {fold}: folds are trained in round 0, found --round {number}")


def _refuse_nothing_labelled(run_dir: Place, fold: Fold | None) -> None:
    manifest = load_manifest(RunPaths(run_dir).manifest, verify=True)
    rows = manifest.expressions_of("train", labelled=True)
    rows = rows[np.diff(manifest.object_rle.offsets)[manifest.expression_object[rows]] > 0]
    if fold is not None:
        held_out = held_out_images(manifest.labelled_images(), fold)
        rows = rows[~np.isin(manifest.expression_image[rows], held_out)]
    if not len(rows):
        raise StoreError(
            "expected labelled training expressions with masks, found none; raise data.labelled"
        )
