"""Core: what every strategy answers with: a choice of cells, drawn as pixels later.

Shape legend: N candidates, C cells, H and W pixels.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.cells import BoolArray, mask_of_cells
from refine.evidence import CountArray, Evidence, FloatArray, expected_share


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One label in cell space."""

    source: str
    """The strategy that decided."""
    score: float
    """The quantity that it compared or weighed, in [0, 1]."""
    num_chosen: int = 0
    """Candidates that it merged."""
    chosen_C: BoolArray | None = None
    """(C,) bool, cells that are foreground; column 0 is False. None: the teacher's mask P."""
    keep_uncovered: bool = False
    """Whether the pixels of P that no candidate covers are foreground too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refined:
    """One refined label, drawn."""

    mask_HW: BoolArray
    """(H, W) bool."""
    weight_HW: FloatArray | None
    """(H, W) float32 in [0, 1]; None for 1 everywhere."""
    source: str
    """The strategy that decided."""
    score: float
    """The quantity that it compared or weighed, in [0, 1]."""
    num_chosen: int
    """Candidates that it merged."""


def check_share(name: str, value: float) -> None:
    """Refuse a number outside [0, 1].

    Raises:
        ValueError: Names the field.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: expected a number in [0, 1], found {value}")


def union_of(source: str, evidence: Evidence, chosen_N: BoolArray, score: float) -> Choice:
    """Choose the union of candidates, (N,) bool."""
    chosen_C = evidence.remember(
        ("cells of", chosen_N.tobytes()),
        lambda: np.any(evidence.image.cells.membership[chosen_N], axis=0),
    )
    count = int(np.count_nonzero(chosen_N))
    return Choice(source=source, score=score, num_chosen=count, chosen_C=chosen_C)


def draw(evidence: Evidence, choice: Choice) -> BoolArray:
    """Draw a choice as a mask, (H, W) bool."""
    if choice.chosen_C is None:
        return evidence.label_HW
    mask_HW = mask_of_cells(evidence.image.cells, choice.chosen_C)
    if choice.keep_uncovered:
        mask_HW = mask_HW | (evidence.label_HW & (evidence.image.cells.cells == 0))
    return mask_HW


def area_of(evidence: Evidence, choice: Choice) -> float:
    """Count the pixels of a choice without drawing it."""
    if choice.chosen_C is None:
        return evidence.label_area
    uncovered = float(evidence.label_C[0]) if choice.keep_uncovered else 0.0
    return float(evidence.image.size_C[choice.chosen_C].sum()) + uncovered


def expected_iou_of(evidence: Evidence, choice: Choice) -> float:
    """Give a choice's expected IoU under p without drawing it; as `expected_iou` of its mask."""
    if choice.chosen_C is None:
        return evidence.label_expected_iou
    inside = float(evidence.prob.per_cell[choice.chosen_C].sum())
    if choice.keep_uncovered:
        inside += evidence.prob.in_uncovered_label
    return expected_share(inside, area_of(evidence, choice), evidence.prob_total)


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthCounts:
    """A truth in cell space, in pixels, for one expression."""

    per_cell: CountArray
    """Pixels of the truth in each cell, (C,) float64."""
    area: float
    """Pixels of the truth."""
    in_label: float
    """Pixels of the truth in P."""
    in_uncovered_label: float
    """Pixels of the truth in the part of P that no candidate covers."""


def count_truth(evidence: Evidence, truth_HW: BoolArray) -> TruthCounts:
    """Count a truth's pixels, (H, W) bool, per cell and in P."""
    cells = evidence.image.cells
    per_cell = np.bincount(cells.cells[truth_HW], minlength=cells.num_cells)
    common = cells.cells[truth_HW & evidence.label_HW]
    return TruthCounts(
        per_cell=per_cell.astype(np.float64),
        area=float(per_cell.sum()),
        in_label=float(len(common)),
        in_uncovered_label=float(np.count_nonzero(common == 0)),
    )


def overlap_with(evidence: Evidence, choice: Choice, truth: TruthCounts) -> tuple[float, float]:
    """Give intersection and union of a choice with the truth, in pixels, without drawing it."""
    if choice.chosen_C is None:
        inside = truth.in_label
    else:
        inside = float(truth.per_cell[choice.chosen_C].sum())
        if choice.keep_uncovered:
            inside += truth.in_uncovered_label
    return inside, area_of(evidence, choice) + truth.area - inside
