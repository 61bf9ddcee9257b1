"""Overall IoU, mean IoU and precision from sums that can be added across batches and ranks.

All sums are whole numbers, so that any partition of the sentences gives the same bits. Shape
letters: N sentences, H W pixels.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""IoU that a sentence reaches to count, for precision."""
TICKS = 1 << 105
"""Parts of an IoU of 1. A quotient of whole numbers below 2 ** 53 is, as float64, a whole number
of these parts: at least 2 ** -53, and its last bit 52 places lower."""
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class IoUSums:
    """Sums over sentences; every sentence counts once, however many share an object.

    `IoUSums()` is zero, and `add_up` joins many.
    """

    intersection: int = 0
    """Pixels both predicted and true, over all sentences."""
    union: int = 0
    """Pixels predicted or true, over all sentences."""
    iou_ticks: int = 0
    """Sum of the sentences' own IoU, in parts of `TICKS`: exact, unlike a sum of floats."""
    reached: tuple[int, ...] = (0,) * len(THRESHOLDS)
    """Sentences whose IoU is at least each of `THRESHOLDS`, as in LAVT (CRIS has a strict >)."""
    count: int = 0
    """Sentences."""

    def __add__(self, other: "IoUSums") -> "IoUSums":
        return IoUSums(
            intersection=self.intersection + other.intersection,
            union=self.union + other.union,
            iou_ticks=self.iou_ticks + other.iou_ticks,
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
        return self.iou_ticks / (self.count * TICKS) if self.count else 0.0

    def precision_at(self, threshold: float) -> float:
        """Give the share of sentences whose IoU is at least the threshold; 0 without sentences.

        Raises:
            ConfigError: If it is not one of `THRESHOLDS`.
        """
        if threshold not in THRESHOLDS:
            raise ConfigError(f"precision is summed at {THRESHOLDS}, got {threshold!r}")
        return self.reached[THRESHOLDS.index(threshold)] / self.count if self.count else 0.0


def add_up(parts: Iterable[IoUSums]) -> IoUSums:
    """Join sums over disjoint sentences: batches, shards or ranks, in any order, to the bit."""
    return sum(parts, IoUSums())


def iou_of(intersection_N: IntArray, union_N: IntArray) -> NDArray[np.float64]:
    """Give the sentences' own IoU, (N,), in [0, 1].

    A sentence whose union is empty has IoU 0, as in LAVT's test script: no RefCOCO sentence is
    without an object (generalised RES would count it 1).
    """
    return np.asarray(intersection_N / np.maximum(union_N, 1), np.float64)


def sum_up(intersection_N: IntArray, union_N: IntArray) -> IoUSums:
    """Sum sentences of which the pixels are counted; zero if N is 0.

    Args:
        intersection_N: Pixels both predicted and true, (N,), integer, at most the union.
        union_N: Pixels predicted or true, (N,), integer, below 2 ** 53.
    """
    iou_N = iou_of(intersection_N, union_N)
    ratios = (value.as_integer_ratio() for value in iou_N.tolist())
    return IoUSums(
        intersection=int(np.sum(intersection_N, dtype=np.int64)),
        union=int(np.sum(union_N, dtype=np.int64)),
        iou_ticks=sum(over * (TICKS // under) for over, under in ratios),
        reached=tuple(int(np.count_nonzero(iou_N >= t)) for t in THRESHOLDS),
        count=len(iou_N),
    )


def count_pixels(
    predicted_NHW: NDArray[np.bool_], truth_NHW: NDArray[np.bool_]
) -> tuple[IntArray, IntArray]:
    """Count the pixels of intersection and union, sentence by sentence.

    Args:
        predicted_NHW: Predicted masks, shape (N, H, W), bool.
        truth_NHW: True masks at the same resolution, shape (N, H, W), bool.

    Returns:
        Intersection and union, (N,) each, int64.

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
    return np.asarray(intersection_N, np.int64), np.asarray(union_N, np.int64)


def iou_sums(predicted_NHW: NDArray[np.bool_], truth_NHW: NDArray[np.bool_]) -> IoUSums:
    """Compare masks sentence by sentence and sum; arguments and errors of `count_pixels`."""
    return sum_up(*count_pixels(predicted_NHW, truth_NHW))
