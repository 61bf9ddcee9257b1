"""The teacher: an exponential moving average of the student, parameter by parameter."""

import copy

import torch
from torch import nn

from pipeline.errors import ConfigError


def make_teacher(student: nn.Module) -> nn.Module:
    """Copy a student into a teacher in eval mode whose parameters take no gradient."""
    return copy.deepcopy(student).requires_grad_(requires_grad=False).eval()


def ema_decay(step: int, decay: float = 0.996, *, warm_up: bool = False) -> float:
    """Give the share of the old teacher that a step keeps.

    SemiRES's text has 0.996; its released code has 0.9996 written into the call.

    Args:
        step: Updates of the teacher before this one, from 0.
        decay: Final share, in [0, 1).
        warm_up: Follow min(decay, (1 + step) / (10 + step)) instead, for short trainings, where a
            constant share would keep too much of the first weights.

    Returns:
        The share, in [0, 1).

    Raises:
        ConfigError: If `decay` is out of range.
    """
    if not 0 <= decay < 1:
        raise ConfigError(f"ema decay is in [0, 1), got {decay!r}")
    return min(decay, (1 + step) / (10 + step)) if warm_up else decay


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """Move the teacher towards the student in place (SemiRES, equation 5).

    Floating parameters become decay * teacher + (1 - decay) * student. Buffers are copied in their
    own type: running statistics as they are, and integer tables bit for bit. The released code
    averages the state dict instead, which corrupts `relative_position_index` by truncation.

    Args:
        teacher: Made by `make_teacher`.
        student: The trained network, of the same architecture and device.
        decay: Share of the teacher that is kept, in [0, 1].

    Raises:
        ConfigError: If the two have different parameters or buffers.
    """
    old, new = dict(teacher.named_parameters()), dict(student.named_parameters())
    old_buffers, new_buffers = dict(teacher.named_buffers()), dict(student.named_buffers())
    differing = (old.keys() ^ new.keys()) | (old_buffers.keys() ^ new_buffers.keys())
    if differing:
        raise ConfigError(f"teacher and student are different networks: {sorted(differing)[0]}")
    if old:
        names = list(old)
        torch._foreach_lerp_([old[n] for n in names], [new[n] for n in names], 1 - decay)
    for name, buffer in old_buffers.items():
        buffer.copy_(new_buffers[name])
