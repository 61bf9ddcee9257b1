"""The sizes of CLIPSeg; needs no torch, so that a config is read at once."""

from dataclasses import dataclass, fields

from pipeline.errors import ConfigError


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
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is int and value < 1:
                raise ConfigError(f"clipseg: {field.name}: expected at least 1, found {value}")
        for name in ("image_size", "table_size"):
            if getattr(self, name) % self.patch_size:
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
