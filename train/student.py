"""Shell: train one round: labelled data, and refined labels from round 1 on."""

import csv
import dataclasses
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as save_tensors
from tqdm import tqdm

from pipeline.columns import file_sha256
from pipeline.config import differences, fingerprint, to_plain
from pipeline.devices import resolve_device, use_threads
from pipeline.errors import ConfigError, StoreError
from pipeline.manifest import Manifest, load_manifest
from pipeline.paths import RunPaths
from pipeline.records import (
    FailedItem,
    atomic_write,
    read_json,
    replacing,
    require_rows,
    stored_plan,
    write_json,
)
from pipeline.runner import Replace
from train.checkpoint import (
    Checkpoint,
    latest,
    load_checkpoint,
    load_weights,
    load_weights_file,
    save_checkpoint,
)
from train.config import PhaseConfig, TrainConfig
from train.data import RoundDataset, SampleIndex, StepSampler, build_index, make_loader
from train.ema import make_teacher
from train.optim import make_optimizer
from train.order import LABELLED, UNLABELLED
from train.step import Parts, seed_of, train_step
from train.text import VOCABULARY_FILE, build_vocabulary, load_text_encoder, save_vocabulary
from train.trained import (
    DESCRIPTION,
    WEIGHTS,
    build_network,
    is_finished,
    read_trained,
    tokenizer_source,
)

ALGORITHM_VERSION = 1
"""Raised whenever the same config and inputs would give other weights."""

RUNNING = ("loader_workers", "cache_bytes", "save_every", "keep_checkpoints", "device")
"""Fields of `TrainConfig` that do not change the result (`device` changes its last bits only)."""


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


def phase_of(config: TrainConfig, number: int) -> PhaseConfig:
    """Give the phase of a round: burn-in for round 0."""
    return config.student if number else config.burn_in


def student_plan(
    config: TrainConfig,
    run_dir: Path,
    number: int,
    limit: int | None,
    failures: tuple[FailedItem, ...] = (),
) -> dict[str, Any]:
    """List everything that decides a round's weights, as plain values.

    `failures` are labelled images that cannot be read; a repaired image changes the plan.

    Raises:
        StoreError: If labels or the previous round are missing.
    """
    paths = RunPaths(run_dir)
    inputs: dict[str, str] = {"manifest": load_manifest(paths.manifest).fingerprint}
    if number:
        labels = stored_plan(paths.labels(number), f"refine-labels --round {number}")
        inputs["labels"] = labels["fingerprint"]
        previous = read_trained(paths.student(number - 1), f"train-student --round {number - 1}")
        inputs["previous_student"] = previous.fingerprint
    if config.network.tokenizer is not None and config.network.tokenizer.is_file():
        inputs["tokenizer"] = file_sha256(config.network.tokenizer)
    settings = to_plain(config)
    for name in RUNNING:
        del settings[name]
    del settings["student" if number == 0 else "burn_in"]
    return {
        "algorithm_version": ALGORITHM_VERSION,
        "round": number,
        "limit": limit,
        "left_out": [failure.item for failure in failures],
        "config": settings,
        "inputs": inputs,
    }


