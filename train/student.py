"""Shell: train one round: labelled data, and refined labels from round 1 on."""

import dataclasses
import os
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.devices import resolve_device, use_threads
from pipeline.errors import ConfigError
from pipeline.folds import Fold, held_out_images
from pipeline.manifest import Manifest, load_manifest
from pipeline.paths import RunPaths
from pipeline.places import Place, is_local
from pipeline.records import FailedItem, require_rows
from pipeline.runner import Replace
from pipeline.trainings import skipped_in
from train.checkpoint import latest, load_weights, load_weights_file
from train.config import TrainConfig
from train.data import RoundSource, build_index
from train.ema import make_teacher
from train.execution import prepare_student, share_batch_norm, wrap_student
from train.loop import Task, run_steps
from train.optim import make_optimizer
from train.order import LABELLED, UNLABELLED
from train.processes import ALONE, Processes
from train.published.starting import start_from
from train.state import (
    TrainingState,
    choose_final,
    restore_state,
    share_skipped,
    skipped_items,
)
from train.step import Parts, seed_of
from train.trained import WEIGHTS, build_network, local_file, read_trained
from train.training_folder import (
    begun,
    finish,
    folder_of,
    is_done,
    phase_of,
    prepare_tokenizer,
    student_plan,
)
from train.training_plan import refuse_misfits
from train.validation import NO_LOOK, Examiner, Progress, rows_to_look_at
from train.watch import peak_memory, require_tensorboard, require_wandb


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSummary:
    """What a training came to."""

    number: int
    steps: int
    resumed_at: int | None
    """Step of the checkpoint that it went on from; None for a fresh start."""
    seconds: float
    already_done: bool
    final_loss: float | None
    labelled: int
    refined: int
    failures: tuple[FailedItem, ...]
    """Labelled images that cannot be read, and samples skipped on the way."""
    best: Progress = NO_LOOK
    """What the looks at the validation split came to."""
    stopped_at: int | None = None
    """Step after which patience was at an end; None if it was not."""
    peak_memory_bytes: float = 0.0
    """Most memory that one of the training processes held."""
    peak_gpu_bytes: float = 0.0
    """Most GPU memory of one process; 0 without a GPU."""


def train_student(
    config: TrainConfig,
    run_dir: Place,
    number: int,
    *,
    limit: int | None = None,
    replace: Replace = "never",
    fold: Fold | None = None,
    processes: Processes | None = None,
) -> TrainSummary:
    """Train a round's student and its EMA teacher, resuming where a training was stopped.

    Stopping and resuming gives the same bytes as not stopping, on the same machine with the same
    number of threads: the order of samples, their augmentation and the network's own randomness
    are functions of seed, round and step alone. SIGTERM ends the running step and saves.

    Args:
        config: All hyper-parameters.
        run_dir: Run directory with manifest and, from round 1, labels and the previous round.
        number: The round; 0 is the burn-in on labelled data alone.
        limit: Use only the first `limit` refined labels (labelled expressions in round 0).
        replace: Whether to train anew where a training is there.
        fold: The labelled images to leave out, for calibration; round 0 only.
        processes: Those that train together, each calling this; None for one alone.

    Raises:
        ConfigError: If a fold is asked of a later round or has no images, or a step has too few
            samples for all processes and micro-batches.
        ManifestError: If the manifest is missing or a file of it is damaged.
        StoreError: If inputs are missing, made otherwise or damaged, or a training configured
            otherwise is in the way.
        SemiresError: If the loss is not finite; names the step.
        KeyboardInterrupt: After SIGTERM, when all is saved.
    """
    processes = processes or ALONE
    started = time.monotonic()
    count = processes.count
    task = processes.from_first(
        lambda: _prepare(config, run_dir, number, limit, replace, fold, count)
    )
    state, resumed_at, parts = TrainingState(), None, None
    if not task.done:
        use_threads(config.num_threads)
        with begun(task.place, task.plan) if processes.is_first else nullcontext():
            processes.wait()
            state, resumed_at, parts = _train(task, processes)
            processes.wait()
    steps = phase_of(config, number).steps
    own, gpu = processes.largest([*peak_memory(parts.device if parts else "cpu")])
    return TrainSummary(
        number=number,
        steps=steps,
        resumed_at=resumed_at,
        seconds=0.0 if task.done else time.monotonic() - started,
        already_done=task.done,
        final_loss=None if task.done else state.loss,
        labelled=task.index.counts[0],
        refined=task.index.counts[1],
        failures=(*task.failures, *skipped_items(run_dir, state)),
        best=state.progress,
        stopped_at=state.step if 0 < state.step < steps else None,
        peak_memory_bytes=own,
        peak_gpu_bytes=gpu,
    )


