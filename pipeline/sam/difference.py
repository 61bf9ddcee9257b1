"""Core: how far the masks of one image made in two ways differ.

Shape legend: N masks expected, M masks found.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from pipeline.cells import overlaps
from pipeline.sam.masks import Masks


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What differs between two sets of masks of one image."""

    num_expected: int
    """N."""
    num_found: int
    """M."""
    identical: int
    """Positions at which both have the same mask, pixel by pixel."""
    in_order: bool
    """Whether there are as many masks and each is identical to the one at its position."""
    matched_iou: float
    """Mean IoU of masks paired one to one so that it is highest, where every mask without a
    partner counts as 0; 1 if both sets are empty."""


def compare_masks(expected: Masks, found: Masks) -> Difference:
    """Compare two sets of masks of one image.

    Raises:
        ValueError: If they are of different sizes.
    """
    if expected.bits.shape[1:] != found.bits.shape[1:] or expected.width != found.width:
        raise ValueError("expected masks of one image, found two sizes")
    shared = min(len(expected), len(found))
    same = (expected.bits[:shared] == found.bits[:shared]).all(axis=(1, 2))
    identical = int(np.count_nonzero(same))
    return Difference(
        num_expected=len(expected),
        num_found=len(found),
        identical=identical,
        in_order=identical == len(expected) == len(found),
        matched_iou=_matched_iou(expected, found),
    )


def _matched_iou(expected: Masks, found: Masks) -> float:
    """Pair the masks one to one and average over the larger set."""
    larger = max(len(expected), len(found))
    if larger == 0:
        return 1.0
    shared = overlaps(np.concatenate([expected.bits, found.bits]))
    area, count = np.diag(shared), len(expected)
    both = shared[:count, count:]  # (N, M)
    either = area[:count, None] + area[count:] - both
    iou = np.divide(both, either, out=np.ones_like(both), where=either > 0)
    pairs = linear_sum_assignment(iou, maximize=True)
    return float(iou[pairs].sum() / larger)
