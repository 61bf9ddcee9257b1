"""Shell: where a training is, and how it is saved, restored and brought to its end."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.manifest import load_manifest
from pipeline.paths import RunPaths
from pipeline.places import Place
from pipeline.records import FailedItem
from train.batches import Batch
from train.checkpoint import (
    Checkpoint,
    folder_at,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from train.config import TrainConfig
from train.processes import Processes
from train.step import Parts
from train.validation import NO_LOOK, Progress


@dataclass(slots=True)
class TrainingState:
    """Where a training is, besides its weights; goes into every checkpoint."""

    step: int = 0
    """Updates done."""
    progress: Progress = NO_LOOK
    skipped: dict[int, str] = field(default_factory=dict)
    """Expression rows that cannot be read, with the reason."""
    loss: float = math.nan


def save_state(
    root: Path, config: TrainConfig, number: int, parts: Parts, state: TrainingState
) -> None:
    """Write a checkpoint; in the first process only, after all of them know what was skipped."""
    share_skipped(parts.processes, state)
    if not parts.processes.is_first:
        return
    checkpoint = Checkpoint(
        step=state.step,
        weights={"student": parts.student.state_dict(), "teacher": parts.teacher.state_dict()},
        state={
            "optimizer": parts.optimizer.state_dict(),
            "progress": state.progress.plain(),
            "skipped": [[row, reason] for row, reason in sorted(state.skipped.items())],
            "loss": state.loss,
        },
        about={"round": number, "best_step": state.progress.best_step},
    )
    save_checkpoint(
        root,
        checkpoint,
        keep=config.keep_checkpoints,
        best=state.progress.best_step,
    )


def restore_state(parts: Parts, folder: Path) -> TrainingState:
    """Load a checkpoint's weights and AdamW's state, and say where it was."""
    checkpoint = load_checkpoint(folder)
    for name, network in (("student", parts.student), ("teacher", parts.teacher)):
        load_weights(network, checkpoint.weights[name], str(folder))
    parts.optimizer.load_state_dict(checkpoint.state["optimizer"])
    return TrainingState(
        step=checkpoint.step,
        progress=Progress.of(checkpoint.state["progress"]),
        skipped={int(row): str(reason) for row, reason in checkpoint.state["skipped"]},
        loss=float(checkpoint.state["loss"]),
    )


def choose_final(
    root: Path, config: TrainConfig, parts: Parts, state: TrainingState
) -> dict[str, Any]:
    """Bring the teacher back that the training shall leave; give what is worth describing."""
    best = state.progress.best_step
    if best is None:
        return {}
    if config.final == "best" and best != state.step:
        folder = folder_at(root, best)
        load_weights(parts.teacher, load_checkpoint(folder).weights["teacher"], str(folder))
    return {"looks": {**state.progress.plain(), "last_step": state.step, "final": config.final}}


def note_damage(state: TrainingState, batches: Sequence[Batch]) -> None:
    """Take down which samples of a step could not be read."""
    for batch in batches:
        bad = [row for row, ok in zip(batch.rows, batch.valid.tolist(), strict=True) if not ok]
        state.skipped.update(zip(bad, batch.damage, strict=True))


def share_skipped(processes: Processes, state: TrainingState) -> None:
    """Tell all processes what each of them skipped."""
    parts = processes.gather(state.skipped)
    state.skipped = {row: reason for part in parts for row, reason in part.items()}


def skipped_items(run_dir: Place, state: TrainingState) -> tuple[FailedItem, ...]:
    """Name the samples that were skipped, with the reason."""
    if not state.skipped:
        return ()
    manifest = load_manifest(RunPaths(run_dir).manifest)
    return tuple(
        FailedItem(item=manifest.describe_expression(row), reason=f"skipped in training: {reason}")
        for row, reason in sorted(state.skipped.items())
    )
