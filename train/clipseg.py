"""CLIPSeg: a frozen or trained CLIP, and a light decoder that a sentence modulates.

Shape letters: B batch, H W pixels of the image, C channels, N tokens of the image (the class token
first), L word tokens, T channels of the words, P channels that image and sentence share.
"""

from dataclasses import dataclass

import torch
from torch import nn

from pipeline.errors import ConfigError
from pipeline.torchvision_ops import ensure_importable

ensure_importable()

from transformers import (  # noqa: E402
    CLIPSegConfig,
    CLIPSegTextConfig,
    CLIPSegTextModel,
    CLIPSegVisionConfig,
    CLIPSegVisionModel,
)
from transformers.models.clipseg.modeling_clipseg import CLIPSegDecoder  # noqa: E402


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipSegConfig:
    """Sizes of a CLIPSeg; the defaults are those of `CIDAS/clipseg-rd64-refined`, a ViT-B/16."""

    image_size: int = 352
    """Side of the square input, pixels; a multiple of `patch_size`."""
    patch_size: int = 16
    """Side of a patch, pixels; a multiple of 4 squared where the head is refined."""
    table_size: int = 224
    """Side of the images that the position table has a row per patch for; another `image_size`
    interpolates it (bicubic)."""
    vision_dim: int = 768
    """Channels of the image transformer."""
    vision_layers: int = 12
    """Its layers as published; those behind the last of `extract_layers` are left out."""
    vision_heads: int = 12
    """Its attention heads."""
    extract_layers: tuple[int, ...] = (3, 6, 9)
    """Layers, from 0 and rising, whose output the decoder reads."""
    text_dim: int = 512
    """Channels of a word."""
    text_layers: int = 12
    """Layers of the text transformer."""
    text_heads: int = 8
    """Its attention heads."""
    text_positions: int = 77
    """Longest sentence that the position table holds, tokens."""
    vocab_size: int = 49408
    """Rows of the word embedding."""
    shared_dim: int = 512
    """Channels that a sentence is projected to."""
    reduce_dim: int = 64
    """Channels of the decoder."""
    decoder_heads: int = 4
    """Attention heads of the decoder."""
    decoder_hidden: int = 2048
    """Hidden channels of the decoder's layers."""
    refined_head: bool = True
    """Three convolutions to the pixels, as in the `refined` weights, instead of one."""
    train_clip: bool = True
    """Whether CLIP is trained as well. The paper freezes it, which asks for published weights."""

    def __post_init__(self) -> None:
        for name in ("image_size", "table_size"):
            if getattr(self, name) < 1 or getattr(self, name) % self.patch_size:
                raise ConfigError(
                    f"clipseg: {name} is a multiple of patch_size {self.patch_size}, "
                    f"got {getattr(self, name)}"
                )
        heads = (
            ("vision_dim", self.vision_heads),
            ("text_dim", self.text_heads),
            ("reduce_dim", self.decoder_heads),
        )
        for name, count in heads:
            if getattr(self, name) % count:
                raise ConfigError(
                    f"clipseg: {count} heads do not divide {name} {getattr(self, name)}"
                )
        layers = self.extract_layers
        inside = set(layers) <= set(range(self.vision_layers))
        if not layers or not inside or list(layers) != sorted(set(layers)):
            raise ConfigError(
                f"clipseg: extract_layers rise from 0 to {self.vision_layers - 1}, got {layers}"
            )
        if self.refined_head and (self.patch_size // 4) ** 2 != self.patch_size:
            raise ConfigError(
                f"clipseg: refined_head enlarges by (patch_size // 4) twice, which gives the "
                f"image's size for patch_size 16 only, got {self.patch_size}"
            )


CLIPSEG_SIZES: dict[str, ClipSegConfig] = {
    "toy": ClipSegConfig(
        image_size=96,
        table_size=96,
        patch_size=8,
        vision_dim=64,
        vision_layers=3,
        vision_heads=4,
        extract_layers=(0, 1, 2),
        text_dim=64,
        text_layers=2,
        text_heads=4,
        text_positions=32,
        vocab_size=1024,
        shared_dim=64,
        reduce_dim=32,
        decoder_heads=4,
        decoder_hidden=128,
        refined_head=False,
    ),
    "base": ClipSegConfig(),
}
"""The published size and a toy for the CPU."""


def _parts(
    config: ClipSegConfig,
) -> tuple[CLIPSegTextConfig, CLIPSegVisionConfig, CLIPSegConfig]:
    vision = CLIPSegVisionConfig(
        hidden_size=config.vision_dim,
        intermediate_size=4 * config.vision_dim,
        num_hidden_layers=config.vision_layers,
        num_attention_heads=config.vision_heads,
        image_size=config.table_size,
        patch_size=config.patch_size,
    )
    text = CLIPSegTextConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.text_dim,
        intermediate_size=4 * config.text_dim,
        num_hidden_layers=config.text_layers,
        num_attention_heads=config.text_heads,
        max_position_embeddings=config.text_positions,
        eos_token_id=0,  # unused: `encode_words` finds the end of a sentence by the mask
        pad_token_id=None,
        bos_token_id=None,
    )
    whole = CLIPSegConfig(
        text_config=text,
        vision_config=vision,
        projection_dim=config.shared_dim,
        extract_layers=config.extract_layers,
        reduce_dim=config.reduce_dim,
        decoder_num_attention_heads=config.decoder_heads,
        decoder_intermediate_size=config.decoder_hidden,
        use_complex_transposed_convolution=config.refined_head,
    )
    return text, vision, whole


