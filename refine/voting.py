"""Core: strategies of ours, not in the paper, on the teacher's probability per cell.

Shape legend: N candidates, C cells, H and W pixels.
"""

from dataclasses import dataclass, replace

import numpy as np

from pipeline.cells import BoolArray
from refine.choice import Choice, check_share, expected_iou_of, union_of
from refine.evidence import CountArray, Evidence, ImageEvidence


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
    """Candidates in the union at most, at least 1."""
    min_step: float = 0.005
    """What a further candidate must add to the expected IoU, at least 0."""

    def __post_init__(self) -> None:
        check_share("min_expected_iou", self.min_expected_iou)
        if self.max_parts < 1 or self.min_step < 0:
            raise ValueError("expected max_parts of at least 1 and min_step of at least 0")


def vote(evidence: Evidence, config: VoteConfig) -> Choice | None:
    """Let every cell be foreground or background as a whole; cell 0 stays as the teacher has it.

    The candidates' edges replace the teacher's blurry ones wherever there is an edge, and no
    candidate has to match the label as a whole. `score` is the expected IoU of the result. No
    answer for an image without candidates, or where nothing would be foreground.
    """
    if evidence.image.cells.num_candidates == 0:
        return None
    prob_C, size_C = evidence.prob.per_cell, evidence.image.size_C
    chosen_C = prob_C > config.min_prob * size_C
    chosen_C[0] = False
    if not chosen_C.any() and not evidence.label_C[0]:
        return None
    choice = Choice(source="vote", score=0.0, chosen_C=chosen_C, keep_uncovered=True)
    return replace(choice, score=expected_iou_of(evidence, choice))


def best_union(evidence: Evidence, config: BestUnionConfig) -> Choice | None:
    """Grow a union greedily by the candidate that raises its expected IoU most.

    The first is the candidate of the highest soft IoU; ties go to the first candidate. `score` is
    the expected IoU of the union.
    """
    steps = (config.max_parts, config.min_step)
    chosen_N, best = evidence.remember(
        ("union", *steps),
        lambda: grow_union(evidence.image, evidence.prob.per_cell, evidence.prob_total, *steps),
    )
    if not best > config.min_expected_iou:
        return None
    return union_of("best-union", evidence, chosen_N, best)


def grow_union(
    image: ImageEvidence, prob_C: CountArray, total: float, max_parts: int, min_step: float
) -> tuple[BoolArray, float]:
    """Add the candidate that raises the union's expected IoU most, as long as one does.

    With a truth's pixels per cell in place of p this is the union that is best in truth, as far as
    a greedy choice finds it.

    Args:
        image: Candidates of the image.
        prob_C: Sum of p over each cell, (C,).
        total: Sum of p over the image.
        max_parts: Candidates at most.
        min_step: What a further candidate must add.

    Returns:
        The candidates, (N,) bool, and the expected IoU of their union.
    """
    num_candidates = len(image.membership_NC)
    chosen_N = np.zeros(num_candidates, np.bool_)
    left_prob_C, left_size_C = prob_C.copy(), image.size_C.copy()
    inside, area, best = 0.0, 0.0, 0.0
    for _ in range(min(max_parts, num_candidates)):
        added = image.membership_NC @ np.stack([left_prob_C, left_size_C], 1)
        inside_N, area_N = inside + added[:, 0], area + added[:, 1]
        union_N = area_N + total - inside_N
        iou_N = np.divide(inside_N, union_N, out=np.zeros_like(inside_N), where=union_N > 0)
        candidate = int(iou_N.argmax())
        if not iou_N[candidate] > best + min_step:
            break
        best, inside, area = (
            float(iou_N[candidate]),
            float(inside_N[candidate]),
            float(area_N[candidate]),
        )
        chosen_N[candidate] = True
        taken_C = image.cells.membership[candidate]
        left_prob_C[taken_C] = 0
        left_size_C[taken_C] = 0
    return chosen_N, best
