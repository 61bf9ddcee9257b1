"""One update: forward, losses, AdamW, EMA; random draws are functions of seed, round and step."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from pipeline.config import fingerprint
from pipeline.errors import SemiresError
from train.config import PhaseConfig, TrainConfig
from train.data import Batch
from train.ema import ema_decay, update_teacher
from train.loss import supervised_loss, total_loss, unsupervised_loss
from train.optim import poly_lr, set_lr


@dataclass(frozen=True, slots=True)
class Parts:
    """The state that a step changes: student, its EMA teacher, AdamW; `device` holds all."""

    student: nn.Module
    teacher: nn.Module
    optimizer: torch.optim.AdamW
    device: str


def seed_of(*words: int | str) -> int:
    """Give the seed of torch's generator for one purpose: a hash of its words, below 2 ** 60."""
    return int(fingerprint(list(words))[:15], 16)


def train_step(
    config: TrainConfig, phase: PhaseConfig, parts: Parts, number: int, step: int, batch: Batch
) -> dict[str, float]:
    """Do one optimizer update and one EMA update.

    Returns:
        `loss`, `supervised`, `unsupervised`, `grad_norm`, `lr`.

    Raises:
        SemiresError: If the loss is not finite; names round and step.
    """
    torch.manual_seed(seed_of(config.seed, number, step, "step"))  # dropout
    lr = poly_lr(step, phase.steps, phase.learning_rate, warmup_steps=phase.warmup_steps)
    set_lr(parts.optimizer, lr)
    parts.student.train()
    samples = {name: tensor.to(parts.device) for name, tensor in batch.items()}
    supervised, unsupervised = _losses(config, phase, parts.student, samples)
    loss = total_loss(
        supervised,
        unsupervised,
        lambda_sup=config.labelled_weight,
        lambda_unsup=config.unlabelled_weight,
    )
    if not math.isfinite(loss.item()):
        raise SemiresError(
            f"round {number}: loss is {loss.item()} at step {step}; lower the learning rate "
            f"(now {lr:.2e}) and resume from the last checkpoint"
        )
    parts.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    limit = config.max_grad_norm if config.max_grad_norm is not None else math.inf
    grad_norm = nn.utils.clip_grad_norm_(parts.student.parameters(), limit)
    parts.optimizer.step()
    decay = ema_decay(step, config.ema_decay, warm_up=config.ema_warmup)
    update_teacher(parts.teacher, parts.student, decay)
    return {
        "loss": loss.item(),
        "supervised": supervised.item(),
        "unsupervised": unsupervised.item(),
        "grad_norm": float(grad_norm),
        "lr": lr,
    }


def _losses(
    config: TrainConfig, phase: PhaseConfig, student: nn.Module, samples: Batch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run labelled and unlabelled samples through the student at once; labelled come first."""
    logits_B2hw = student(samples["image"], samples["token_ids"], samples["token_mask"])
    first = phase.labelled_batch
    supervised = supervised_loss(
        logits_B2hw[:first],
        samples["label"][:first],
        class_weights=config.class_weights,
        dice=config.dice,
    )
    unsupervised = unsupervised_loss(
        logits_B2hw[first:],
        samples["label"][first:],
        samples["weight"][first:],
        samples["refined"][first:],
        balance=config.balance,
        class_weights=config.class_weights,
        dice=config.dice,
    )
    return supervised, unsupervised
