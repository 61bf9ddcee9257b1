"""The sizes of LAVT; needs no torch, so that a config is read at once."""

from dataclasses import dataclass, fields

from pipeline.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class LavtConfig:
    """Sizes of a LAVT network; the defaults are the paper's Swin-B at 480 pixels with BERT-base."""

    image_size: int = 480
    """Side of the square input, pixels; a multiple of `patch_size`."""
    patch_size: int = 4
    """Side of a patch, pixels: the stride of the first stage and of the logits."""
    embed_dim: int = 128
    """Channels of the first stage; every later stage doubles them."""
    depths: tuple[int, ...] = (2, 2, 18, 2)
    """Swin blocks per stage."""
    num_heads: tuple[int, ...] = (4, 8, 16, 32)
    """Attention heads of the Swin blocks per stage; they divide the stage's channels."""
    window_size: int = 12
    """Side of an attention window, in tokens."""
    drop_path_rate: float = 0.3
    """Largest rate of stochastic depth, in [0, 1)."""
    fusion_heads: tuple[int, ...] = (1, 1, 1, 1)
    """Heads of the pixel-word attention per stage; they divide the stage's channels."""
    fusion_dropout: float = 0.0
    """Dropout inside the pixel-word attention, in [0, 1)."""
    decoder_channels: int | None = None
    """Channels of the decoder; None means half of the last stage's, as in LAVT."""
    coordinates: bool = False
    """Feed the x and y of every pixel, in [-1, 1], as two more input channels (not in LAVT)."""
    vocab_size: int = 30522
    """Rows of the word embedding."""
    text_dim: int = 768
    """Channels of a word."""
    text_layers: int = 12
    """BERT layers; the released code trains the first ten, which is the optimizer's concern."""
    text_heads: int = 12
    """Attention heads of BERT."""
    text_positions: int = 512
    """Longest sentence that BERT's position table holds, tokens."""
    text_dropout: float = 0.1
    """Dropout of BERT, in [0, 1)."""
    init_std: float | None = 0.02
    """Deviation of random linear weights; None means 1 / sqrt(fan in), better for narrow ones."""
    published_fusion_init: bool = True
    """Draw the pixel-word attention as the released code does, uniform within 1 / sqrt(fan in),
    biases too: its projections are convolutions there, which keep torch's own initialisation."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is int and value < 1:
                raise ConfigError(f"lavt: {field.name}: expected at least 1, found {value}")
        for name in ("drop_path_rate", "fusion_dropout", "text_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(
                    f"lavt: {name}: expected a number in [0, 1), found {getattr(self, name)}"
                )
        if self.init_std is not None and not self.init_std > 0:
            raise ConfigError(f"lavt: init_std: expected more than 0, found {self.init_std}")
        self._check_stages()

    def _check_stages(self) -> None:
        """Refuse numbers that do not fit together."""
        num_stages = len(self.depths)
        if not num_stages == len(self.num_heads) == len(self.fusion_heads):
            raise ConfigError(
                f"lavt: depths, num_heads and fusion_heads name one number per stage, got "
                f"{self.depths}, {self.num_heads} and {self.fusion_heads}"
            )
        if min(*self.depths, *self.num_heads, *self.fusion_heads, 1) < 1:
            raise ConfigError("lavt: depths and heads are 1 or more, got a smaller one")
        for dim, heads, fusion in zip(
            self.stage_dims, self.num_heads, self.fusion_heads, strict=True
        ):
            if dim % heads or dim % fusion:
                raise ConfigError(
                    f"lavt: heads divide the {dim} channels of a stage, got {heads} and {fusion}"
                )
        if self.image_size % self.patch_size:
            raise ConfigError(
                f"lavt: image_size is a multiple of patch_size {self.patch_size}, "
                f"got {self.image_size}"
            )
        if self.text_dim % self.text_heads:
            raise ConfigError(
                f"lavt: text_heads divide text_dim {self.text_dim}, got {self.text_heads}"
            )

    @property
    def stage_dims(self) -> tuple[int, ...]:
        """Channels of every stage, first to last."""
        return tuple(self.embed_dim * 2**i for i in range(len(self.depths)))


LAVT_SIZES: dict[str, LavtConfig] = {
    "toy": LavtConfig(
        image_size=128,
        embed_dim=32,
        depths=(1, 1, 2, 1),
        num_heads=(2, 4, 4, 8),
        window_size=4,
        drop_path_rate=0.0,
        fusion_heads=(4, 4, 4, 4),
        decoder_channels=64,
        coordinates=True,
        vocab_size=1024,
        text_dim=128,
        text_layers=2,
        text_heads=4,
        text_positions=32,
        text_dropout=0.0,
        init_std=None,
        published_fusion_init=False,
    ),
    "tiny": LavtConfig(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), window_size=7),
    "small": LavtConfig(
        embed_dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24), window_size=7
    ),
    "base": LavtConfig(),
    "large": LavtConfig(embed_dim=192, num_heads=(6, 12, 24, 48)),
}
"""Published sizes as in LAVT's code (drop path 0.3, one fusion head) and a toy for the CPU."""
