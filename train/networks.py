"""The networks that can be trained, and the step from their logits to the image's size.

Shape letters: B batch, K classes, H W pixels of the image, h w pixels of the logits.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.errors import ConfigError
from train.lavt import LAVT_SIZES, Lavt, LavtConfig

Builder = Callable[[str, Mapping[str, Any]], nn.Module]
"""From the name of a size and values that replace the size's own, to a network.

Such a network maps images (B, 3, H, W), token ids (B, L) and token mask (B, L) to logits
(B, 2, h, w).
"""


def lavt_config(size: str = "toy", options: Mapping[str, Any] | None = None) -> LavtConfig:
    """Look a size up and replace some of its values.

    Args:
        size: A key of `LAVT_SIZES`.
        options: Values by name of a `LavtConfig` field; lists are taken for tuples.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: If there is no such size or field, or the values do not fit together.
    """
    if size not in LAVT_SIZES:
        raise ConfigError(f"lavt: size is one of {sorted(LAVT_SIZES)}, got {size!r}")
    values: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in (options or {}).items()
    }
    unknown = set(values) - {field.name for field in fields(LavtConfig)}
    if unknown:
        raise ConfigError(f"lavt: no such option: {', '.join(sorted(unknown))}")
    return replace(LAVT_SIZES[size], **values)


def build_lavt(size: str = "toy", options: Mapping[str, Any] | None = None) -> Lavt:
    """Build LAVT with random weights; arguments and errors of `lavt_config`."""
    return Lavt(lavt_config(size, options))


NETWORKS: dict[str, Builder] = {"lavt": build_lavt}
"""Name of an architecture to its builder."""


def upsample(logits_BKhw: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Enlarge logits to (H, W), bilinear with aligned corners, as LAVT does.

    Args:
        logits_BKhw: Shape (B, K, h, w), floating.
        size: (H, W) in pixels.

    Returns:
        Shape (B, K, H, W).
    """
    return F.interpolate(logits_BKhw, size, mode="bilinear", align_corners=True)
