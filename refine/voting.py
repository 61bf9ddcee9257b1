"""Core: strategies of ours, not in the paper, on the teacher's probability per cell.

Shape legend: N candidates, C cells, H and W pixels.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.cells import BoolArray, mask_of_cells
from refine.evidence import CountArray, Evidence, expected_iou, prob_per_cell
from refine.refined import Refined, check_share, union_of


@dataclass(frozen=True, slots=True, kw_only=True)
class VoteConfig:
    """Cell voting: the pixels of a cell decide together."""

    min_prob: float = 0.5
    """A cell is foreground when the teacher's mean probability in it is above this, in [0, 1]."""

    def __post_init__(self) -> None:
        check_share("min_prob", self.min_prob)


@dataclass(frozen=True, slots=True, kw_only=True)
class BestUnionConfig:
    """Best union: candidates that together have the highest expected IoU."""

    min_expected_iou: float = 0.4
    """The union is taken when its expected IoU is above this, in [0, 1]."""
    max_parts: int = 8
    """Candidates in the union at most."""
    min_step: float = 0.005
    """What a further candidate must add to the expected IoU."""

    def __post_init__(self) -> None:
        check_share("min_expected_iou", self.min_expected_iou)
        if self.max_parts < 1 or self.min_step < 0:
            raise ValueError("expected max_parts of at least 1 and min_step of at least 0")


def vote(evidence: Evidence, config: VoteConfig) -> Refined | None:
    """Let every cell be foreground or background as a whole; cell 0 stays as the teacher has it.

    The candidates' edges replace the teacher's blurry ones wherever there is an edge, and no
    candidate has to match the label as a whole. `score` is the expected IoU of the result. No
    answer for an image without candidates, or where nothing would be foreground.
    """
    cells = evidence.image.cells
    if cells.num_candidates == 0:
        return None
    prob_C, size_C = prob_per_cell(evidence), evidence.image.size_C
    mean_C = np.divide(prob_C, size_C, out=np.zeros_like(prob_C), where=size_C > 0)
    chosen_C = mean_C > config.min_prob
    chosen_C[0] = False
    mask_HW = mask_of_cells(cells, chosen_C) | (evidence.label_HW & (cells.cells == 0))
    if not mask_HW.any():
        return None
    score = expected_iou(evidence.prob_HW, mask_HW)
    return Refined(mask_HW=mask_HW, weight_HW=None, source="vote", score=score, num_chosen=0)


def best_union(evidence: Evidence, config: BestUnionConfig) -> Refined | None:
    """Grow a union greedily by the candidate that raises its expected IoU most.

    The first is the candidate of the highest soft IoU; ties go to the first candidate. `score` is
    the expected IoU of the union.
    """
    prob_C, membership_NC = prob_per_cell(evidence), evidence.image.membership_NC
    num_candidates = len(membership_NC)
    chosen_N = np.zeros(num_candidates, np.bool_)
    taken_C: BoolArray = np.zeros(len(prob_C), np.bool_)
    best = 0.0
    for _ in range(min(config.max_parts, num_candidates)):
        gains_N = _expected_iou_with(membership_NC, prob_C, evidence.image.size_C, taken_C)
        candidate = int(gains_N.argmax())
        if not gains_N[candidate] > best + config.min_step:
            break
        best = float(gains_N[candidate])
        chosen_N[candidate] = True
        taken_C |= evidence.image.cells.membership[candidate]
    if not best > config.min_expected_iou:
        return None
    return union_of("best-union", evidence, chosen_N, best)


def _expected_iou_with(
    membership_NC: CountArray, prob_C: CountArray, size_C: CountArray, taken_C: BoolArray
) -> CountArray:
    """Give the expected IoU of the union so far with each candidate added, (N,)."""
    inside_N = float(prob_C[taken_C].sum()) + membership_NC @ np.where(taken_C, 0, prob_C)
    area_N = float(size_C[taken_C].sum()) + membership_NC @ np.where(taken_C, 0, size_C)
    union_N = area_N + float(prob_C.sum()) - inside_N
    return np.divide(inside_N, union_N, out=np.zeros_like(inside_N), where=union_N > 0)
