"""Core: what a strategy may look at: one image's candidates and one expression's probability.

Everything that a strategy asks is a number per candidate or per cell, made at most once per
expression; so many strategies and thresholds can be tried on one label for the price of one.

Shape legend: N candidates, C cells, H and W pixels, h and w the network's own stride.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.cells import BoolArray, Cells, cell_sizes, pixels_per_cell, sums_per_cell

FloatArray = npt.NDArray[np.float32]
CountArray = npt.NDArray[np.float64]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageEvidence:
    """One image's candidates, prepared once for all its expressions."""

    cells: Cells
    size_C: CountArray
    """Pixels per cell."""
    membership_NC: CountArray
    """Membership as numbers, F-ordered: a cell's candidates lie together. Counts are exact in
    float64, and products run in BLAS."""
    area_N: CountArray
    """Pixels per candidate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbSums:
    """Sums of the teacher's probability p, in pixels."""

    per_cell: CountArray
    """Over each cell, (C,) float64."""
    in_label: float
    """Over P."""
    in_uncovered_label: float
    """Over the pixels of P that no candidate covers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """One expression's pseudo-label, against the candidates of its image.

    P is the teacher's mask, p its probability. Strategies look at cells and candidates; the pixels
    are for drawing and weighting what they chose.
    """

    image: ImageEvidence
    prob_HW: FloatArray
    """p, float32 in [0, 1]."""
    label_HW: BoolArray
    """P."""
    label_C: CountArray
    """Pixels of P per cell."""
    label_area: int
    """Pixels of P."""
    confidence_rank: float = 1.0
    """Share of the round's labels of which the teacher is less sure, in [0, 1]."""
    _memory: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    def remember(self, key: Hashable, make: Callable[[], T]) -> T:
        """Give what `make` answered when it was first asked for `key`."""
        if key not in self._memory:
            self._memory[key] = make()
        answer: T = self._memory[key]
        return answer

    @cached_property
    def intersection_N(self) -> CountArray:
        """Count |P & S| per candidate, in pixels."""
        touched = np.flatnonzero(self.label_C)  # a label touches few of an image's cells
        return np.asarray(self.label_C[touched] @ self.image.membership_NC.T[touched])

    @cached_property
    def iou_N(self) -> CountArray:
        """Give |P & S| / |P | S| per candidate, eq. (6); 0 where both are empty."""
        union_N = self.label_area + self.image.area_N - self.intersection_N
        return _share(self.intersection_N, union_N)

    @cached_property
    def label_coverage_N(self) -> CountArray:
        """Give |P & S| / |P| per candidate, eq. (7), the paper's inter1; 0 where P is empty.

        The paper adds a tiny epsilon to |P|; with whole pixels that only decides the empty case.
        """
        areas_N = np.full(len(self.intersection_N), float(self.label_area))
        return _share(self.intersection_N, areas_N)

    @cached_property
    def mask_coverage_N(self) -> CountArray:
        """Give |P & S| / |S| per candidate, eq. (8), the paper's inter2; 0 where S is empty."""
        return _share(self.intersection_N, self.image.area_N)

    @cached_property
    def prob_total(self) -> float:
        """Sum p over the image, in pixels.

        Raises:
            ValueError: If a probability is not finite.
        """
        total = _sum_rows(self.prob_HW)
        if not np.isfinite(total):  # one pixel that is not makes the sum so
            raise ValueError("the teacher's probability is not finite")
        return total

    @cached_property
    def prob(self) -> ProbSums:
        """Sum p over cells, image and P."""
        cells = self.image.cells
        per_cell = sums_per_cell(cells, self.prob_HW)
        inside = self.prob_HW[self.label_HW]
        bare = inside[cells.cells[self.label_HW] == 0]
        return ProbSums(
            per_cell=per_cell,
            in_label=float(inside.sum(dtype=np.float64)),
            in_uncovered_label=float(bare.sum(dtype=np.float64)),
        )

    @cached_property
    def soft_iou_N(self) -> CountArray:
        """Give each candidate's expected IoU if every pixel is foreground with probability p.

        sum of p in S, over |S| plus the sum of p outside S; 0 where both are empty.
        """
        inside_N = self.image.membership_NC @ self.prob.per_cell
        return _share(inside_N, self.image.area_N + self.prob_total - inside_N)

    @cached_property
    def label_expected_iou(self) -> float:
        """Give the expected IoU of P itself."""
        return expected_share(self.prob.in_label, self.label_area, self.prob_total)


def gather_image(cells: Cells) -> ImageEvidence:
    """Prepare an image's cells for the strategies."""
    size_C = cell_sizes(cells).astype(np.float64)
    membership_NC = cells.membership.astype(np.float64, order="F")
    return ImageEvidence(
        cells=cells, size_C=size_C, membership_NC=membership_NC, area_N=membership_NC @ size_C
    )


def gather(
    image: ImageEvidence,
    prob_HW: FloatArray,
    label_HW: BoolArray,
    confidence_rank: float = 1.0,
) -> Evidence:
    """Measure one pseudo-label against all candidates.

    Args:
        image: What `gather_image` gave.
        prob_HW: (H, W) float32 in [0, 1].
        label_HW: (H, W) bool, P.
        confidence_rank: Share of the round's labels of which the teacher is less sure.

    Raises:
        ValueError: If sizes differ. A probability that is not finite is found when p is summed.
    """
    if prob_HW.shape != image.cells.size:
        raise ValueError(f"candidates are of size {image.cells.size}, probability {prob_HW.shape}")
    label_C = pixels_per_cell(image.cells, label_HW).astype(np.float64)
    return Evidence(
        image=image,
        label_C=label_C,
        label_area=int(label_C.sum()),
        confidence_rank=confidence_rank,
        prob_HW=prob_HW,
        label_HW=label_HW,
    )


def _share(part: CountArray, whole: CountArray) -> CountArray:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _sum_rows(value_HW: FloatArray) -> float:
    """Sum rows in float32 and their sums in float64: twice as fast, good to 1e-6."""
    return float(value_HW.sum(axis=1).sum(dtype=np.float64))


def expected_share(inside: float, area: float, total: float) -> float:
    """Give the expected IoU of a mask: p in it, over its area plus p outside; 0 if that is empty.

    Args:
        inside: Sum of p over the mask.
        area: Pixels of the mask.
        total: Sum of p over the image.
    """
    union = area + total - inside
    return inside / union if union > 0 else 0.0


def expected_iou(evidence: Evidence, mask_HW: BoolArray) -> float:
    """Estimate a mask's IoU with the truth, if every pixel is foreground with probability p."""
    inside = _sum_rows(np.multiply(evidence.prob_HW, mask_HW))
    return expected_share(inside, float(np.count_nonzero(mask_HW)), evidence.prob_total)
