"""The small SAM that ships with the project: segment-anything's own classes at small sizes.

Shape legend: B images, C channels, H and W rows and columns of a feature map.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from pipeline.errors import ConfigError
from pipeline.torchvision_ops import ensure_importable

ensure_importable()

from segment_anything.modeling import (  # noqa: E402 - imports torchvision
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from segment_anything.modeling.common import LayerNorm2d  # noqa: E402 - as above

IMAGE_SIZE = 256
"""Side of the square that the model reads, pixels."""
EMBEDDING_SIZE = 32
"""Side of the image embedding; one vector for 8 x 8 pixels."""
WEIGHTS = Path(__file__).parent / "weights" / "vit_tiny_demo.safetensors"
"""The shipped weights."""

_WIDTH, _DECODER_WIDTH = 128, 48

if TYPE_CHECKING:
    _Encoder = nn.Module
else:
    _Encoder = ImageEncoderViT


def _stage(in_channels: int, out_channels: int) -> nn.Sequential:
    """Give a convolution that halves the resolution, with norm and activation."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1),
        LayerNorm2d(out_channels),
        nn.ReLU(),
    )


class TinyImageEncoder(_Encoder):
    """SAM's image encoder behind a stem of convolutions, with a skip past the transformer.

    Departs from `ImageEncoderViT` in two places, because it is trained in an hour on a CPU:
    convolutions instead of one patch projection (Early Convolutions Help Transformers See
    Better, Xiao et al., NeurIPS 2021, arXiv:2106.14881), and an embedding at stride 8, the
    blocks' output at stride 16 added to the stem's at stride 8, so that thin parts survive.
    """

    blocks: nn.ModuleList

    def __init__(self) -> None:
        super().__init__(
            img_size=IMAGE_SIZE,
            patch_size=16,
            embed_dim=_WIDTH,
            depth=5,
            num_heads=4,
            mlp_ratio=3,
            out_chans=_DECODER_WIDTH,
            qkv_bias=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=False,
            window_size=0,
        )
        self.patch_embed = nn.Sequential(_stage(3, 24), _stage(24, 48), _stage(48, 96))
        self.to_blocks = nn.Conv2d(96, _WIDTH, 3, stride=2, padding=1)
        self.neck = nn.Conv2d(_WIDTH, _DECODER_WIDTH, 1)
        self.skip = nn.Conv2d(96, _DECODER_WIDTH, 1)
        self.fuse = nn.Sequential(
            LayerNorm2d(_DECODER_WIDTH),
            nn.Conv2d(_DECODER_WIDTH, _DECODER_WIDTH, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(_DECODER_WIDTH, _DECODER_WIDTH, 3, padding=1),
            LayerNorm2d(_DECODER_WIDTH),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Encode normalised images.

        Args:
            image: Shape (B, 3, 256, 256), float32, normalised and padded.

        Returns:
            The embedding, shape (B, 48, 32, 32), float32.
        """
        fine = self.patch_embed(image)  # (B, 96, 32, 32)
        tokens = self.to_blocks(fine).permute(0, 2, 3, 1) + self.pos_embed  # (B, 16, 16, 128)
        for block in self.blocks:
            tokens = block(tokens)
        coarse = self.neck(tokens.permute(0, 3, 1, 2))
        coarse = nn.functional.interpolate(
            coarse, scale_factor=2.0, mode="bilinear", align_corners=False
        )
        return cast(torch.Tensor, self.fuse(coarse + self.skip(fine)))


def build_vit_tiny_demo() -> Any:
    """Build the small SAM with random weights.

    Returns:
        A `segment_anything.modeling.Sam` in evaluation mode that reads 256 x 256 pixels and gives
        masks of 128 x 128 logits. Only the three outputs of `multimask_output=True` are trained:
        the region of one colour, the part with its decorations, the whole object.
    """
    sam = Sam(
        image_encoder=TinyImageEncoder(),
        prompt_encoder=PromptEncoder(
            embed_dim=_DECODER_WIDTH,
            image_embedding_size=(EMBEDDING_SIZE, EMBEDDING_SIZE),
            input_image_size=(IMAGE_SIZE, IMAGE_SIZE),
            mask_in_chans=4,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(
                depth=2,
                embedding_dim=_DECODER_WIDTH,
                mlp_dim=192,
                num_heads=4,
                attention_downsample_rate=1,
            ),
            transformer_dim=_DECODER_WIDTH,
            activation=nn.ReLU,
            iou_head_depth=3,
            iou_head_hidden_dim=128,
        ),
    )
    return sam.eval()


def load_vit_tiny_demo(path: Path = WEIGHTS) -> Any:
    """Build the small SAM and load its weights, strictly.

    Args:
        path: A safetensors file with every parameter of `build_vit_tiny_demo`.

    Returns:
        The model in evaluation mode, on the CPU.

    Raises:
        ConfigError: If the file is missing, unreadable or holds other parameters.
    """
    sam = build_vit_tiny_demo()
    try:
        sam.load_state_dict(load_file(path), strict=True)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"cannot read the weights of vit_tiny_demo at {path}: {error}") from error
    except RuntimeError as error:
        raise ConfigError(f"{path} does not hold the weights of vit_tiny_demo") from error
    return sam
