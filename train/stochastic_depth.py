"""Stochastic depth on both branches of a Swin block, as published."""

import copy
from typing import Any

import torch
from torch import nn

from pipeline.torchvision_ops import ensure_importable

ensure_importable()

from transformers.models.swin.modeling_swin import SwinLayer  # noqa: E402


def drop_both_branches(swin: nn.Module) -> None:
    """Let stochastic depth drop the MLP branch of every block as well.

    The published Swin has it on both branches, transformers' on the attention only. The MLP gets a
    drop path of the block's rate. It has no weights, so no name of a weight changes; and it is part
    of the MLP, so that a deep copy refers to its own. Nothing changes where the rate is 0.
    """
    for block in swin.modules():
        if isinstance(block, SwinLayer) and not isinstance(block.drop_path, nn.Identity):
            mlp: Any = block.mlp
            mlp.drop_path = copy.deepcopy(block.drop_path)
            mlp.register_forward_hook(_drop_output)


def _drop_output(mlp: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
    dropped: torch.Tensor = mlp.drop_path(output)
    return dropped
