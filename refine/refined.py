"""Core: what every strategy answers with."""

from dataclasses import dataclass

import numpy as np

from pipeline.cells import BoolArray, mask_of_cells
from refine.evidence import Evidence, FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Refined:
    """One refined label.

    `mask_HW` is (H, W) bool; `weight_HW` (H, W) float32 in [0, 1], or None for 1 everywhere;
    `source` is the strategy that decided; `score` the quantity that it compared or weighed, in
    [0, 1]; `num_chosen` the candidates that it merged.
    """

    mask_HW: BoolArray
    weight_HW: FloatArray | None
    source: str
    score: float
    num_chosen: int


def union_of(source: str, evidence: Evidence, chosen_N: BoolArray, score: float) -> Refined:
    """Give the union of the chosen candidates, (N,) bool, with weight 1 everywhere."""
    cells = evidence.image.cells
    chosen_C = np.any(cells.membership[chosen_N], axis=0)
    return Refined(
        mask_HW=mask_of_cells(cells, chosen_C),
        weight_HW=None,
        source=source,
        score=score,
        num_chosen=int(chosen_N.sum()),
    )


def check_share(name: str, value: float) -> None:
    """Refuse a number outside [0, 1].

    Raises:
        ValueError: Names the field.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: expected a number in [0, 1], found {value}")
