"""Tiny checkpoints of the SAM family with random weights, saved by transformers itself."""

import torch

from pipeline.torchvision_ops import ensure_importable

ensure_importable()

from transformers import (  # noqa: E402
    Sam2Config,
    Sam2Model,
    Sam2VideoConfig,
    Sam2VideoModel,
    SamConfig,
    SamHQConfig,
    SamHQModel,
    SamModel,
)

SIDE = 64

_VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 8,
    "window_size": 3,  # does not divide the grid of 8: windows are padded
    "global_attn_indexes": [1, 2],
    "output_channels": 32,
    "num_pos_feats": 16,
    "mlp_dim": 50,
}
_PROMPT = {"hidden_size": 32, "image_size": SIDE, "patch_size": 8, "mask_input_channels": 8}
_DECODER = {
    "hidden_size": 32,
    "mlp_dim": 40,
    "num_attention_heads": 2,
    "iou_head_hidden_dim": 24,
    "iou_head_depth": 4,
}
_HIERA = {
    "model_type": "sam2_hiera_det_model",
    "hidden_size": 8,
    "num_attention_heads": 1,
    "image_size": [SIDE, SIDE],
    "blocks_per_stage": [1, 1, 2, 1],
    "embed_dim_per_stage": [8, 16, 32, 64],
    "num_attention_heads_per_stage": [1, 2, 2, 4],
    "window_size_per_stage": [4, 2, 4, 2],
    "global_attention_blocks": [3],
    "window_positional_embedding_background_size": [3, 3],
}
_VISION_2 = {
    "backbone_config": _HIERA,
    "backbone_channel_list": [64, 32, 16, 8],
    "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
    "fpn_hidden_size": 32,
}
_PARTS_2 = {
    "vision_config": _VISION_2,
    "prompt_encoder_config": {**_PROMPT, "patch_size": 16},
    "mask_decoder_config": {k: v for k, v in _DECODER.items() if k != "iou_head_depth"},
}
_MEMORY = {
    "image_size": SIDE,
    "memory_attention_hidden_size": 32,
    "memory_attention_num_layers": 1,
    "memory_attention_feed_forward_hidden_size": 16,
    "memory_attention_rope_feat_sizes": [4, 4],
    "memory_encoder_hidden_size": 32,
    "memory_encoder_output_channels": 8,
    "memory_fuser_embed_dim": 32,
    "memory_fuser_intermediate_dim": 16,
    "mask_downsampler_embed_dim": 32,
}


def _spread(model):
    """Make every weight matter: transformers' own initial values leave embeddings near 0."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(0.2 * noise + ("norm" in name and name.endswith("weight")))
    return model.eval()


def sam_config(vision=(), decoder=()):
    return SamConfig(
        vision_config={**_VISION, **dict(vision)},
        prompt_encoder_config=_PROMPT,
        mask_decoder_config={**_DECODER, **dict(decoder)},
    )


def tiny_sam(vision=(), decoder=()):
    return _spread(SamModel(sam_config(vision, decoder)))


def tiny_sam_hq(vision=()):
    config = SamHQConfig(
        vision_config={**_VISION, **dict(vision)},
        prompt_encoder_config=_PROMPT,
        mask_decoder_config={**_DECODER, "vit_dim": 32},
    )
    return _spread(SamHQModel(config))


def tiny_sam2():
    return _spread(Sam2Model(Sam2Config(**_PARTS_2)))


def tiny_sam2_video():
    return _spread(Sam2VideoModel(Sam2VideoConfig(**_PARTS_2, **_MEMORY)))
