"""LAVT: Swin and BERT, with pixel-word attention after every Swin stage.

Shape letters: B batch, H W pixels of the image, h w pixels of a feature map, C channels,
N = h * w tokens, L word tokens.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.torchvision_ops import ensure_importable
from train.fusion import FusionStage, PixelWordAttention
from train.lavt_sizes import LAVT_SIZES as LAVT_SIZES
from train.lavt_sizes import LavtConfig as LavtConfig

ensure_importable()

from transformers import BertConfig, BertModel, SwinConfig, SwinModel  # noqa: E402

from train.stochastic_depth import drop_both_branches  # noqa: E402

NUM_CLASSES = 2
"""Channels of the logits: background, foreground."""


def _conv_pair(in_channels: int, channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before in (in_channels, channels):
        layers += [nn.Conv2d(before, channels, 3, padding=1, bias=False)]
        layers += [nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers)


class Decoder(nn.Module):
    """Join the fused features top-down: upsample, concatenate, two 3x3 convolutions (LAVT §3.4)."""

    def __init__(self, stage_dims: tuple[int, ...], channels: int) -> None:
        super().__init__()
        below = (stage_dims[-1],) + (channels,) * (len(stage_dims) - 2)
        self.joins = nn.ModuleList(
            _conv_pair(top + dim, channels)
            for top, dim in zip(below, reversed(stage_dims[:-1]), strict=True)
        )
        self.head = nn.Conv2d(channels, NUM_CLASSES, 1)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Turn features into logits.

        Args:
            features: Of every stage, first to last, shape (B, C, h, w) each.

        Returns:
            Logits at the resolution of the first stage, shape (B, 2, h, w).
        """
        x_BChw = features[-1]
        for join, feature_BChw in zip(self.joins, reversed(features[:-1]), strict=True):
            size = (feature_BChw.shape[-2], feature_BChw.shape[-1])
            x_BChw = F.interpolate(x_BChw, size, mode="bilinear", align_corners=True)
            x_BChw = join(torch.cat([x_BChw, feature_BChw], dim=1))
        logits_B2hw: torch.Tensor = self.head(x_BChw)
        return logits_B2hw


def _coordinates(images_B3HW: torch.Tensor) -> torch.Tensor:
    """Append x and y of every pixel, each from -1 to 1: shape (B, 5, H, W)."""
    batch, _, height, width = images_B3HW.shape
    x_W = torch.linspace(-1, 1, width, device=images_B3HW.device, dtype=images_B3HW.dtype)
    y_H = torch.linspace(-1, 1, height, device=images_B3HW.device, dtype=images_B3HW.dtype)
    x_B1HW = x_W.expand(batch, 1, height, width)
    y_B1HW = y_H[:, None].expand(batch, 1, height, width)
    return torch.cat([images_B3HW, x_B1HW, y_B1HW], dim=1)


def _swin(config: LavtConfig) -> SwinModel:
    swin = SwinModel(
        SwinConfig(
            image_size=config.image_size,
            patch_size=config.patch_size,
            num_channels=5 if config.coordinates else 3,
            embed_dim=config.embed_dim,
            depths=config.depths,
            num_heads=config.num_heads,
            window_size=config.window_size,
            drop_path_rate=config.drop_path_rate,
        ),
        add_pooling_layer=False,
    )
    # Unused here, and DistributedDataParallel refuses unused weights.
    swin.layernorm = nn.Identity()  # type: ignore[assignment]
    drop_both_branches(swin)
    return swin


def _bert(config: LavtConfig) -> BertModel:
    return BertModel(
        BertConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.text_dim,
            num_hidden_layers=config.text_layers,
            num_attention_heads=config.text_heads,
            intermediate_size=4 * config.text_dim,
            max_position_embeddings=config.text_positions,
            hidden_dropout_prob=config.text_dropout,
            attention_probs_dropout_prob=config.text_dropout,
        ),
        add_pooling_layer=False,
    )


def _initialize(module: nn.Module, std: float | None) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=std or layer.in_features**-0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class Lavt(nn.Module):
    """The network of LAVT (Yang et al., CVPR 2022, arXiv:2112.02244) on transformers' Swin, BERT.

    Departs from the paper only where its config says so (`coordinates`, `decoder_channels`,
    `fusion_heads`, `init_std`). Random weights come from torch's generator.
    """

    def __init__(self, config: LavtConfig) -> None:
        super().__init__()
        self.config = config
        self.text = _bert(config)
        self.vision = _swin(config)
        self.fusions = nn.ModuleList(
            FusionStage(
                dim,
                config.text_dim,
                heads,
                config.fusion_dropout,
                gated=dim < config.stage_dims[-1],
            )
            for dim, heads in zip(config.stage_dims, config.fusion_heads, strict=True)
        )
        self.decoder = Decoder(
            config.stage_dims, config.decoder_channels or config.stage_dims[-1] // 2
        )
        _initialize(self, config.init_std)
        if config.published_fusion_init:
            for layer in self.fusions.modules():
                if isinstance(layer, PixelWordAttention):
                    layer.initialize_as_published()

    def _encode(
        self, images_B3HW: torch.Tensor, words_BLT: torch.Tensor, mask_BL: torch.Tensor
    ) -> list[torch.Tensor]:
        """Run the Swin stages with a fusion after each; features (B, C, h, w), first to last."""
        if self.config.coordinates:
            images_B3HW = _coordinates(images_B3HW)
        x_BNC, (height, width) = self.vision.embeddings(images_B3HW, interpolate_pos_encoding=False)
        features = []
        stages: Any = self.vision.encoder.layers
        for stage, fusion in zip(stages, self.fusions, strict=True):
            for block in stage.blocks:  # pad to whole windows and shift always, as mmseg's Swin
                x_BNC, _ = block(x_BNC, (height, width), always_partition=True)
            x_BNC, fused_BNC = fusion(x_BNC, words_BLT, mask_BL)
            features.append(fused_BNC.transpose(1, 2).unflatten(-1, (height, width)))
            if stage.downsample is not None:
                x_BNC = stage.downsample(x_BNC, (height, width))
                height, width = (height + 1) // 2, (width + 1) // 2
        return features

    def forward(
        self, images_B3HW: torch.Tensor, token_ids_BL: torch.Tensor, token_mask_BL: torch.Tensor
    ) -> torch.Tensor:
        """Score every patch as background and foreground for its sentence.

        Args:
            images_B3HW: Normalised images, shape (B, 3, H, W), floating.
            token_ids_BL: Word pieces, shape (B, L), int64, in [0, vocab_size).
            token_mask_BL: 1 for a token, 0 for padding, shape (B, L); a one in every row.

        Returns:
            Logits, shape (B, 2, H / patch_size, W / patch_size), rounded up.
        """
        words_BLT = self.text(
            input_ids=token_ids_BL, attention_mask=token_mask_BL
        ).last_hidden_state
        features = self._encode(images_B3HW, words_BLT, token_mask_BL.bool())
        logits_B2hw: torch.Tensor = self.decoder(features)
        return logits_B2hw
