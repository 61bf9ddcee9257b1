"""Core: strategies that keep the teacher's mask, and the one that leaves a label out."""

from dataclasses import dataclass

from refine.choice import Choice
from refine.evidence import Evidence
from refine.weighting import PsiConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class PwaConfig(PsiConfig):
    """Pixel-Wise Adjustment: the teacher's mask, weighted by Psi, with its parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NoneConfig:
    """Keep the teacher's mask as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DropConfig:
    """Confidence filtering (SemiRES, Table 4): the labels that the teacher is least sure of."""

    share: float = 0.05
    """Share of the round's labels that is left out, in [0, 1)."""

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ValueError(f"share: expected a number in [0, 1), found {self.share}")


def pwa(evidence: Evidence, config: PwaConfig) -> Choice:
    """Keep P; its pixels are weighted by Psi, eq. (9). Always answers; `score` is 1."""
    return Choice(source="pwa", score=1.0)


def keep(evidence: Evidence, config: NoneConfig) -> Choice:
    """Keep P with weight 1: the mean-teacher baseline. Always answers; `score` is 1."""
    return Choice(source="none", score=1.0)


def drop(evidence: Evidence, config: DropConfig) -> Choice | None:
    """Leave a label out of training if the teacher is less sure of it than of most.

    The paper drops the lowest 5 % without saying by what; here it is the mean probability over the
    teacher's mask at the network's stride, 0 for an empty mask; of equally sure ones the earlier
    rows go. The label is stored with weight 0 and never drawn. `score` is the rank.
    """
    if evidence.confidence_rank < config.share:
        return Choice(source="drop", score=evidence.confidence_rank)
    return None
