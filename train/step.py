"""One update: forward, losses, AdamW, EMA; random draws are functions of seed, round and step."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from pipeline.config import fingerprint
from train.batch_norm import freeze
from train.batches import Batch
from train.config import PhaseConfig, TrainConfig
from train.ema import ema_decay, update_teacher
from train.execution import place_images, running, without_sync
from train.loss import Totals, batch_totals, supervised_loss, total_loss, unsupervised_loss
from train.optim import poly_lr, set_lr
from train.processes import ALONE, Processes

MAX_NAMED = 12
"""Expressions that are named when a loss is not finite."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The state that a step changes: student, its EMA teacher, AdamW; `device` holds all."""

    student: nn.Module
    teacher: nn.Module
    optimizer: torch.optim.AdamW
    device: str
    wrapped: nn.Module
    """What is called in the student's place: itself, or what shares it among processes."""
    processes: Processes = ALONE
    """Those that train it together."""
    describe: Callable[[int], str] = str
    """From an expression's row to its name in messages."""


def seed_of(*words: int | str) -> int:
    """Give the seed of torch's generator for one purpose: a hash of its words, below 2 ** 60."""
    return int(fingerprint(list(words))[:15], 16)


def train_step(
    config: TrainConfig,
    phase: PhaseConfig,
    parts: Parts,
    number: int,
    step: int,
    batches: Sequence[Batch],
) -> dict[str, float]:
    """Do one optimizer update and one EMA update.

    The losses are those of all micro-batches on all processes as if they were one batch: every
    mean's total is added up first, and every part gives its share.

    Args:
        config: Weights of the losses, precision.
        phase: Steps and learning rate.
        parts: What is changed.
        number: The round.
        step: The step, from 0.
        batches: This process's micro-batches.

    Returns:
        `loss`, `supervised`, `unsupervised`, `grad_norm`, `lr`.

    Raises:
        SemiresError: If the loss or its gradient is not finite; names round, step and expressions.
    """
    lr = poly_lr(step, phase.steps, phase.learning_rate, warmup_steps=phase.warmup_steps)
    set_lr(parts.optimizer, lr)
    parts.student.train()
    if config.batch_norm == "frozen":
        freeze(parts.student)
    placed = [batch.to(parts.device) for batch in batches]
    totals = _totals(config, parts.processes, placed)
    parts.optimizer.zero_grad(set_to_none=True)
    sums = torch.zeros(3, dtype=torch.float64)
    for micro, batch in enumerate(placed):
        torch.manual_seed(_dropout_seed(config, parts.processes, number, step, micro))
        with without_sync(parts.wrapped, last=micro == len(placed) - 1):
            shares = _losses(config, parts, batch, totals)
            # DistributedDataParallel gives the mean of the processes' gradients, not the sum.
            (shares[0] * parts.processes.count).backward()
        sums += torch.stack([share.detach() for share in shares]).double().cpu()
    loss, supervised, unsupervised = parts.processes.total(sums.tolist())
    limit = config.max_grad_norm if config.max_grad_norm is not None else math.inf
    grad_norm = float(nn.utils.clip_grad_norm_(parts.student.parameters(), limit))
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        found = f"loss is {loss}" if not math.isfinite(loss) else f"gradient norm is {grad_norm}"
        parts.processes.fail(
            f"round {number}: {found} at step {step}; lower the learning rate (now {lr:.2e}) and "
            f"resume from the last checkpoint; expressions: {_named(parts, batches)}"
        )
    parts.optimizer.step()
    decay = ema_decay(step, config.ema_decay, warm_up=config.ema_warmup)
    update_teacher(parts.teacher, parts.student, decay)
    return {
        "loss": loss,
        "supervised": supervised,
        "unsupervised": unsupervised,
        "grad_norm": grad_norm,
        "lr": lr,
    }


def _dropout_seed(
    config: TrainConfig, processes: Processes, number: int, step: int, micro: int
) -> int:
    """Give the seed of dropout: another one for every micro-batch of every process."""
    part = (processes.rank, micro)
    return seed_of(config.seed, number, step, "step", *(part if any(part) else ()))


def _totals(config: TrainConfig, processes: Processes, batches: Sequence[Batch]) -> Totals:
    """Add up what the losses of a step are divided by, over micro-batches and processes."""
    each = [
        batch_totals(
            batch.label,
            batch.refined,
            batch.num_labelled,
            class_weights=config.class_weights,
            valid_B=batch.valid,
        )
        for batch in batches
    ]
    return Totals(*processes.total([sum(column) for column in zip(*each, strict=True)]))


def _losses(
    config: TrainConfig, parts: Parts, batch: Batch, totals: Totals
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Give a micro-batch's share of the step's loss, and of its two parts.

    Labelled and unlabelled samples go through the student at once; labelled come first.
    """
    with running(config, parts.device):
        images = place_images(batch.image, config)
        logits_B2hw = parts.wrapped(images, batch.token_ids, batch.token_mask).float()
    first = batch.num_labelled
    supervised = supervised_loss(
        logits_B2hw[:first],
        batch.label[:first],
        class_weights=config.class_weights,
        dice=config.dice,
        totals=totals,
    )
    unsupervised = unsupervised_loss(
        logits_B2hw[first:],
        batch.label[first:],
        batch.weight[first:],
        batch.refined[first:],
        balance=config.balance,
        class_weights=config.class_weights,
        dice=config.dice,
        totals=totals,
    )
    loss = total_loss(
        supervised,
        unsupervised,
        lambda_sup=config.labelled_weight,
        lambda_unsup=config.unlabelled_weight,
    )
    return loss, supervised, unsupervised


def _named(parts: Parts, batches: Sequence[Batch]) -> str:
    """Name the expressions of a step, over all processes."""
    mine = [row for batch in batches for row in batch.rows]
    rows = [row for part in parts.processes.gather(mine) for row in part]
    shown = ", ".join(f"row {row} ({parts.describe(row)})" for row in rows[:MAX_NAMED])
    return shown + (f" and {len(rows) - MAX_NAMED} more" if len(rows) > MAX_NAMED else "")
