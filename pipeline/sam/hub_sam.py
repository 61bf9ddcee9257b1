"""SAM as `transformers` keeps it, turned into a `segment_anything` Sam.

The two libraries hold the same network under different names. Renaming the weights lets
everything that is written for `segment_anything` serve checkpoints of the hub.
"""

import re
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from pipeline.errors import ConfigError
from pipeline.sam.hub_files import (
    CONFIG,
    check_one_position,
    fill_network,
    read_config,
    read_weights,
)
from pipeline.sam.hub_pixels import read_pixels
from pipeline.torchvision_ops import ensure_importable

_HYPERNETWORK_DEPTH = 3  # fixed in both libraries

_RENAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^vision_encoder\.patch_embed\.projection\.", "image_encoder.patch_embed.proj."),
        (r"^vision_encoder\.layers\.(\d+)\.layer_norm", r"image_encoder.blocks.\1.norm"),
        (r"^vision_encoder\.layers\.", "image_encoder.blocks."),
        (r"^vision_encoder\.neck\.conv1\.", "image_encoder.neck.0."),
        (r"^vision_encoder\.neck\.layer_norm1\.", "image_encoder.neck.1."),
        (r"^vision_encoder\.neck\.conv2\.", "image_encoder.neck.2."),
        (r"^vision_encoder\.neck\.layer_norm2\.", "image_encoder.neck.3."),
        (r"^vision_encoder\.", "image_encoder."),
        (
            r"^(shared_image_embedding|prompt_encoder\.shared_embedding)\.positional_embedding$",
            "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        ),
        (r"^prompt_encoder\.point_embed\.", "prompt_encoder.point_embeddings."),
        (r"^prompt_encoder\.mask_embed\.conv1\.", "prompt_encoder.mask_downscaling.0."),
        (r"^prompt_encoder\.mask_embed\.layer_norm1\.", "prompt_encoder.mask_downscaling.1."),
        (r"^prompt_encoder\.mask_embed\.conv2\.", "prompt_encoder.mask_downscaling.3."),
        (r"^prompt_encoder\.mask_embed\.layer_norm2\.", "prompt_encoder.mask_downscaling.4."),
        (r"^prompt_encoder\.mask_embed\.conv3\.", "prompt_encoder.mask_downscaling.6."),
        (r"^(mask_decoder\.transformer)\.layer_norm_final_attn\.", r"\1.norm_final_attn."),
        (r"^(mask_decoder\.transformer\.layers\.\d+)\.layer_norm", r"\1.norm"),
        (r"^mask_decoder\.upscale_conv1\.", "mask_decoder.output_upscaling.0."),
        (r"^mask_decoder\.upscale_layer_norm\.", "mask_decoder.output_upscaling.1."),
        (r"^mask_decoder\.upscale_conv2\.", "mask_decoder.output_upscaling.3."),
    )
)
_PERCEPTRON = re.compile(
    r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|(iou_prediction_head)))"
    r"\.(?:(proj_in)|(proj_out)|layers\.(\d+))\."
)


def rename_weight(name: str, iou_head_depth: int) -> str:
    """Give the name in `segment_anything` of a weight in `transformers`' SamModel.

    Args:
        name: As in `SamModel.state_dict()`; a name that is not there is given back as it is.
        iou_head_depth: Layers of the head that predicts the IoU.
    """
    if found := _PERCEPTRON.match(name):
        depth = iou_head_depth if found[2] else _HYPERNETWORK_DEPTH
        layer = 0 if found[3] else depth - 1 if found[4] else int(found[5]) + 1
        return f"{found[1]}.layers.{layer}.{name[found.end() :]}"
    for pattern, replacement in _RENAMES:
        name, count = pattern.subn(replacement, name)
        if count:
            break
    return name


