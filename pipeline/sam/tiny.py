"""The small SAM that ships with the project: segment-anything's classes at small sizes.

Two of them are extended, because the model is trained in hours on one CPU core: the encoder has
convolutions around the transformer and hands on features at stride 2, and the decoder compares them
with those at the prompt. Both keep segment-anything's interface, so that its predictor and its mask
generator run on the model as on any other.

Shape legend: B images, K prompts, C channels of the embedding, D of the detail features, H and W
rows and columns of a feature map.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from pipeline.errors import ConfigError
from pipeline.found_values import why
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
from segment_anything.modeling.mask_decoder import MLP  # noqa: E402 - as above

IMAGE_SIZE = 256
"""Side of the square that the model reads, pixels."""
EMBEDDING_SIZE = 32
"""Side of the image embedding; one vector for 8 x 8 pixels."""
LOOKS = 19
"""Channels of the detail features that say what a pixel looks like."""
CENTRES = slice(LOOKS, LOOKS + 9)
"""Then (x, y, x^2 + y^2) of the centre of the pixel's segment, at each of three levels."""
DETAIL = LOOKS + 9 + 4
"""And at last 1 and (x, y, x^2 + y^2) of the pixel itself. Positions span [-1, 1]."""
WEIGHTS = Path(__file__).parent / "weights" / "vit_tiny_demo.safetensors"
"""The shipped weights."""

_WIDTH, _DECODER_WIDTH = 128, 64
_FOLD = 4  # detail features lie at stride 2, the embedding at stride 8

if TYPE_CHECKING:
    _Encoder = nn.Module
    _Decoder = nn.Module
else:
    _Encoder = ImageEncoderViT
    _Decoder = MaskDecoder