class ClipSeg(nn.Module):
    """The network of CLIPSeg (Lüddecke and Ecker, CVPR 2022, arXiv:2112.10003) on transformers.

    Departs from transformers' own in three places. It gives two classes, the background's logit
    being 0, so that softmax equals the published sigmoid. A sentence is read off at its last token
    by the mask, so that any tokenizer will do that closes its sentences (CLIP's, or [SEP]). What
    reaches no output is not there: layers behind the last that is read, the image's own projection.
    Random weights come from torch's generator.
    """

    def __init__(self, config: ClipSegConfig) -> None:
        super().__init__()
        self.config = config
        text, vision, whole = _parts(config)
        self.text = CLIPSegTextModel(text)
        self.text_projection = nn.Linear(config.text_dim, config.shared_dim, bias=False)
        nn.init.normal_(self.text_projection.weight, std=config.text_dim**-0.5)
        self.vision = CLIPSegVisionModel(vision)
        del self.vision.encoder.layers[config.extract_layers[-1] + 1 :]
        self.vision.post_layernorm = nn.Identity()  # type: ignore[assignment]
        self.decoder = CLIPSegDecoder(whole)
        # By torch's own rules: transformers draws them with deviation 0.02, which makes what the
        # sentence modulates so small that a layer norm's epsilon drowns it.
        for layer in self.decoder.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                layer.reset_parameters()
        if not config.train_clip:
            for part in (self.text, self.text_projection, self.vision):
                part.requires_grad_(requires_grad=False)

    def encode_images(self, images_B3HW: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Give what the decoder reads of images, whatever will be asked of them.

        Returns:
            Per layer of `extract_layers` (B, N, C).
        """
        x_BNC = self.vision.pre_layrnorm(self.vision.embeddings(images_B3HW))
        read = []
        for number, layer in enumerate(self.vision.encoder.layers):
            x_BNC = layer(x_BNC, None)
            if number in self.config.extract_layers:
                read.append(x_BNC)
        return tuple(read)

    def encode_words(self, token_ids_BL: torch.Tensor, token_mask_BL: torch.Tensor) -> torch.Tensor:
        """Give a vector per sentence: its last token's, projected; shape (B, P)."""
        words_BLT = self.text(
            input_ids=token_ids_BL, attention_mask=token_mask_BL
        ).last_hidden_state
        last_B = token_mask_BL.sum(dim=1) - 1
        rows_B = torch.arange(len(words_BLT), device=words_BLT.device)
        words_BP: torch.Tensor = self.text_projection(words_BLT[rows_B, last_B])
        return words_BP

    def decode(self, read: tuple[torch.Tensor, ...], words_BP: torch.Tensor) -> torch.Tensor:
        """Give logits (B, 2, H, W) of images and sentences, as `forward` does."""
        logit_BHW = self.decoder(list(read), words_BP).logits
        return torch.stack([torch.zeros_like(logit_BHW), logit_BHW], dim=1)

    def forward(
        self, images_B3HW: torch.Tensor, token_ids_BL: torch.Tensor, token_mask_BL: torch.Tensor
    ) -> torch.Tensor:
        """Score every pixel as background and foreground for its sentence.

        Args:
            images_B3HW: Images normalised by ImageNet's mean and deviation, shape (B, 3, H, W).
            token_ids_BL: Word pieces, shape (B, L), int64, in [0, vocab_size).
            token_mask_BL: 1 for a token, 0 for padding at the end, shape (B, L); a one in every
                row.

        Returns:
            Logits, shape (B, 2, H, W): the stride is 1.
        """
        words_BP = self.encode_words(token_ids_BL, token_mask_BL)
        return self.decode(self.encode_images(images_B3HW), words_BP)
