"""Core: strategies that match P with whole candidates: IOM, CPI and its variants, SEPL, soft IoU.

P is the teacher's mask, S a candidate; comparisons are strict. SemiRES (Yang et al., ICML 2024,
arXiv:2406.01451) unless another source is named.
"""

from dataclasses import dataclass, replace
from typing import Literal

from pipeline.cells import BoolArray
from refine.choice import Choice, check_share, union_of
from refine.evidence import CountArray, Evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class IomConfig:
    """IoU-based Optimal Matching: the S that fits P best."""

    min_iou: float = 0.5
    """The best candidate is taken when its IoU with P is above this, in [0, 1]; the paper's
    IoU_rate."""

    def __post_init__(self) -> None:
        check_share("min_iou", self.min_iou)


@dataclass(frozen=True, slots=True, kw_only=True)
class CpiConfig:
    """Composite Parts Integration: every S that belongs to P; None switches a test off.

    The last three fields are not in SemiRES; with their defaults they change nothing.
    """

    min_label_coverage: float | None = 0.7
    """Take S when |P & S| / |P| is above this, in [0, 1]; the paper's inter1 (CPI-U alone)."""
    min_mask_coverage: float | None = 0.7
    """Take S when |P & S| / |S| is above this, in [0, 1]; the paper's inter2 (CPI-O alone)."""
    combine: Literal["or", "and"] = "or"
    """Whether one test is enough (Algorithm 1) or all that are on must pass (the paper's text)."""
    keep_uncovered: bool = False
    """Add the pixels of P that no candidate covers, as SEPL does."""
    max_area_ratio: float | None = None
    """Leave S out when |S| / |P| is above this, more than 0: a wall that contains P is not its
    object."""

    def __post_init__(self) -> None:
        for name in ("min_label_coverage", "min_mask_coverage"):
            if getattr(self, name) is not None:
                check_share(name, getattr(self, name))
        if self.min_label_coverage is None and self.min_mask_coverage is None:
            raise ValueError("expected at least one of min_label_coverage and min_mask_coverage")
        if self.max_area_ratio is not None and not self.max_area_ratio > 0:
            raise ValueError(f"max_area_ratio: expected more than 0, found {self.max_area_ratio}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CpiUConfig(CpiConfig):
    """CPI-U: only the share of P is tested."""

    min_mask_coverage: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CpiOConfig(CpiConfig):
    """CPI-O: only the share of S is tested."""

    min_label_coverage: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SeplConfig(CpiConfig):
    """SEPL (Chen et al., arXiv:2305.05803; released as SAM_WSSS) is CPI with these values.

    Departs from it in two places: the share of P must be above 0.85, not at least; and where no
    candidate passes, the next strategy is asked instead of keeping only what no mask covers.
    """

    min_label_coverage: float | None = 0.85
    min_mask_coverage: float | None = 0.5
    keep_uncovered: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftIouConfig:
    """IOM with the teacher's probability in place of its mask; not in SemiRES."""

    min_iou: float = 0.5
    """The best candidate is taken when its soft IoU is above this, in [0, 1]."""

    def __post_init__(self) -> None:
        check_share("min_iou", self.min_iou)


def iom(evidence: Evidence, config: IomConfig) -> Choice | None:
    """Take the candidate with the best IoU with P, eq. (6), if that is good enough.

    Of equally good candidates the first is taken. `score` is the IoU.
    """
    return _best_of("iom", evidence, evidence.iou_N, config.min_iou)


def soft_iou(evidence: Evidence, config: SoftIouConfig) -> Choice | None:
    """Take the candidate with the highest expected IoU, if each pixel is foreground with p.

    sum of p in S, over |S| plus the sum of p outside S. Not in SemiRES: no threshold at 0.5 throws
    away how sure the teacher is. Of equally good candidates the first is taken.
    """
    return _best_of("soft-iou", evidence, evidence.soft_iou_N, config.min_iou)


def _best_of(source: str, evidence: Evidence, score_N: CountArray, limit: float) -> Choice | None:
    best = int(score_N.argmax()) if len(score_N) else -1
    if best < 0 or not score_N[best] > limit:
        return None
    chosen_C = evidence.remember(
        ("cells of one", best), lambda: evidence.image.cells.membership[best]
    )
    return Choice(source=source, score=float(score_N[best]), num_chosen=1, chosen_C=chosen_C)


def cpi(evidence: Evidence, config: CpiConfig) -> Choice | None:
    """Merge every candidate that belongs to P, eq. (7) and (8), Algorithm 1.

    Candidate S is merged when a coverage exceeds its threshold (the text says both, Algorithm 1 and
    the code say either: `combine`). Departs from the code in one place: an empty S is left out
    instead of dividing by zero. `score` is the best coverage among the tests that are on.
    """
    tests = (
        (evidence.label_coverage_N, config.min_label_coverage),
        (evidence.mask_coverage_N, config.min_mask_coverage),
    )
    active = [(coverage_N, limit) for coverage_N, limit in tests if limit is not None]
    passed = [coverage_N > limit for coverage_N, limit in active]
    chosen_N: BoolArray = passed[0]
    for other_N in passed[1:]:
        chosen_N = chosen_N | other_N if config.combine == "or" else chosen_N & other_N
    if config.max_area_ratio is not None:
        chosen_N = chosen_N & (evidence.image.area_N <= config.max_area_ratio * evidence.label_area)
    if not chosen_N.any():
        return None
    score = max(float(coverage_N[chosen_N].max()) for coverage_N, _ in active)
    merged = union_of(_CPI_NAMES.get(type(config), "cpi"), evidence, chosen_N, score)
    return replace(merged, keep_uncovered=True) if config.keep_uncovered else merged


_CPI_NAMES: dict[type[CpiConfig], str] = {
    CpiUConfig: "cpi-u",
    CpiOConfig: "cpi-o",
    SeplConfig: "sepl",
}
