"""What the small SAM is trained for, and the weights that it starts from.

Shape legend: B pictures, N prompts, L = 3 levels (part, object, group), C channels of the
embedding, D of the detail features, H and W rows and columns, S pixels at stride 4.
"""

from typing import Any

import torch
from torch.nn import functional as F

from pipeline.sam.tiny import CENTRES, DETAIL, LOOKS
from pipeline.sam.tiny_batches import PADDING, Batch


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
    There the best of three outputs learns; here output 1 is always the part, 2 the object and 3
    the group, so that the store gets all three from one point. There the focal loss is used
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
    with torch.no_grad():
        real = mask_iou(logits, target)
    dice = dice_loss(logits.flatten(2), target.flatten(2))
    return pixels.mean() + dice + F.mse_loss(iou, real)


def dice_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Give the mean dice loss of masks flattened to (..., S), a scalar."""
    prob = torch.sigmoid(logits)
    overlap = (prob * target).sum(-1)
    return (1 - (2 * overlap + 1) / (prob.sum(-1) + target.sum(-1) + 1)).mean()


def affinity_loss(sam: Any, embedding: torch.Tensor, batch: Batch, asked: int = 96) -> torch.Tensor:
    """Ask of some pixels per picture which others belong to the same segment, at each level.

    It teaches the encoder and the decoder's comparison of detail features without its transformer:
    hundreds of prompts for the price of one.

    Args:
        sam: The small SAM.
        embedding: What its encoder gave, shape (B, C + 16 D, h, w), float32.
        batch: The pictures; pixels of small segments are drawn more often.
        asked: Pixels per picture.

    Returns:
        The balanced cross-entropy plus dice, a scalar.
    """
    decoder = sam.mask_decoder
    detail = decoder.split(embedding)[1][..., 1::2, 1::2].flatten(2)  # (B, D, S)
    segment = batch.segment.flatten(2)  # (B, L, S)
    size = F.one_hot(segment[:, 0], 256).sum(1).gather(1, segment[:, 0])
    share = size.float() ** -0.6 * (segment[:, 0] != PADDING)
    drawn = torch.multinomial(share, asked)  # (B, asked)
    index = drawn[:, None].expand(-1, segment.shape[1], -1)
    same = (segment.gather(2, index)[..., None] == segment[:, :, None]).float()  # (B, L, asked, S)
    picked = detail.gather(2, drawn[:, None].expand(-1, detail.shape[1], -1)).transpose(1, 2)
    rows = torch.stack([compare(picked) for compare in decoder.compare[1:]], 1)
    logits = rows @ detail[:, None]  # (B, L, asked, S)
    entropy = F.binary_cross_entropy_with_logits(logits, same, reduction="none")
    inside = same.sum(-1, keepdim=True)
    weight = same / (inside + 1) + (1 - same) / (same.shape[-1] - inside + 1)
    return (entropy * weight).sum(-1).mean() + dice_loss(logits, same)


def initialize(sam: Any) -> None:
    """Set weights from which few steps suffice.

    Detail features are compared by their plain product at first, beside which the hyper-network
    starts small. Queries and keys of the attention between points and pixels start equal and values
    pass unchanged, so that a point looks at its own surroundings and carries what it sees from the
    first step; the constant embeddings start small beside the positions.
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
        prompts.not_a_point_embed.weight.mul_(0.2)
        for embedding in (decoder.mask_tokens, decoder.iou_token):
            embedding.weight.mul_(0.3)
        prompts.no_mask_embed.weight.mul_(0.1)
        for compare in decoder.compare:
            torch.nn.init.eye_(compare.weight)
            torch.nn.init.zeros_(compare.bias)
        torch.nn.init.zeros_(sam.image_encoder.to_offsets.weight)
        torch.nn.init.zeros_(sam.image_encoder.to_offsets.bias)
        for network in decoder.output_hypernetworks_mlps:
            for linear in network.layers:
                torch.nn.init.kaiming_normal_(linear.weight)
            network.layers[-1].weight.mul_(0.1)
        first, second = decoder.output_upscaling[0], decoder.output_upscaling[3]
        first.weight.normal_(0, first.in_channels**-0.5)
        second.weight.normal_(0, 0.3 * second.in_channels**-0.5)
    localize(sam)


def localize(sam: Any) -> None:
    """Let a mask fade with the squared distance between the middles of two pixels' segments.

    -|u - v|^2 is bilinear in (1, x, y, x^2 + y^2), which detail features hold of every middle.
    Without it the model finds what looks like the prompt, anywhere in the picture, and stays there.
    """
    one = DETAIL - 4
    for level, (compare, fading) in enumerate(
        zip(sam.mask_decoder.compare[1:], (20.0, 12.0, 6.0), strict=True)
    ):
        x, y, square = range(LOOKS + 3 * level, LOOKS + 3 * level + 3)
        with torch.no_grad():
            compare.weight[LOOKS:] = 0
            compare.weight[:, LOOKS:] = 0
            compare.weight[x, x] = compare.weight[y, y] = 2 * fading
            compare.weight[square, one] = compare.weight[one, square] = -fading
            compare.bias[one] = 2.0


def centre_loss(sam: Any, embedding: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Ask every pixel of the picture where the middle of its part, object and group is.

    Args:
        sam: The small SAM.
        embedding: What its encoder gave, shape (B, C + 16 D, h, w), float32.
        batch: The pictures.

    Returns:
        Mean distance, in units in which the picture is 2 wide, a scalar.
    """
    detail = sam.mask_decoder.split(embedding)[1][:, CENTRES, 1::2, 1::2].flatten(2)
    told = detail.unflatten(1, (3, 3))[:, :, :2]  # (B, L, 2, S)
    height, width = batch.segment.shape[2:]
    y, x = torch.meshgrid(
        (torch.arange(height) + 0.5) * 2 / height - 1,
        (torch.arange(width) + 0.5) * 2 / width - 1,
        indexing="ij",
    )
    segment = batch.segment.flatten(2)  # (B, L, S)
    sums = torch.zeros(*segment.shape[:2], 3, 256)
    for row, value in enumerate((x.flatten(), y.flatten(), torch.ones(height * width))):
        sums[:, :, row].scatter_add_(2, segment, value.expand_as(segment))
    middle = sums[:, :, :2] / sums[:, :, 2:].clamp(min=1)  # (B, L, 2, 256)
    wanted = middle.gather(3, segment[:, :, None].expand(-1, -1, 2, -1))
    size = sums[:, :, 2].gather(2, segment)
    weight = size.clamp(min=1) ** -0.5 * (segment != PADDING)
    distance = (told - wanted).square().sum(2).add(1e-6).sqrt()
    mean: torch.Tensor = (distance * weight).sum() / weight.sum().clamp(min=1)
    return mean
