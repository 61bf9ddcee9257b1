"""The networks that can be trained, and the step from their logits to the image's size.

Shape letters: B batch, K classes, H W pixels of the image, h w pixels of the logits, L word tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F

from train.clipseg import ClipSeg
from train.lavt import Lavt
from train.network_sizes import Options as Options
from train.network_sizes import clipseg_config as clipseg_config
from train.network_sizes import lavt_config as lavt_config
from train.network_sizes import longest_sentence

Features = tuple[torch.Tensor, ...]
"""What is known of images before any word is; each tensor has the batch first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One kind of network, and everything that the trainer asks of it.

    Calling it builds a network with random weights. Such a network maps images (B, 3, H, W), token
    ids (B, L) and token mask (B, L) to logits (B, 2, h, w), and its `config` has `image_size`. Its
    three parts, one after the other, give the logits of the whole.
    """

    build: Callable[[str, Options], nn.Module]
    """From the name of a size and options to a network."""
    longest_sentence: Callable[[str, Options], int]
    """Tokens that the position table of a size with options holds; checks both."""
    shares_images: bool
    """Whether an image's features serve all its sentences: not where words enter on the way."""
    encode_images: Callable[[nn.Module, torch.Tensor], Features]
    """Network and images (B, 3, H, W) to features."""
    encode_words: Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]
    """Network, token ids and mask (B, L) to words, batch first."""
    decode: Callable[[nn.Module, Features, torch.Tensor, torch.Tensor], torch.Tensor]
    """Network, features, words and token mask (B, L) to logits (B, 2, h, w)."""

    def __call__(self, size: str, options: Options) -> nn.Module:
        """Build a network; a size or an option that does not fit is a `ConfigError`."""
        return self.build(size, options)


def build_lavt(size: str = "toy", options: Options | None = None) -> Lavt:
    """Build LAVT with random weights; arguments and errors of `lavt_config`."""
    return Lavt(lavt_config(size, options))


def build_clipseg(size: str = "toy", options: Options | None = None) -> ClipSeg:
    """Build CLIPSeg with random weights; arguments and errors of `clipseg_config`."""
    return ClipSeg(clipseg_config(size, options))


def _lavt_words(network: Any, ids_BL: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
    words_BLT: torch.Tensor = network.text(
        input_ids=ids_BL, attention_mask=mask_BL
    ).last_hidden_state
    return words_BLT


def _lavt_decode(
    network: Any, features: Features, words_BLT: torch.Tensor, mask_BL: torch.Tensor
) -> torch.Tensor:
    # The words enter after every Swin stage, so all but the reading of the image happens here.
    fused = network._encode(features[0], words_BLT, mask_BL.bool())
    logits_B2hw: torch.Tensor = network.decoder(fused)
    return logits_B2hw


NETWORKS: dict[str, Architecture] = {
    "lavt": Architecture(
        build=build_lavt,
        longest_sentence=partial(longest_sentence, "lavt"),
        shares_images=False,
        encode_images=lambda _, images_B3HW: (images_B3HW,),
        encode_words=_lavt_words,
        decode=_lavt_decode,
    ),
    "clipseg": Architecture(
        build=build_clipseg,
        longest_sentence=partial(longest_sentence, "clipseg"),
        shares_images=True,
        encode_images=lambda network, images_B3HW: cast("ClipSeg", network).encode_images(
            images_B3HW
        ),
        encode_words=lambda network, ids_BL, mask_BL: cast("ClipSeg", network).encode_words(
            ids_BL, mask_BL
        ),
        decode=lambda network, features, words_BP, _: cast("ClipSeg", network).decode(
            features, words_BP
        ),
    ),
}
"""Name of an architecture, as in `network_sizes.SIZES`, to its entry."""


def upsample(logits_BKhw: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Enlarge logits to (H, W), bilinear with aligned corners, as LAVT does.

    Args:
        logits_BKhw: Shape (B, K, h, w), floating.
        size: (H, W) in pixels.

    Returns:
        Shape (B, K, H, W).
    """
    return F.interpolate(logits_BKhw, size, mode="bilinear", align_corners=True)
