"""Losses on logits: supervised, and unsupervised on weighted pseudo-labels.

Shape letters: B batch, H W pixels of the label, h w pixels of the logits.
Labels are 0, 1 or 255 (ignored). A loss over no pixel is 0 and still differentiable.

Every mean is a sum divided by a total. Given the totals of a larger batch, a part of it gives its
share of that batch's loss, so that parts on several processes or one after the other add up to it.
"""

from typing import Literal, NamedTuple

import torch
from torch.nn import functional as F

from pipeline.errors import ConfigError
from train.networks import upsample

IGNORE = 255
"""Label of a pixel that no loss counts."""
RELEASED_CLASS_WEIGHTS = (0.9, 1.1)
"""Weights of background and foreground in LAVT's and SemiRES's code."""
Balance = Literal["per_sample", "branch"]


class Totals(NamedTuple):
    """What the losses of one step are divided by."""

    labelled_weight: float
    """Class weights of all labelled pixels."""
    labelled: float
    """Labelled samples."""
    pseudo: float
    """Samples with a pseudo-label."""
    refined_weight: float
    """Class weights of the pixels of refined samples."""
    kept_weight: float
    """Pixels of samples with the teacher's own mask."""


def _pixel_loss(logits_B2hw: torch.Tensor, label_BHW: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of every pixel at the label's size, 0 where ignored; shape (B, H, W)."""
    size = (label_BHW.shape[-2], label_BHW.shape[-1])
    logits_B2HW = upsample(logits_B2hw, size).float()
    return F.cross_entropy(logits_B2HW, label_BHW.long(), ignore_index=IGNORE, reduction="none")


def _class_weight(
    label_BHW: torch.Tensor, class_weights: tuple[float, float] | None
) -> torch.Tensor:
    """Weight of every pixel by its label, 0 where ignored; shape (B, H, W), float32."""
    background, foreground = class_weights or (1.0, 1.0)
    weight_BHW = torch.where(label_BHW == 1, foreground, background)
    return torch.where(label_BHW == IGNORE, 0.0, weight_BHW)


def _ratio(numerator: torch.Tensor, denominator: torch.Tensor) -> torch.Tensor:
    """Divide, giving 0 where the denominator is 0 (the numerator is 0 there too)."""
    return numerator / torch.where(denominator > 0, denominator, 1.0)


def _share(part: torch.Tensor, total: float) -> torch.Tensor:
    """Divide a sum by a total over more than it, giving 0 where the total is 0."""
    return part / part.new_tensor(total if total > 0 else 1.0)


def _pseudo_weight(
    label_BHW: torch.Tensor, refined_B: torch.Tensor, class_weights: tuple[float, float] | None
) -> torch.Tensor:
    """Give the class weight of every pixel of pseudo-labels, equal where not refined."""
    return torch.where(
        refined_B[:, None, None],
        _class_weight(label_BHW, class_weights),
        _class_weight(label_BHW, None),
    )


def batch_totals(
    label_BHW: torch.Tensor,
    refined_B: torch.Tensor,
    num_labelled: int,
    *,
    class_weights: tuple[float, float] | None = RELEASED_CLASS_WEIGHTS,
    valid_B: torch.Tensor | None = None,
) -> Totals:
    """Sum up what the losses of one batch are divided by.

    Args:
        label_BHW: Labels, shape (B, H, W), integer: 0, 1 or 255; human ones first.
        refined_B: True where SAM's masks decided the label, shape (B,), bool.
        num_labelled: Samples with a human label.
        class_weights: Weights of background and foreground, None for equal ones.
        valid_B: False for a sample that stands for one that cannot be read and has only ignored
            pixels, shape (B,), bool; None means True.

    Returns:
        The totals; those of several batches may be added number by number.
    """
    valid_B = torch.ones_like(refined_B) if valid_B is None else valid_B
    n = num_labelled
    refined_u = refined_B[n:]
    pixels_u = _pseudo_weight(label_BHW[n:], refined_u, class_weights).sum((1, 2))
    sums = (
        _class_weight(label_BHW[:n], class_weights).sum(),
        valid_B[:n].sum(),
        valid_B[n:].sum(),
        pixels_u[refined_u].sum(),
        pixels_u[~refined_u].sum(),
    )
    return Totals(*torch.stack([value.double() for value in sums]).tolist())


def dice_loss(
    logits_B2hw: torch.Tensor, label_BHW: torch.Tensor, weight_BHW: torch.Tensor | None = None
) -> torch.Tensor:
    """Give 1 - (2 |P G| + 1) / (|P| + |G| + 1) per sample, P the foreground probability.

    Not in SemiRES, whose released code imports a dice loss that it neither ships nor uses. It
    keeps a network from the all-background answer while objects cover a few percent of a scene.

    Args:
        logits_B2hw: Shape (B, 2, h, w), floating.
        label_BHW: Shape (B, H, W), integer: 0, 1 or 255.
        weight_BHW: Weight of every pixel in all three sums, shape (B, H, W); None means 1.

    Returns:
        Shape (B,), in [0, 1).
    """
    size = (label_BHW.shape[-2], label_BHW.shape[-1])
    prob_BHW = upsample(logits_B2hw, size).float().softmax(dim=1)[:, 1]
    weight_BHW = (label_BHW != IGNORE) * (1.0 if weight_BHW is None else weight_BHW)
    truth_BHW = (label_BHW == 1).float()
    overlap_B = (weight_BHW * prob_BHW * truth_BHW).sum((1, 2))
    total_B = (weight_BHW * (prob_BHW + truth_BHW)).sum((1, 2))
    return 1 - (2 * overlap_B + 1) / (total_B + 1)


def supervised_loss(
    logits_B2hw: torch.Tensor,
    label_BHW: torch.Tensor,
    *,
    class_weights: tuple[float, float] | None = RELEASED_CLASS_WEIGHTS,
    dice: float = 0.0,
    totals: Totals | None = None,
) -> torch.Tensor:
    """Give the loss on human labels: two-class cross-entropy, and dice if asked for.

    SemiRES (Yang et al., ICML 2024, arXiv:2406.01451), equation 1, in the form of the released
    code: softmax over two classes in place of a sigmoid, a mean weighted by class.

    Args:
        logits_B2hw: Shape (B, 2, h, w), floating; upsampled to the label's size here.
        label_BHW: Shape (B, H, W), integer: 0, 1 or 255.
        class_weights: Weights of background and foreground, or None for equal ones.
        dice: Factor of the batch's mean dice loss, at least 0; 0 leaves it out.
        totals: Of the batch that this one is a part of; None: it is the whole.

    Returns:
        Scalar, float32.
    """
    if totals is None:
        everything_B = torch.ones(len(label_BHW), dtype=torch.bool, device=label_BHW.device)
        totals = batch_totals(label_BHW, everything_B, len(label_BHW), class_weights=class_weights)
    weight_BHW = _class_weight(label_BHW, class_weights)
    loss_sum = (weight_BHW * _pixel_loss(logits_B2hw, label_BHW)).sum()
    loss = _share(loss_sum, totals.labelled_weight)
    if dice:
        loss = loss + dice * _sample_mean(dice_loss(logits_B2hw, label_BHW), totals.labelled)
    return loss


def unsupervised_loss(
    logits_B2hw: torch.Tensor,
    label_BHW: torch.Tensor,
    weight_BHW: torch.Tensor,
    refined_B: torch.Tensor,
    *,
    balance: Balance = "per_sample",
    class_weights: tuple[float, float] | None = None,
    dice: float = 0.0,
    totals: Totals | None = None,
) -> torch.Tensor:
    """Give the loss on pseudo-labels, every pixel with its own weight.

    SemiRES, equation 10: the mean of weight * cross-entropy. The weight scales the loss as well,
    it is not divided out. `branch` is the released code's mixture (L_sam + L_pwa) / 2, whatever
    the counts, and the other branch alone if one is empty; `per_sample`, the default, gives every
    sample the same say. Class weights concern refined samples only, as in the released code, and
    are divided out as in a weighted mean.

    Args:
        logits_B2hw: Shape (B, 2, h, w), floating; upsampled to the label's size here.
        label_BHW: Pseudo-labels, shape (B, H, W), integer: 0, 1 or 255.
        weight_BHW: Weight of every pixel, shape (B, H, W), at least 0; the released code's is 1
            on refined samples.
        refined_B: True where SAM's masks decided the label, shape (B,), bool.
        balance: How samples are averaged.
        class_weights: Weights of background and foreground in refined samples, None for equal.
        dice: Factor of the dice loss, whose sums are weighted by pixel and which counts by its
            sample's mean weight; 0 leaves it out. Not in SemiRES.
        totals: Of the batch that this one is a part of; None: it is the whole.

    Returns:
        Scalar, float32; 0 for an empty batch.

    Raises:
        ConfigError: If `balance` is unknown.
    """
    if balance not in ("per_sample", "branch"):
        raise ConfigError(f"balance is 'per_sample' or 'branch', got {balance!r}")
    if totals is None:
        totals = batch_totals(label_BHW, refined_B, 0, class_weights=class_weights)
    class_BHW = _pseudo_weight(label_BHW, refined_B, class_weights)
    loss_B = (class_BHW * weight_BHW * _pixel_loss(logits_B2hw, label_BHW)).sum((1, 2))
    if balance == "branch":
        loss = _branch_mean(loss_B, refined_B, totals)
    else:
        loss = _sample_mean(_ratio(loss_B, class_BHW.sum((1, 2))), totals.pseudo)
    if dice:
        valid_BHW = label_BHW != IGNORE
        trust_B = _ratio((weight_BHW * valid_BHW).sum((1, 2)), valid_BHW.sum((1, 2)))
        dice_B = trust_B * dice_loss(logits_B2hw, label_BHW, weight_BHW)
        loss = loss + dice * _sample_mean(dice_B, totals.pseudo)
    return loss


def _sample_mean(loss_B: torch.Tensor, count: float) -> torch.Tensor:
    return loss_B.sum() / max(count, 1)


def _branch_mean(loss_B: torch.Tensor, refined_B: torch.Tensor, totals: Totals) -> torch.Tensor:
    """Average the pixel means of refined and other samples, leaving out a branch without pixels."""
    refined = _share(loss_B[refined_B].sum(), totals.refined_weight)
    kept = _share(loss_B[~refined_B].sum(), totals.kept_weight)
    present = (totals.refined_weight > 0) + (totals.kept_weight > 0)
    return (refined + kept) / max(present, 1)


def total_loss(
    supervised: torch.Tensor,
    unsupervised: torch.Tensor,
    *,
    lambda_sup: float = 1.0,
    lambda_unsup: float = 1.0,
) -> torch.Tensor:
    """Give lambda_sup * L_sup + lambda_unsup * L_unsup (SemiRES, equation 4).

    The paper gives no values; the released code has 10 : 1 with IOM and 1 : 1 with CPI.
    """
    return lambda_sup * supervised + lambda_unsup * unsupervised