def _convolve(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """Give a 3 x 3 convolution with norm and activation."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


def _stage(in_channels: int, out_channels: int) -> nn.Sequential:
    """Halve the resolution, then look around once more."""
    return nn.Sequential(
        _convolve(in_channels, out_channels, stride=2), _convolve(out_channels, out_channels)
    )


def _double(feature: torch.Tensor) -> torch.Tensor:
    """Double the resolution, bilinearly."""
    return nn.functional.interpolate(
        feature, scale_factor=2.0, mode="bilinear", align_corners=False
    )


class TinyImageEncoder(_Encoder):
    """SAM's image encoder between convolutions that go down before it and up behind it.

    Departs from `ImageEncoderViT` in three places: convolutions instead of one patch projection
    (Early Convolutions Help Transformers See Better, Xiao et al., NeurIPS 2021, arXiv:2106.14881);
    an embedding at stride 8; and, behind it in the same tensor, detail features at stride 2, folded
    into channels (4 x 4 positions), so that edges are sharper than the embedding. They hold what a
    pixel looks like and where it believes the middle of its part, object and group to be (Instance
    Segmentation by Jointly Optimizing Spatial Embeddings, Neven et al., CVPR 2019,
    arXiv:1906.11109), so that two things that look alike differ.
    """

    blocks: nn.ModuleList

    def __init__(self) -> None:
        super().__init__(
            img_size=IMAGE_SIZE,
            patch_size=16,
            embed_dim=_WIDTH,
            depth=4,
            num_heads=4,
            mlp_ratio=3,
            out_chans=_DECODER_WIDTH,
            qkv_bias=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=False,
            window_size=0,
        )
        self.patch_embed = nn.ModuleList([_stage(3, 24), _stage(24, 48), _stage(48, 96)])
        self.to_blocks = nn.Conv2d(96, _WIDTH, 3, stride=2, padding=1)
        self.up_8 = nn.Conv2d(_WIDTH, 96, 1)
        self.fuse_8 = _convolve(96, 96)
        self.up_4 = nn.Conv2d(96, 48, 1)
        self.fuse_4 = _convolve(48, 48)
        self.up_2 = nn.Conv2d(48, 24, 1)
        self.fuse_2 = _convolve(24, 32)
        self.to_looks = nn.Conv2d(32, LOOKS, 3, padding=1)
        self.to_offsets = nn.Conv2d(32, 6, 3, padding=1)
        self.neck = nn.Sequential(nn.Conv2d(96, _DECODER_WIDTH, 1), LayerNorm2d(_DECODER_WIDTH))
        along = (torch.arange(IMAGE_SIZE // 2) + 0.5) / (IMAGE_SIZE // 4) - 1
        y, x = torch.meshgrid(along, along, indexing="ij")
        self.register_buffer("where", torch.stack([x, y])[None], persistent=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Encode normalised images.

        Args:
            image: Shape (B, 3, 256, 256), float32, normalised and padded.

        Returns:
            The embedding and, folded, the detail features, shape (B, 64 + 16 * 32, 32, 32).
        """
        at_2 = self.patch_embed[0](image)
        at_4 = self.patch_embed[1](at_2)
        at_8 = self.patch_embed[2](at_4)
        tokens = self.to_blocks(at_8).permute(0, 2, 3, 1) + self.pos_embed  # (B, 16, 16, 128)
        for block in self.blocks:
            tokens = block(tokens)
        up_8 = self.fuse_8(at_8 + _double(self.up_8(tokens.permute(0, 3, 1, 2))))
        up_4 = self.fuse_4(at_4 + _double(self.up_4(up_8)))
        up_2 = self.fuse_2(at_2 + _double(self.up_2(up_4)))
        where = cast(torch.Tensor, self.where).expand(len(image), -1, -1, -1)
        middles = where.repeat(1, 3, 1, 1) + self.to_offsets(up_2).float()
        places = [
            torch.cat([place, place.square().sum(1, keepdim=True)], 1)
            for place in (*middles.split(2, 1), where)
        ]
        one = torch.ones_like(where[:, :1])
        detail = torch.cat([self.to_looks(up_2), *places[:3], one, places[3]], 1)
        return torch.cat([self.neck(up_8), nn.functional.pixel_unshuffle(detail, _FOLD)], 1)


class TinyMaskDecoder(_Decoder):
    """SAM's mask decoder, which also compares every detail feature with the one at the prompt.

    A mask's logit is the product of SAM's hyper-network with two things side by side: the upscaled
    pixels, as in SAM, and the detail features. The rows for the latter are the hyper-network's plus
    a linear map of the detail feature at the first prompt token (CondInst, Tian et al., ECCV 2020,
    arXiv:2003.05664, predicts filters likewise). That feature is picked by comparing positional
    encodings; the encoding of a labelled point is used as it is, so that the embeddings of the
    labels must stay zero.
    """

    transformer_dim: int
    num_mask_tokens: int
    transformer: nn.Module
    iou_token: nn.Embedding
    mask_tokens: nn.Embedding
    output_upscaling: nn.Module
    iou_prediction_head: nn.Module

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        inner, fine = self.transformer_dim, self.transformer_dim // 8
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP(inner + DETAIL, inner, fine + DETAIL, 3) for _ in range(self.num_mask_tokens)
        )
        every = inner * (1 + self.num_mask_tokens) + DETAIL
        self.iou_prediction_head = MLP(every, 128, self.num_mask_tokens, 3)
        self.compare = nn.ModuleList(nn.Linear(DETAIL, DETAIL) for _ in range(self.num_mask_tokens))

    def split(self, embedding: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Part the encoder's output (B, C + 16 D, h, w) into (B, C, h, w) and (B, D, 4 h, 4 w)."""
        folded = embedding[:, self.transformer_dim :]
        return embedding[:, : self.transformer_dim], nn.functional.pixel_shuffle(folded, _FOLD)

    def pick(
        self, detail_D: torch.Tensor, image_pe: torch.Tensor, sparse: torch.Tensor
    ) -> torch.Tensor:
        """Give the detail feature at each prompt's first token.

        Args:
            detail_D: One image's detail features, shape (D, 4 h, 4 w).
            image_pe: Positional encoding of the embedding, shape (1, C, h, w).
            sparse: Prompt tokens, shape (K, T, C).

        Returns:
            Shape (K, D).
        """
        fine_pe = nn.functional.interpolate(
            image_pe, scale_factor=_FOLD, mode="bilinear", align_corners=False
        )[0].flatten(1)
        closeness = (sparse[:, 0] @ fine_pe) * _SHARPNESS
        return closeness.softmax(-1) @ detail_D.flatten(1).T

    def rows(self, tokens: torch.Tensor, picked: torch.Tensor, output: int) -> torch.Tensor:
        """Give one output's rows, (K, C / 8 + D), from its token (K, C) and the picked (K, D)."""
        drawn: torch.Tensor = self.output_hypernetworks_mlps[output](torch.cat([tokens, picked], 1))
        return drawn + nn.functional.pad(self.compare[output](picked), (drawn.shape[1] - DETAIL, 0))

    def predict_iou(self, tokens: torch.Tensor, picked: torch.Tensor) -> torch.Tensor:
        """Predict the IoU of all outputs, (K, M), from all output tokens (K, 1 + M, C).

        SAM asks the first token alone, which knows too little here: the masks come from `picked`.
        """
        answer: torch.Tensor = self.iou_prediction_head(torch.cat([tokens.flatten(1), picked], 1))
        return answer

    def predict_masks(
        self,
        image_embeddings: torch.Tensor,
        image_pe: torch.Tensor,
        sparse_prompt_embeddings: torch.Tensor,
        dense_prompt_embeddings: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict masks as SAM's decoder does; every prompt is of the same image.

        Returns:
            Logits (K, M, 4 h, 4 w) and predicted IoU (K, M) of all outputs.
        """
        embedding, detail = self.split(image_embeddings)
        count = len(sparse_prompt_embeddings)
        tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = tokens.expand(count, -1, -1)
        source = embedding.expand(count, -1, -1, -1) + dense_prompt_embeddings
        queries, keys = self.transformer(
            source,
            image_pe.expand(count, -1, -1, -1),
            torch.cat([tokens, sparse_prompt_embeddings], 1),
        )
        upscaled = self.output_upscaling(keys.transpose(1, 2).reshape(source.shape))
        picked = self.pick(detail[0], image_pe, sparse_prompt_embeddings)
        rows = torch.stack(
            [self.rows(queries[:, 1 + i], picked, i) for i in range(self.num_mask_tokens)], 1
        )
        fine = upscaled.shape[1]
        logits = torch.einsum("kmc,kchw->kmhw", rows[..., :fine], upscaled)
        logits = logits + torch.einsum("kmd,dhw->kmhw", rows[..., fine:], detail[0])
        return logits, self.predict_iou(queries[:, : 1 + self.num_mask_tokens], picked)


_SHARPNESS = 40.0  # of the pick: one step at stride 2 away, the share falls a thousandfold


def build_vit_tiny_demo() -> Any:
    """Build the small SAM with random weights.

    Returns:
        A `segment_anything.modeling.Sam` in evaluation mode that reads 256 x 256 pixels and gives
        masks of 128 x 128 logits. Only the three outputs of `multimask_output=True` are trained:
        the part, the whole object, the group of touching objects.
    """
    sam = Sam(
        image_encoder=TinyImageEncoder(),
        prompt_encoder=PromptEncoder(
            embed_dim=_DECODER_WIDTH,
            image_embedding_size=(EMBEDDING_SIZE, EMBEDDING_SIZE),
            input_image_size=(IMAGE_SIZE, IMAGE_SIZE),
            mask_in_chans=4,
        ),
        mask_decoder=TinyMaskDecoder(
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
    with torch.no_grad():  # the decoder picks by position alone
        for embedding in sam.prompt_encoder.point_embeddings:
            embedding.weight.zero_().requires_grad_(False)
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
        raise ConfigError(
            f"cannot read the weights of vit_tiny_demo at {path}: {why(error)}"
        ) from error
    except RuntimeError as error:
        raise ConfigError(f"{path} does not hold the weights of vit_tiny_demo") from error
    return sam
