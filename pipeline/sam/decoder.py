"""SAM's mask decoder over many points of one image, with what the points share done once.

`segment_anything.modeling.MaskDecoder` copies the image embedding for every prompt, projects each
copy and draws every mask. The functions here give the same numbers from the same weights, to the
last bits or up to rounding (see `attention`): the first layer's image side is not copied, and the
masks are drawn only for the points that are still wanted once the predicted IoU is known.

Shape legend: K prompts, T tokens of a prompt, S pixels of the embedding, C channels, M masks of a
prompt.
"""

from typing import Any

import torch
from torch.nn import functional as F

from pipeline.sam.attention import REASSOCIATED, Attention
from pipeline.sam.tiny import TinyMaskDecoder


def run_transformer(
    transformer: Any,
    keys_1SC: torch.Tensor,
    pe_SC: torch.Tensor,
    tokens_KTC: torch.Tensor,
    attention: Attention,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run SAM's two-way transformer for prompts that share one image.

    Args:
        transformer: A `segment_anything` TwoWayTransformer.
        keys_1SC: Image embedding plus dense prompt embedding, float32.
        pe_SC: Positional encoding of the pixels, float32.
        tokens_KTC: Output tokens and prompt tokens, float32.
        attention: How tokens and pixels attend to each other.

    Returns:
        The tokens (K, T, C) and the pixels (K, S, C) after attention, float32.
    """
    queries, keys = tokens_KTC, keys_1SC
    for layer in transformer.layers:
        if layer.skip_first_layer_pe:
            queries = layer.self_attn(q=queries, k=queries, v=queries)
        else:
            with_pe = queries + tokens_KTC
            queries = queries + layer.self_attn(q=with_pe, k=with_pe, v=queries)
        queries = layer.norm1(queries)
        asked = attention.ask(layer.cross_attn_token_to_image, queries + tokens_KTC, keys, pe_SC)
        queries = layer.norm2(queries + asked)
        queries = layer.norm3(queries + layer.mlp(queries))
        keys = layer.norm4(
            attention.tell(
                layer.cross_attn_image_to_token, keys, pe_SC, queries + tokens_KTC, queries
            )
        )
    last = attention.ask(transformer.final_attn_token_to_image, queries + tokens_KTC, keys, pe_SC)
    return transformer.norm_final_attn(queries + last), keys


def decode_tokens(
    sam: Any,
    embedding: torch.Tensor,
    sparse: torch.Tensor,
    attention: Attention = REASSOCIATED,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Decode point prompts up to, but without, drawing the masks.

    Args:
        sam: A `segment_anything` Sam.
        embedding: One image's embedding, shape (1, C, h, w), float32.
        sparse: The prompt encoder's tokens of each prompt, shape (K, T', C), float32.
        attention: How tokens and pixels attend to each other.

    Returns:
        Predicted IoU (K, M), the hyper-network's rows (K, M, C / 8), longer for the small SAM, and
        the pixels (K, h * w, C), for the outputs of `multimask_output=True`.
    """
    decoder = sam.mask_decoder
    detail = None
    if isinstance(decoder, TinyMaskDecoder):
        embedding, detail = decoder.split(embedding)
    first = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([first.expand(len(sparse), -1, -1), sparse], 1)
    no_mask = sam.prompt_encoder.no_mask_embed.weight  # (1, C), the dense prompt of "no mask"
    keys = embedding.flatten(2).transpose(1, 2) + no_mask
    with torch.autocast(embedding.device.type, enabled=False):
        image_pe = sam.prompt_encoder.get_dense_pe()
    pe_SC = image_pe.flatten(2)[0].T
    queries, pixels = run_transformer(decoder.transformer, keys, pe_SC, tokens, attention)
    count = decoder.num_mask_tokens
    if detail is None:
        rows = [decoder.output_hypernetworks_mlps[i](queries[:, 1 + i]) for i in range(1, count)]
        iou = decoder.iou_prediction_head(queries[:, 0])
    else:
        picked = decoder.pick(detail[0], image_pe, sparse)
        rows = [decoder.rows(queries[:, 1 + i], picked, i) for i in range(1, count)]
        iou = decoder.predict_iou(queries[:, : 1 + count], picked)
    return iou[:, 1:], torch.stack(rows, 1), pixels


def draw_masks(
    sam: Any, embedding: torch.Tensor, rows_KMC: torch.Tensor, pixels_KSC: torch.Tensor
) -> torch.Tensor:
    """Draw the masks of decoded prompts.

    Args:
        sam: A `segment_anything` Sam.
        embedding: The image's embedding, as given to `decode_tokens`.
        rows_KMC: Rows of the hyper-network from `decode_tokens`.
        pixels_KSC: Pixels from `decode_tokens`.

    Returns:
        Logits, shape (K, M, 4 h, 4 w), float32.
    """
    up_first, norm, activation, up_second, _ = sam.mask_decoder.output_upscaling
    height, width = sam.prompt_encoder.image_embedding_size
    # A transposed convolution of size 2 and stride 2 is one matrix per pixel: (C, 2 * 2 * C').
    weight = up_first.weight.permute(0, 2, 3, 1)  # (C, 2, 2, C / 4)
    fine = (pixels_KSC @ weight.flatten(1)).unflatten(-1, (4, -1)) + up_first.bias
    fine = activation(F.layer_norm(fine, norm.weight.shape, norm.weight, norm.bias, norm.eps))
    weight = up_second.weight.permute(0, 2, 3, 1)  # (C / 4, 2, 2, C / 8)
    finest = activation((fine @ weight.flatten(1)).unflatten(-1, (4, -1)) + up_second.bias)
    channels = finest.shape[-1]
    flat = torch.bmm(rows_KMC[..., :channels], finest.flatten(1, 3).transpose(1, 2))
    grid = flat.unflatten(-1, (height, width, 2, 2, 2, 2)).permute(0, 1, 2, 4, 6, 3, 5, 7)
    logits: torch.Tensor = grid.reshape(*flat.shape[:2], 4 * height, 4 * width)
    if isinstance(sam.mask_decoder, TinyMaskDecoder):
        detail = sam.mask_decoder.split(embedding)[1][0]
        logits = logits + (rows_KMC[..., channels:] @ detail.flatten(1)).view_as(logits)
    return logits


def draw_masks_in_order(
    sam: Any, embedding: torch.Tensor, rows_KMC: torch.Tensor, pixels_KSC: torch.Tensor
) -> torch.Tensor:
    """Draw the masks of decoded prompts as `draw_masks`, summing in segment-anything's order."""
    height, width = sam.prompt_encoder.image_embedding_size
    source = pixels_KSC.transpose(1, 2).unflatten(-1, (height, width))
    upscaled = sam.mask_decoder.output_upscaling(source)
    channels = upscaled.shape[1]
    if not isinstance(sam.mask_decoder, TinyMaskDecoder):
        product: torch.Tensor = (rows_KMC @ upscaled.flatten(2)).unflatten(-1, upscaled.shape[2:])
        return product
    detail = sam.mask_decoder.split(embedding)[1][0]
    coarse: torch.Tensor = torch.einsum("kmc,kchw->kmhw", rows_KMC[..., :channels], upscaled)
    coarse += torch.einsum("kmd,dhw->kmhw", rows_KMC[..., channels:], detail)
    return coarse
