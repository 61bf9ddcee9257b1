"""Shell: train one round: labelled data, and refined labels from round 1 on."""

import dataclasses
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from pipeline.devices import resolve_device, use_threads
from pipeline.errors import ConfigError
from pipeline.folds import Fold, held_out_images
from pipeline.manifest import load_manifest
from pipeline.paths import RunPaths
from pipeline.records import FailedItem, require_rows
from pipeline.runner import Replace
from train.checkpoint import (
    Checkpoint,
    latest,
    load_checkpoint,
    load_weights,
    load_weights_file,
    save_checkpoint,
)
from train.config import TrainConfig
from train.data import RoundDataset, RoundSource, SampleIndex, StepSampler, build_index, make_loader
from train.ema import make_teacher
from train.optim import make_optimizer
from train.order import LABELLED, UNLABELLED
from train.step import Parts, seed_of, train_step
from train.trained import WEIGHTS, build_network
from train.training_folder import (
    begun,
    cut_log,
    finish,
    folder_of,
    is_done,
    log_step,
    phase_of,
    prepare_tokenizer,
    student_plan,
)


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
    """Labelled images that cannot be read."""


def train_student(
    config: TrainConfig,
    run_dir: Path,
    number: int,
    *,
    limit: int | None = None,
    replace: Replace = "never",
    fold: Fold | None = None,
) -> TrainSummary:
    """Train a round's student and its EMA teacher, resuming where a training was stopped.

    Stopping and resuming gives the same bytes as not stopping, on the same machine with the same
    number of threads: the order of samples, their augmentation and the network's own randomness
    are functions of seed, round and step alone.

    Args:
        config: All hyper-parameters.
        run_dir: Run directory with manifest and, from round 1, labels and the previous round.
        number: The round; 0 is the burn-in on labelled data alone.
        limit: Use only the first `limit` refined labels (labelled expressions in round 0).
        replace: Whether to train anew where a training is there.
        fold: The labelled images to leave out, for calibration; round 0 only.

    Raises:
        ConfigError: If a fold is asked of a later round, or has no images.
        StoreError: If inputs are missing or a training configured otherwise is in the way.
        SemiresError: If the loss is not finite; names the step.
    """
    _refuse_several_processes()
    started = time.monotonic()
    if fold is not None and number:
        raise ConfigError(f"--fold {fold}: folds are trained in round 0, found --round {number}")
    paths = RunPaths(run_dir)
    folder = folder_of(run_dir, number, fold)
    labels = paths.labels(number) if number else None
    if labels is not None:
        needed = None if limit is None else range(limit)
        require_rows(labels, f"refine-labels --round {number}", needed)
    manifest = load_manifest(paths.manifest)
    held_out = None if fold is None else held_out_images(manifest.labelled_images(), fold)
    index, failures = build_index(manifest, labels, held_out)
    plan = student_plan(config, run_dir, number, limit, failures, fold)
    if limit is not None:
        index = index.first(limit, stream=LABELLED if labels is None else UNLABELLED)
    summary = TrainSummary(
        number=number,
        steps=phase_of(config, number).steps,
        resumed_at=None,
        seconds=0.0,
        already_done=True,
        final_loss=None,
        labelled=index.counts[0],
        refined=index.counts[1],
        failures=failures,
    )
    if is_done(folder, plan, replace):
        return summary
    use_threads(config.num_threads)
    with begun(folder, plan):
        resumed_at, loss = _train(config, run_dir, number, plan, index, fold)
    return dataclasses.replace(
        summary,
        already_done=False,
        resumed_at=resumed_at,
        final_loss=loss,
        seconds=time.monotonic() - started,
    )


def _refuse_several_processes() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            f"train-student runs in one process so far, found WORLD_SIZE="
            f"{os.environ['WORLD_SIZE']}; start it without torchrun"
        )


def _train(
    config: TrainConfig,
    run_dir: Path,
    number: int,
    plan: dict[str, Any],
    index: SampleIndex,
    fold: Fold | None,
) -> tuple[int | None, float]:
    folder = folder_of(run_dir, number, fold)
    phase = phase_of(config, number)
    vocab_size, vocabulary = prepare_tokenizer(config, run_dir, number, fold)
    parts, side = _build(config, run_dir, number, vocab_size)
    checkpoints = folder / "checkpoints"
    found = latest(checkpoints)
    start = _restore(parts, found) if found is not None else 0
    cut_log(folder / "log.csv", start)
    dataset = RoundDataset(
        RoundSource(
            config=config,
            run_dir=run_dir,
            number=number,
            index=index,
            side=side,
            vocabulary=vocabulary,
        )
    )
    batch = (phase.labelled_batch, phase.unlabelled_batch if number else 0)
    sampler = StepSampler(
        seed=config.seed,
        number=number,
        steps=range(start, phase.steps),
        counts=index.counts,
        batch=batch,
    )
    loader = make_loader(dataset, sampler, config.loader_workers)
    losses: dict[str, float] = {"loss": math.nan}
    with tqdm(
        total=phase.steps,
        initial=start,
        desc=f"train-{number}",
        unit=" steps",
        file=sys.stderr,
        mininterval=0.5,
        dynamic_ncols=True,
    ) as bar:
        for step, samples in zip(range(start, phase.steps), loader, strict=True):
            losses = train_step(config, phase, parts, number, step, samples)
            log_step(folder / "log.csv", step, losses, fresh=step == 0)
            bar.update()
            bar.set_postfix(loss=f"{losses['loss']:.3f}", lr=f"{losses['lr']:.1e}", refresh=False)
            if (step + 1) % config.save_every == 0 and step + 1 < phase.steps:
                _save(parts, checkpoints, step + 1, number, config.keep_checkpoints)
    finish(parts, folder, plan, config, side)
    return (start if found is not None else None), losses["loss"]


def _build(config: TrainConfig, run_dir: Path, number: int, vocab_size: int) -> tuple[Parts, int]:
    """Build student and teacher: random in round 0, else both from the last round's teacher."""
    torch.manual_seed(seed_of(config.seed, number, 0, "weights"))
    student = build_network(config.network, vocab_size)
    if number:
        path = RunPaths(run_dir).student(number - 1) / WEIGHTS
        load_weights(student, load_weights_file(path), str(path))
    device = resolve_device(config.device)
    student.to(device)
    phase = phase_of(config, number)
    optimizer = make_optimizer(student, phase.learning_rate, weight_decay=config.weight_decay)
    network_config: Any = student.config
    parts = Parts(student, make_teacher(student), optimizer, device)
    return parts, int(network_config.image_size)


def _save(parts: Parts, root: Path, step: int, number: int, keep: int) -> None:
    checkpoint = Checkpoint(
        step=step,
        weights={"student": parts.student.state_dict(), "teacher": parts.teacher.state_dict()},
        state={"optimizer": parts.optimizer.state_dict()},
        about={"round": number},
    )
    save_checkpoint(root, checkpoint, keep=keep)


def _restore(parts: Parts, folder: Path) -> int:
    checkpoint = load_checkpoint(folder)
    for name, network in (("student", parts.student), ("teacher", parts.teacher)):
        load_weights(network, checkpoint.weights[name], str(folder))
    parts.optimizer.load_state_dict(checkpoint.state["optimizer"])
    return checkpoint.step