def _refuse_other_machines(run_dir: Place, processes: int) -> None:
    here = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    if not is_local(run_dir) and here < processes:
        raise ConfigError(
            f"{run_dir}: expected the processes of one machine, to train into an object store, "
            f"found {processes}, {here} of them here; use a shared folder as --run-dir"
        )


def _prepare(
    config: TrainConfig,
    run_dir: Place,
    number: int,
    limit: int | None,
    replace: Replace,
    fold: Fold | None,
    num_processes: int,
) -> Task:
    """Check the inputs and list what is trained on; writes nothing."""
    refuse_misfits(config, number, fold, num_processes)
    _refuse_other_machines(run_dir, num_processes)
    if config.tensorboard:
        require_tensorboard()
    if config.wandb is not None:
        require_wandb(config.wandb)
    paths = RunPaths(run_dir)
    labels = paths.labels(number) if number else None
    if labels is not None:
        needed = None if limit is None else range(limit)
        require_rows(labels, f"refine-labels --round {number}", needed)
    manifest = load_manifest(paths.manifest, verify=True)
    held_out = None if fold is None else held_out_images(manifest.labelled_images(), fold)
    index, failures = build_index(manifest, labels, held_out)
    plan = student_plan(config, run_dir, number, limit, failures, fold)
    if limit is not None:
        index = index.first(limit, stream=LABELLED if labels is None else UNLABELLED)
    folder = folder_of(run_dir, number, fold)
    done = is_done(folder, plan, replace)
    return Task(
        config=config,
        run_dir=run_dir,
        number=number,
        fold=fold,
        index=index,
        failures=(*failures, *(skipped_in(folder) if done else ())),
        plan=plan,
        done=done,
    )


def _train(task: Task, processes: Processes) -> tuple[TrainingState, int | None, Parts]:
    """Train to the end, or go on from the newest checkpoint, and write what the training leaves."""
    config, number = task.config, task.number
    vocab_size, vocabulary = processes.from_first(
        lambda: prepare_tokenizer(config, task.run_dir, number, task.fold)
    )
    manifest = load_manifest(RunPaths(task.run_dir).manifest)
    parts, side = processes.together(lambda: _build(task, vocab_size, processes, manifest))
    found = processes.from_first(lambda: latest(task.checkpoints))
    state = TrainingState()
    if found is not None:
        state = processes.together(lambda: restore_state(parts, found))
    resumed_at = state.step if found is not None else None
    wrapped = wrap_student(parts.student, config, parts.device, processes)
    parts = dataclasses.replace(parts, wrapped=wrapped)
    source = RoundSource(
        config=config,
        run_dir=task.run_dir,
        number=number,
        index=task.index,
        side=side,
        vocabulary=vocabulary,
    )
    examiner = None
    if config.evaluate_every is not None:
        rows = processes.together(lambda: rows_to_look_at(manifest, config.evaluate_expressions))
        examiner = Examiner(config, manifest, rows, side, vocabulary)
    if not state.progress.is_over(config.patience):
        run_steps(task, parts, state, source, examiner)
    share_skipped(processes, state)
    if processes.is_first:
        facts = choose_final(task.checkpoints, config, parts, state)
        if skipped := skipped_items(task.run_dir, state):
            facts["skipped"] = [dataclasses.asdict(item) for item in skipped]
        finish(parts, task.folder, task.plan, config, side, facts)
    return state, resumed_at, parts


def _build(
    task: Task, vocab_size: int, processes: Processes, manifest: Manifest
) -> tuple[Parts, int]:
    """Build student and teacher: in round 0 random or published, else the last round's teacher."""
    config, number = task.config, task.number
    torch.manual_seed(seed_of(config.seed, number, 0, "weights"))
    student = build_network(config.network, vocab_size)
    if number:
        place = RunPaths(task.run_dir).student(number - 1)
        path = local_file(read_trained(place, f"train-student --round {number - 1}"), WEIGHTS)
        load_weights(student, load_weights_file(path), str(place / WEIGHTS))
    elif config.network.init:
        start_from(student, config.network.init)
    device = processes.device(resolve_device(config.device))
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    student = prepare_student(student, config, device)
    teacher = make_teacher(student)
    student = share_batch_norm(student, device, processes)
    optimizer = make_optimizer(
        student,
        phase_of(config, number).learning_rate,
        weight_decay=config.weight_decay,
        frozen=config.frozen,
    )
    network_config: Any = student.config
    parts = Parts(
        student, teacher, optimizer, device, student, processes, manifest.describe_expression
    )
    return parts, int(network_config.image_size)
