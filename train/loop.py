"""Shell: the steps of a training, read top to bottom."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.folds import Fold
from pipeline.places import Place
from pipeline.records import FailedItem
from train.batches import Batch, StepSampler, make_loader, next_batches
from train.config import PhaseConfig, TrainConfig
from train.data import RoundDataset, RoundSource, SampleIndex
from train.processes import StopRequest
from train.state import TrainingState, note_damage, save_state
from train.step import Parts, train_step
from train.training_folder import folder_of, phase_of
from train.validation import Examiner
from train.watch import Watch
from train.workspace import publish, workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is to be trained, as the first process found it."""

    config: TrainConfig
    run_dir: Place
    number: int
    fold: Fold | None
    index: SampleIndex
    failures: tuple[FailedItem, ...]
    plan: dict[str, Any]
    done: bool

    @property
    def phase(self) -> PhaseConfig:
        """How long and how fast."""
        return phase_of(self.config, self.number)

    @property
    def place(self) -> Place:
        """What the training leaves belongs here."""
        return folder_of(self.run_dir, self.number, self.fold)

    @property
    def folder(self) -> Path:
        """It works here: in that folder, or in one of this machine in its stead."""
        return workspace(self.place)

    @property
    def checkpoints(self) -> Path:
        """What it is resumed from."""
        return self.folder / "checkpoints"


def run_steps(
    task: Task, parts: Parts, state: TrainingState, source: RoundSource, examiner: Examiner | None
) -> None:
    """Take the steps that are left, saving and looking at the validation split on the way.

    Args:
        task: What is trained.
        parts: The networks, changed in place.
        state: Where the training is, changed in place.
        source: Of the samples.
        examiner: What looks at the validation split; None does not look.

    Raises:
        SemiresError: If a sample cannot be read or a loss is not finite; in one process only.
        KeyboardInterrupt: After SIGTERM to any of the processes, when all is saved.
    """
    config, phase, processes = task.config, task.phase, parts.processes
    batches = _batches(task, parts, state.step, source)
    stop = StopRequest()
    with ExitStack() as stack:
        stack.enter_context(stop.listening())
        watch = stack.enter_context(_watch(task, state.step)) if processes.is_first else None
        while state.step < phase.steps and not state.progress.is_over(config.patience):
            micro = processes.together(lambda: next_batches(batches, config.accumulate))
            losses = train_step(config, phase, parts, task.number, state.step, micro)
            if watch is not None:
                samples = processes.count * sum(len(batch.rows) for batch in micro)
                watch.step(state.step, losses, samples)
            state.step, state.loss = state.step + 1, losses["loss"]
            note_damage(state, micro)
            unfinished = state.step < phase.steps
            looks = examiner is not None and _looks_now(config, state.step, phase)
            if examiner is not None and looks:
                _look(config, parts, state, examiner, watch)
            stopping = unfinished and any(processes.total([float(stop.asked)]))
            saves = stopping or (unfinished and state.step % config.save_every == 0)
            if looks or saves:
                save_state(task.checkpoints, config, task.number, parts, state)
                if processes.is_first:
                    publish(task.place)
            if stopping:
                processes.wait()  # until it is saved
                raise KeyboardInterrupt(f"stopped after step {state.step}, which is saved")


def _watch(task: Task, start: int) -> Watch:
    config = task.config
    return Watch(
        task.folder,
        f"train-{task.number}",
        start,
        task.phase.steps,
        tensorboard=config.tensorboard,
        wandb=config.wandb,
    )


def _looks_now(config: TrainConfig, step: int, phase: PhaseConfig) -> bool:
    """Tell whether a look comes after this many steps: every so often, and at the end."""
    every = config.evaluate_every
    return every is not None and (step % every == 0 or step == phase.steps)


def _look(
    config: TrainConfig,
    parts: Parts,
    state: TrainingState,
    examiner: Examiner,
    watch: Watch | None,
) -> None:
    """Measure the teacher on the validation split and take it down."""
    sums = examiner.measure(parts.teacher, parts.processes)
    figures = {"overall_iou": sums.overall_iou, "mean_iou": sums.mean_iou}
    state.progress = state.progress.after(state.step, figures[config.evaluate_by])
    if watch is not None:
        watch.look(state.step, figures)


def _batches(task: Task, parts: Parts, start: int, source: RoundSource) -> Iterator[Batch]:
    """Give this process's micro-batches from a step on."""
    config, phase, processes = task.config, task.phase, parts.processes
    sampler = StepSampler(
        seed=config.seed,
        number=task.number,
        steps=range(start, phase.steps),
        counts=source.index.counts,
        batch=(phase.labelled_batch, phase.unlabelled_batch if task.number else 0),
        accumulate=config.accumulate,
        rank=processes.rank,
        processes=processes.count,
    )
    on_gpu = parts.device.startswith("cuda")
    return iter(
        make_loader(RoundDataset(source), sampler, config.loader_workers, pin_memory=on_gpu)
    )