def load_hub_sam(folder: Path) -> Any:
    """Load a checkpoint of `transformers`' SamModel.

    Departs from Meta's `.pth` files in the normalisations of the two-way transformer: their
    epsilon is what `config.json` says, 1e-6 by default, where `segment_anything` has 1e-5.

    Args:
        folder: Holds `config.json` and the weights, as `resolve_hub` gives it.

    Returns:
        A `segment_anything` Sam in evaluation mode on the CPU, float32.

    Raises:
        ConfigError: If the checkpoint is of another family, is damaged, asks for what
            `segment_anything` cannot do, or its weights are not exactly those of the network.
        SemiresError: If a weight is not finite.
    """
    raw = read_config(folder, "hub_sam")
    ensure_importable()
    from transformers import SamConfig

    try:
        config: Any = SamConfig.from_dict(raw)
        _check_config(config)
        with torch.device("meta"):  # the weights come from the file
            sam = _build(config)
    except Exception as error:  # whatever the two libraries raise on numbers that make no network
        raise ConfigError(f"{folder / CONFIG} is not a SAM's: {_first_line(error)}") from error
    pixels = read_pixels(folder, config.vision_config.image_size, keep_aspect=True)
    if pixels.resample != Image.Resampling.BILINEAR:
        raise ConfigError(f"{folder}: SAM scales images bilinearly, found filter {pixels.resample}")
    state = read_weights(folder)
    check_one_position(state, folder)
    depth = config.mask_decoder_config.iou_head_depth
    fill_network(sam, {rename_weight(name, depth): x for name, x in state.items()}, folder)
    sam.pixel_mean = torch.tensor(pixels.mean).view(-1, 1, 1)
    sam.pixel_std = torch.tensor(pixels.std).view(-1, 1, 1)
    return sam.eval()


def _first_line(error: Exception) -> str:
    """Say an error on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _check_config(config: Any) -> None:
    """Refuse what `segment_anything` has fixed otherwise."""
    vision, prompt, decoder = (
        config.vision_config,
        config.prompt_encoder_config,
        config.mask_decoder_config,
    )
    for name, found, expected in (
        ("vision_config.hidden_act", vision.hidden_act, "gelu"),
        ("vision_config.num_channels", vision.num_channels, 3),
        ("vision_config.output_channels", vision.output_channels, decoder.hidden_size),
        ("prompt_encoder_config.hidden_act", prompt.hidden_act, "gelu"),
        ("prompt_encoder_config.hidden_size", prompt.hidden_size, decoder.hidden_size),
        ("prompt_encoder_config.image_size", prompt.image_size, vision.image_size),
        ("prompt_encoder_config.patch_size", prompt.patch_size, vision.patch_size),
        ("prompt_encoder_config.num_point_embeddings", prompt.num_point_embeddings, 4),
        ("mask_decoder_config.hidden_act", decoder.hidden_act, "relu"),
    ):
        if found != expected:
            raise ConfigError(f"expected {name} {expected!r}, found {found!r}")


def _build(config: Any) -> Any:
    """Build a `segment_anything` Sam of the sizes in a SamConfig."""
    from segment_anything.modeling import (
        ImageEncoderViT,
        MaskDecoder,
        PromptEncoder,
        Sam,
        TwoWayTransformer,
    )

    vision, prompt = config.vision_config, config.prompt_encoder_config
    decoder, grid = config.mask_decoder_config, prompt.image_size // prompt.patch_size
    encoder = ImageEncoderViT(
        img_size=vision.image_size,
        patch_size=vision.patch_size,
        embed_dim=vision.hidden_size,
        depth=vision.num_hidden_layers,
        num_heads=vision.num_attention_heads,
        # The width is int(ratio * embed_dim); the half keeps rounding from taking one off.
        mlp_ratio=(vision.mlp_dim + 0.5) / vision.hidden_size,
        out_chans=vision.output_channels,
        qkv_bias=vision.qkv_bias,
        norm_layer=partial(nn.LayerNorm, eps=vision.layer_norm_eps),
        use_abs_pos=vision.use_abs_pos,
        use_rel_pos=vision.use_rel_pos,
        window_size=vision.window_size,
        global_attn_indexes=tuple(vision.global_attn_indexes),
    )
    prompts = PromptEncoder(
        embed_dim=prompt.hidden_size,
        image_embedding_size=(grid, grid),
        input_image_size=(prompt.image_size, prompt.image_size),
        mask_in_chans=prompt.mask_input_channels,
    )
    transformer = TwoWayTransformer(
        depth=decoder.num_hidden_layers,
        embedding_dim=decoder.hidden_size,
        num_heads=decoder.num_attention_heads,
        mlp_dim=decoder.mlp_dim,
        attention_downsample_rate=decoder.attention_downsample_rate,
    )
    for layer in transformer.layers:
        for norm in (layer.norm1, layer.norm2, layer.norm3, layer.norm4):
            norm.eps = decoder.layer_norm_eps
    for norm in (prompts.mask_downscaling[1], prompts.mask_downscaling[4]):
        norm.eps = prompt.layer_norm_eps
    masks = MaskDecoder(
        transformer_dim=decoder.hidden_size,
        transformer=transformer,
        num_multimask_outputs=decoder.num_multimask_outputs,
        iou_head_depth=decoder.iou_head_depth,
        iou_head_hidden_dim=decoder.iou_head_hidden_dim,
    )
    return Sam(encoder, prompts, masks)
