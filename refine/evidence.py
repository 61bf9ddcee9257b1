"""Core: what a strategy may look at: one image's candidates and one expression's probability.

Shape legend: N candidates, C cells, H and W pixels, h and w the network's own stride.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.cells import BoolArray, Cells, cell_sizes, pixels_per_cell, sums_per_cell

FloatArray = npt.NDArray[np.float32]
CountArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageEvidence:
    """One image's candidates, prepared once for all its expressions."""

    cells: Cells
    size_C: CountArray
    """Pixels per cell."""
    membership_NC: CountArray
    """Membership as numbers: counts are exact in float64, and the product runs in BLAS."""
    area_N: CountArray
    """Pixels per candidate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One expression's pseudo-label, against the candidates of its image.

    `prob_HW` is the teacher's foreground probability, float32 in [0, 1]; `label_HW` is P, the
    teacher's mask (p > 0.5); `intersection_N` is |P & S| and `label_area` |P|, in pixels.
    """

    image: ImageEvidence
    prob_HW: FloatArray
    label_HW: BoolArray
    label_C: CountArray
    intersection_N: CountArray
    label_area: int


def gather_image(cells: Cells) -> ImageEvidence:
    """Prepare an image's cells for the strategies."""
    size_C = cell_sizes(cells).astype(np.float64)
    membership_NC = cells.membership.astype(np.float64)
    return ImageEvidence(
        cells=cells, size_C=size_C, membership_NC=membership_NC, area_N=membership_NC @ size_C
    )


def gather(image: ImageEvidence, prob_HW: FloatArray, label_HW: BoolArray) -> Evidence:
    """Measure one pseudo-label against all candidates.

    Args:
        image: What `gather_image` gave.
        prob_HW: (H, W) float32 in [0, 1].
        label_HW: (H, W) bool, P.

    Raises:
        ValueError: If sizes differ, or a probability is not finite.
    """
    if prob_HW.shape != image.cells.size:
        raise ValueError(f"candidates are of size {image.cells.size}, probability {prob_HW.shape}")
    if not np.isfinite(prob_HW).all():
        raise ValueError("the teacher's probability is not finite")
    label_C = pixels_per_cell(image.cells, label_HW).astype(np.float64)
    return Evidence(
        image=image,
        prob_HW=prob_HW,
        label_HW=label_HW,
        label_C=label_C,
        intersection_N=image.membership_NC @ label_C,
        label_area=int(label_C.sum()),
    )


def iou_N(evidence: Evidence) -> CountArray:
    """Give |P & S| / |P | S| per candidate, eq. (6); 0 where both are empty."""
    union_N = evidence.label_area + evidence.image.area_N - evidence.intersection_N
    return _share(evidence.intersection_N, union_N)


def label_coverage_N(evidence: Evidence) -> CountArray:
    """Give |P & S| / |P| per candidate, eq. (7), the paper's inter1; 0 where P is empty.

    The paper adds a tiny epsilon to |P|; with whole pixels that only decides the empty case.
    """
    areas_N = np.full(len(evidence.intersection_N), float(evidence.label_area))
    return _share(evidence.intersection_N, areas_N)


def mask_coverage_N(evidence: Evidence) -> CountArray:
    """Give |P & S| / |S| per candidate, eq. (8), the paper's inter2; 0 where S is empty."""
    return _share(evidence.intersection_N, evidence.image.area_N)


def prob_per_cell(evidence: Evidence) -> CountArray:
    """Sum the teacher's probability over each cell, (C,) float64."""
    return sums_per_cell(evidence.image.cells, evidence.prob_HW)


def soft_iou_N(evidence: Evidence) -> CountArray:
    """Give each candidate's expected IoU if every pixel is foreground with probability p.

    sum of p in S, over |S| plus the sum of p outside S; 0 where both are empty.
    """
    prob_C = prob_per_cell(evidence)
    inside_N = evidence.image.membership_NC @ prob_C
    return _share(inside_N, evidence.image.area_N + float(prob_C.sum()) - inside_N)


def _share(part: CountArray, whole: CountArray) -> CountArray:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def expected_iou(prob_HW: FloatArray, mask_HW: BoolArray) -> float:
    """Estimate a mask's IoU with the truth, if every pixel is foreground with probability p.

    sum of p inside the mask, over mask area plus the sum of p outside; 0 if that is empty.
    """
    inside = float(prob_HW[mask_HW].sum(dtype=np.float64))
    union = float(mask_HW.sum()) + float(prob_HW.sum(dtype=np.float64)) - inside
    return inside / union if union > 0 else 0.0
