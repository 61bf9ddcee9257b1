"""Core: how far each pixel of a label is trusted: Psi of the paper, and weights of ours.

Shape legend: H and W pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from pipeline.cells import BoolArray
from refine.choice import Choice, check_share, draw
from refine.evidence import Evidence, FloatArray
from refine.matching import IomConfig, SoftIouConfig, iom, soft_iou
from refine.voting import BestUnionConfig, VoteConfig, best_union, vote


@dataclass(frozen=True, slots=True, kw_only=True)
class OneConfig:
    """Trust every pixel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroConfig:
    """Trust none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PsiConfig:
    """Psi, eq. (9): how far a pixel is trusted, given the teacher's probability.

    weight(p) = ceiling - Normal(p; mean, variance): with these values 0.04 at p = 0.5 and 0.94 at
    p = 0 or 1. `variance` is a variance; the released code names it sigma.
    """

    ceiling: float = 1.3
    """Weight before the Gaussian is taken off; what is then outside [0, 1] is clipped."""
    mean: float = 0.5
    """Probability that is trusted least, in [0, 1]."""
    variance: float = 0.1
    """Spread of the distrust, in squared units of probability; more than 0."""

    def __post_init__(self) -> None:
        if self.variance <= 0:
            raise ValueError(f"variance: expected more than 0, found {self.variance}")
        check_share("mean", self.mean)


@dataclass(frozen=True, slots=True, kw_only=True)
class CertaintyConfig:
    """The teacher's probability that the label's pixel is right. Not in SemiRES."""

    floor: float = 0.1
    """Least weight, in [0, 1]."""

    def __post_init__(self) -> None:
        check_share("floor", self.floor)


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeConfig:
    """Distrust the pixels along the label's edge. Not in SemiRES."""

    radius: int = 3
    """Pixels from the edge at which the weight reaches 1, at least 1."""
    floor: float = 0.1
    """Least weight, in [0, 1]."""

    def __post_init__(self) -> None:
        check_share("floor", self.floor)
        if self.radius < 1:
            raise ValueError(f"radius: expected at least 1, found {self.radius}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgreementConfig:
    """Share of the strategies that agree with the label's pixel. Not in SemiRES."""

    floor: float = 0.1
    """Least weight, in [0, 1]."""

    def __post_init__(self) -> None:
        check_share("floor", self.floor)


def one(evidence: Evidence, mask_HW: BoolArray, config: OneConfig) -> None:
    """Give weight 1, which needs no map."""


def zero(evidence: Evidence, mask_HW: BoolArray, config: ZeroConfig) -> FloatArray:
    """Give weight 0."""
    return np.zeros(mask_HW.shape, np.float32)


def psi(evidence: Evidence, mask_HW: BoolArray, config: PsiConfig) -> FloatArray:
    """Give eq. (9) of the teacher's probability, whatever the label says."""
    return psi_of(evidence.prob_HW, config)


def psi_of(prob_HW: FloatArray, config: PsiConfig) -> FloatArray:
    """Give eq. (9) per pixel, clipped to [0, 1] so that a label shard can hold it.

    With the paper's values nothing is clipped: the weight lies in [0.038, 0.939].
    """
    peak = 1 / np.sqrt(2 * np.pi * config.variance)
    weight_HW = prob_HW - np.float32(config.mean)
    np.square(weight_HW, out=weight_HW)
    weight_HW *= np.float32(-1 / (2 * config.variance))
    np.exp(weight_HW, out=weight_HW)
    weight_HW *= np.float32(-peak)
    weight_HW += np.float32(config.ceiling)
    return np.clip(weight_HW, 0, 1, out=weight_HW)


def certainty(evidence: Evidence, mask_HW: BoolArray, config: CertaintyConfig) -> FloatArray:
    """Give p inside the label and 1 - p outside, but at least the floor."""
    prob_HW = evidence.prob_HW
    return np.maximum(np.where(mask_HW, prob_HW, 1 - prob_HW), np.float32(config.floor))


def edge(evidence: Evidence, mask_HW: BoolArray, config: EdgeConfig) -> FloatArray:
    """Rise from the floor at the label's edge to 1 at `radius` pixels from a straight one.

    It is |2 m - 1| for the share m of the surrounding square that belongs to the label.
    """
    share_HW = ndimage.uniform_filter(mask_HW.astype(np.float32), 2 * config.radius + 1)
    weight_HW = np.abs(2 * np.clip(share_HW, 0, 1) - 1)
    return np.asarray(np.maximum(weight_HW, np.float32(config.floor)), np.float32)


def agreement(evidence: Evidence, mask_HW: BoolArray, config: AgreementConfig) -> FloatArray:
    """Ask P, IOM, soft IoU, cell voting and best union; those without an answer abstain."""
    answers: list[Choice | None] = [
        Choice(source="none", score=1.0),
        iom(evidence, IomConfig(min_iou=0)),
        soft_iou(evidence, SoftIouConfig(min_iou=0)),
        vote(evidence, VoteConfig()),
        best_union(evidence, BestUnionConfig(min_expected_iou=0)),
    ]
    votes = [draw(evidence, answer) == mask_HW for answer in answers if answer is not None]
    share_HW = np.mean(votes, axis=0, dtype=np.float32)
    return np.asarray(np.maximum(share_HW, np.float32(config.floor)), np.float32)


@dataclass(frozen=True, slots=True)
class Weighting:
    """A rule for pixel weights: its function, and the config that it takes."""

    function: Callable[[Evidence, BoolArray, Any], FloatArray | None]
    config: type[Any]


WEIGHTINGS: dict[str, Weighting] = {
    "one": Weighting(one, OneConfig),
    "zero": Weighting(zero, ZeroConfig),
    "psi": Weighting(psi, PsiConfig),
    "certainty": Weighting(certainty, CertaintyConfig),
    "edge": Weighting(edge, EdgeConfig),
    "agreement": Weighting(agreement, AgreementConfig),
}
"""All weightings by name."""
