"""AdamW's parameter groups and a learning rate that really ends at zero."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pipeline.errors import ConfigError

NO_DECAY = ("norm", "position_embeddings", "relative_position_bias_table")
"""Parts of the names of backbone parameters without weight decay, as in LAVT and SemiRES."""


def parameter_groups(
    model: nn.Module,
    weight_decay: float = 1e-2,
    *,
    backbone: Sequence[str] = ("vision.", "fusions."),
    frozen: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Split the parameters into those with and those without weight decay.

    As in LAVT: no decay on the backbone's norms, position embeddings and relative position bias
    tables; decay everywhere else, biases and BERT's norms included.

    Args:
        model: The network; names with a prefix of `frozen` stop requiring gradients.
        weight_decay: AdamW's decay of the first group, at least 0.
        backbone: Prefixes of the names that the exemption concerns.
        frozen: Prefixes of the names that are not trained. The released code leaves BERT's
            embeddings and last two layers out: `("text.embeddings.", "text.encoder.layer.10.",
            "text.encoder.layer.11.")`.

    Returns:
        Two groups for `torch.optim.AdamW`, in the order of `named_parameters`.

    Raises:
        ConfigError: If a prefix of `frozen` names no parameter.
    """
    names = [name for name, _ in model.named_parameters()]
    for prefix in frozen:
        if not any(name.startswith(prefix) for name in names):
            raise ConfigError(f"frozen: no parameter of the network begins with {prefix!r}")
    decayed, exempt = [], []
    for name, parameter in model.named_parameters():
        if name.startswith(tuple(frozen)):
            parameter.requires_grad = False
        elif name.startswith(tuple(backbone)) and any(part in name for part in NO_DECAY):
            exempt.append(parameter)
        else:
            decayed.append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": exempt, "weight_decay": 0.0},
    ]


def make_optimizer(
    model: nn.Module,
    lr: float,
    *,
    weight_decay: float = 1e-2,
    betas: tuple[float, float] = (0.9, 0.999),
    frozen: Sequence[str] = (),
) -> torch.optim.AdamW:
    """Build AdamW on `parameter_groups`; the defaults are SemiRES's (its lr is 5e-5)."""
    groups = parameter_groups(model, weight_decay, frozen=frozen)
    return torch.optim.AdamW(groups, lr=lr, betas=betas)


def poly_lr(
    step: int, total_steps: int, base_lr: float, *, power: float = 0.9, warmup_steps: int = 0
) -> float:
    """Give the learning rate of a step: linear warm-up, then polynomial decay to exactly 0.

    base * (1 - step / total) ** power. The released SemiRES code divides by twice the steps that
    it takes, so that its rate ends at 0.536 of the base. A pure function of the step, so that a
    resumed training goes on where it stopped.

    Args:
        step: Updates done before this one, from 0 to `total_steps`.
        total_steps: Updates of the whole training, at least 1.
        base_lr: Rate that the decay starts from.
        power: Exponent of the decay, above 0.
        warmup_steps: Updates over which the rate also grows linearly from base / warmup_steps,
            below `total_steps`.

    Returns:
        The rate; 0 at `total_steps`.

    Raises:
        ConfigError: If an argument is out of its range.
    """
    if not 0 <= step <= total_steps or total_steps < 1:
        raise ConfigError(f"step is in [0, {total_steps}] and total_steps positive, got {step}")
    if not 0 <= warmup_steps < total_steps or power <= 0:
        raise ConfigError(
            f"warmup_steps is in [0, {total_steps}) and power positive, "
            f"got {warmup_steps} and {power}"
        )
    decay = float((1 - step / total_steps) ** power)
    return base_lr * decay * (min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group of the optimizer this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr
