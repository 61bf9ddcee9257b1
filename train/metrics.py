"""Overall IoU, mean IoU and precision from sums that can be added across batches and ranks.

Shape letters: N sentences, H W pixels.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""IoU that a sentence reaches to count, for precision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IoUSums:
    """Sums over sentences; every sentence counts once, however many share an object.

    `IoUSums()` is zero, and `sum(many, IoUSums())` joins them.
    """

    intersection: int = 0
    """Pixels both predicted and true, over all sentences."""
    union: int = 0
    """Pixels predicted or true, over all sentences."""
    iou: float = 0.0
    """Sum of the sentences' own IoU."""
    reached: tuple[int, ...] = (0,) * len(THRESHOLDS)
    """Sentences whose IoU is at least each of `THRESHOLDS`, as in LAVT (CRIS has a strict >)."""
    count: int = 0
    """Sentences."""

    def __add__(self, other: "IoUSums") -> "IoUSums":
        return IoUSums(
            intersection=self.intersection + other.intersection,
            union=self.union + other.union,
            iou=self.iou + other.iou,
            reached=tuple(a + b for a, b in zip(self.reached, other.reached, strict=True)),
            count=self.count + other.count,
        )

    @property
    def overall_iou(self) -> float:
        """Sum of intersections over sum of unions (oIoU, cIoU), in [0, 1]; 0 if there is none."""
        return self.intersection / self.union if self.union else 0.0

    @property
    def mean_iou(self) -> float:
        """Mean of the sentences' IoU (mIoU, gIoU), in [0, 1]; 0 if there is no sentence."""
        return self.iou / self.count if self.count else 0.0

    def precision_at(self, threshold: float) -> float:
        """Give the share of sentences whose IoU is at least the threshold; 0 without sentences.

        Raises:
            ConfigError: If it is not one of `THRESHOLDS`.
        """
        if threshold not in THRESHOLDS:
            raise ConfigError(f"precision is summed at {THRESHOLDS}, got {threshold!r}")
        return self.reached[THRESHOLDS.index(threshold)] / self.count if self.count else 0.0


def iou_sums(predicted_NHW: NDArray[np.bool_], truth_NHW: NDArray[np.bool_]) -> IoUSums:
    """Compare masks sentence by sentence.

    A sentence whose union is empty has IoU 0, as in LAVT's test script: no RefCOCO sentence is
    without an object (generalised RES would count it 1).

    Args:
        predicted_NHW: Predicted masks, shape (N, H, W), bool.
        truth_NHW: True masks at the same resolution, shape (N, H, W), bool.

    Returns:
        The sums; zero if N is 0.

    Raises:
        ConfigError: If the shapes differ or are not (N, H, W).
    """
    if predicted_NHW.shape != truth_NHW.shape or predicted_NHW.ndim != 3:
        raise ConfigError(
            f"masks to compare have one shape (N, H, W), got {predicted_NHW.shape} "
            f"and {truth_NHW.shape}"
        )
    predicted_NHW, truth_NHW = predicted_NHW.astype(bool), truth_NHW.astype(bool)
    intersection_N = np.count_nonzero(predicted_NHW & truth_NHW, axis=(1, 2))
    union_N = np.count_nonzero(predicted_NHW | truth_NHW, axis=(1, 2))
    iou_N = intersection_N / np.maximum(union_N, 1)
    return IoUSums(
        intersection=int(intersection_N.sum()),
        union=int(union_N.sum()),
        iou=float(iou_N.sum()),
        reached=tuple(int(np.count_nonzero(iou_N >= t)) for t in THRESHOLDS),
        count=len(iou_N),
    )
