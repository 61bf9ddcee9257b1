"""What the small SAM is trained for, and the weights that it starts from.

Shape legend: B scenes, N prompts, L = 3 levels (region, part, object), C channels, H and W rows and
columns, S cells of the embedding.
"""

from typing import Any

import torch
from torch.nn import functional as F

from pipeline.sam.tiny_batches import Batch


def mask_iou(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Compare binary masks, shapes (..., H, W), float; an empty union counts as 0."""
    predicted, wanted = logits > 0, target > 0.5
    both = (predicted & wanted).sum((-1, -2)).float()
    return both / (predicted | wanted).sum((-1, -2)).clamp(min=1).float()


def loss_of(
    logits: torch.Tensor, iou: torch.Tensor, target: torch.Tensor, balance: float
) -> torch.Tensor:
    """Add cross-entropy or focal loss, dice and IoU-head loss, each output held to its own level.

    Departs from Segment Anything (Kirillov et al., ICCV 2023, arXiv:2304.02643) in two places.
    There the best of three outputs learns; here output 1 is always the region, 2 the part and 3
    the object, so that the store gets all three from one point. There the focal loss is used
    throughout; from random weights it settles on "nothing anywhere", so that training begins with a
    cross-entropy in which the segment and the rest weigh the same.

    Args:
        logits: Shape (N, L, H, W), float32.
        iou: Predicted IoU, shape (N, L), float32.
        target: Coverage in [0, 1], shape (N, L, H, W), float32.
        balance: Share of the balanced cross-entropy against the focal loss, in [0, 1].

    Returns:
        A scalar.
    """
    prob = torch.sigmoid(logits)
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    wanted = target.sum((-1, -2), keepdim=True)
    rest = target[0, 0].numel() - wanted
    even = target / (wanted + 1) + (1 - target) / (rest + 1)
    focal = 20 / target[0, 0].numel() * (prob.detach() - target).square()
    pixels = (entropy * (balance * even + (1 - balance) * focal)).sum((-1, -2))
    overlap = (prob * target).sum((-1, -2))
    dice = 1 - (2 * overlap + 1) / (prob.sum((-1, -2)) + target.sum((-1, -2)) + 1)
    with torch.no_grad():
        real = mask_iou(logits, target)
    return pixels.mean() + dice.mean() + F.mse_loss(iou, real)


def affinity_loss(head: torch.nn.Module, embedding: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Ask of 64 cells per scene which other cells belong to the same segment, at each level.

    It teaches the encoder without the decoder: hundreds of pairs for the price of one prompt.

    Args:
        head: A 1 x 1 convolution to 16 channels per level, used in training only.
        embedding: Shape (B, C, h, w), float32.
        batch: The scenes; cells of small segments are drawn more often.

    Returns:
        The balanced cross-entropy, a scalar.
    """
    feature = head(embedding).flatten(2).unflatten(1, (3, 16))  # (B, L, 16, S)
    segment = batch.segment.flatten(2)  # (B, L, S)
    size = F.one_hot(segment[:, 0], 256).sum(1).gather(1, segment[:, 0])
    drawn = torch.multinomial(size.float() ** -0.6, 64)  # (B, 64)
    index = drawn[:, None].expand(-1, 3, -1)
    same = (segment.gather(2, index)[..., None] == segment[:, :, None]).float()  # (B, L, 64, S)
    asked = feature.gather(3, index[:, :, None].expand(-1, -1, 16, -1))
    logits = torch.einsum("blcp,blcs->blps", asked, feature)
    entropy = F.binary_cross_entropy_with_logits(logits, same, reduction="none")
    inside = same.sum(-1, keepdim=True)
    weight = same / (inside + 1) + (1 - same) / (same.shape[-1] - inside + 1)
    return (entropy * weight).sum(-1).mean()


def initialize(sam: Any) -> None:
    """Set weights from which few steps suffice.

    Queries and keys of the attention between points and pixels start equal and values pass
    unchanged, so that a point looks at its own surroundings and carries what it sees from the first
    step; the constant embeddings start small beside the positions; the layers behind the mask
    start near unit variance.
    """
    decoder, prompts = sam.mask_decoder, sam.prompt_encoder
    crossings = [decoder.transformer.final_attn_token_to_image]
    for layer in decoder.transformer.layers:
        crossings += [layer.cross_attn_token_to_image, layer.cross_attn_image_to_token]
    with torch.no_grad():
        for attention in crossings:
            torch.nn.init.orthogonal_(attention.q_proj.weight, gain=2.0)
            attention.k_proj.weight.copy_(attention.q_proj.weight)
        for attention in (*crossings, *(layer.self_attn for layer in decoder.transformer.layers)):
            torch.nn.init.eye_(attention.v_proj.weight)
            torch.nn.init.eye_(attention.out_proj.weight)
        for embedding in (*prompts.point_embeddings, prompts.not_a_point_embed):
            embedding.weight.mul_(0.2)
        for embedding in (decoder.mask_tokens, decoder.iou_token):
            embedding.weight.mul_(0.3)
        prompts.no_mask_embed.weight.mul_(0.1)
        for network in decoder.output_hypernetworks_mlps:
            for linear in network.layers:
                torch.nn.init.kaiming_normal_(linear.weight)
        first, second = decoder.output_upscaling[0], decoder.output_upscaling[3]
        first.weight.normal_(0, first.in_channels**-0.5)
        second.weight.normal_(0, 0.3 * second.in_channels**-0.5)