def train_student(
    config: TrainConfig,
    run_dir: Path,
    number: int,
    *,
    limit: int | None = None,
    replace: Replace = "never",
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

    Raises:
        StoreError: If inputs are missing or a training configured otherwise is in the way.
        SemiresError: If the loss is not finite; names the step.
    """
    _refuse_several_processes()
    started = time.monotonic()
    paths = RunPaths(run_dir)
    folder = paths.student(number)
    labels = paths.labels(number) if number else None
    if labels is not None:
        needed = None if limit is None else range(limit)
        require_rows(labels, f"refine-labels --round {number}", needed)
    index, failures = build_index(load_manifest(paths.manifest), labels)
    plan = student_plan(config, run_dir, number, limit, failures)
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
    if _is_done(folder, plan, replace):
        return summary
    use_threads(config.num_threads)
    with _begun(folder, plan):
        resumed_at, loss = _train(config, run_dir, number, plan, index)
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


def _is_done(folder: Path, plan: dict[str, Any], replace: Replace) -> bool:
    """Tell whether this training is finished and intact.

    Raises:
        StoreError: If another is in the way and may not be replaced.
    """
    path = folder / "plan.json"
    if not path.exists() or replace == "always":
        return False
    lines = differences(read_json(path), plan)
    if lines and replace == "never":
        raise StoreError(
            f"{folder}: trained otherwise ({'; '.join(lines[:5])}); go back to that, choose a new "
            f"--run-dir, or add --force to replace it"
        )
    return not lines and is_finished(folder)


@contextmanager
def _begun(folder: Path, plan: dict[str, Any]) -> Iterator[None]:
    """Go on with an unfinished training of this plan, or put away what is there and start."""
    path = folder / "plan.json"
    unfinished = path.exists() and not (folder / DESCRIPTION).exists()
    if unfinished and not differences(read_json(path), plan):
        yield
        return
    with replacing((folder,), lambda: latest(folder / "checkpoints") is not None):
        write_json(path, plan)
        yield


def _train(
    config: TrainConfig, run_dir: Path, number: int, plan: dict[str, Any], index: SampleIndex
) -> tuple[int | None, float]:
    folder = RunPaths(run_dir).student(number)
    phase = phase_of(config, number)
    vocab_size, source = _prepare_tokenizer(config, run_dir, number)
    parts, side = _build(config, run_dir, number, vocab_size)
    checkpoints = folder / "checkpoints"
    found = latest(checkpoints)
    start = _restore(parts, found) if found is not None else 0
    _cut_log(folder / "log.csv", start)
    dataset = RoundDataset(config, run_dir, number, index=index, side=side, vocabulary=source)
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
            _log(folder / "log.csv", step, losses, fresh=step == 0)
            bar.update()
            bar.set_postfix(loss=f"{losses['loss']:.3f}", lr=f"{losses['lr']:.1e}", refresh=False)
            if (step + 1) % config.save_every == 0 and step + 1 < phase.steps:
                _save(parts, checkpoints, step + 1, number, config.keep_checkpoints)
    _finish(parts, folder, plan, config, side)
    return (start if found is not None else None), losses["loss"]


def _prepare_tokenizer(config: TrainConfig, run_dir: Path, number: int) -> tuple[int, Path]:
    """Put the round's vocabulary into place; later rounds keep that of round 0."""
    folder = RunPaths(run_dir).student(number)
    source = tokenizer_source(config.network, folder)
    if config.network.tokenizer is None and not source.exists():
        if number:
            previous = RunPaths(run_dir).student(number - 1) / VOCABULARY_FILE
            atomic_write(source, previous.read_bytes())
        else:
            manifest = load_manifest(RunPaths(run_dir).manifest)
            save_vocabulary(build_vocabulary(_train_sentences(manifest)), folder)
    return load_text_encoder(source, config.network.max_tokens).vocab_size, source


def _train_sentences(manifest: Manifest) -> list[str]:
    return [manifest.expression_text[row] for row in manifest.expressions_of("train")]


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


def _log(path: Path, step: int, values: dict[str, float], *, fresh: bool) -> None:
    with path.open("w" if fresh else "a", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        if fresh:
            writer.writerow(["step", *values])
        writer.writerow([step, *(f"{value:.6g}" for value in values.values())])


def _cut_log(path: Path, steps: int) -> None:
    """Drop the lines of steps after the checkpoint, which are done again."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        atomic_write(path, "".join(lines[: steps + 1] if steps else []).encode())


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


def _finish(
    parts: Parts, folder: Path, plan: dict[str, Any], config: TrainConfig, side: int
) -> None:
    """Write the teacher's weights and, last, the description that makes them count."""
    weights = {name: tensor.cpu() for name, tensor in parts.teacher.state_dict().items()}
    atomic_write(folder / WEIGHTS, save_tensors(weights))
    with torch.inference_mode():
        ids = torch.zeros((1, config.network.max_tokens), dtype=torch.int64, device=parts.device)
        blank = torch.zeros((1, 3, side, side), device=parts.device)
        shape = parts.teacher(blank, ids, torch.ones_like(ids)).shape
    document = {
        "fingerprint": fingerprint(plan),
        "plan": plan,
        "network": config.network,
        "side": side,
        "stride_size": [int(shape[2]), int(shape[3])],
        "files": {
            name: file_sha256(folder / name)
            for name in (WEIGHTS, VOCABULARY_FILE)
            if (folder / name).exists()
        },
        "parameters": int(np.sum([p.numel() for p in parts.teacher.parameters()])),
        "torch": torch.__version__,
    }
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    write_json(folder / DESCRIPTION, document)
