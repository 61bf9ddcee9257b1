"""Core: strategies that keep the teacher's mask: PWA weighs its pixels, none trusts them all."""

from dataclasses import dataclass

import numpy as np

from refine.evidence import Evidence, FloatArray
from refine.refined import Refined, check_share


@dataclass(frozen=True, slots=True, kw_only=True)
class PwaConfig:
    """Pixel-Wise Adjustment: how far a pixel is trusted, given the teacher's probability.

    weight(p) = ceiling - Normal(p; mean, variance), eq. (9): with these values 0.04 at p = 0.5 and
    0.94 at p = 0 or 1. `variance` is a variance; the released code names it sigma.
    """

    ceiling: float = 1.3
    """Weight before the Gaussian is taken off."""
    mean: float = 0.5
    """Probability that is trusted least, in [0, 1]."""
    variance: float = 0.1
    """Spread of the distrust, in squared units of probability."""

    def __post_init__(self) -> None:
        if self.variance <= 0:
            raise ValueError(f"variance: expected more than 0, found {self.variance}")
        check_share("mean", self.mean)


@dataclass(frozen=True, slots=True, kw_only=True)
class NoneConfig:
    """Keep the teacher's mask as it is."""


def pwa(evidence: Evidence, config: PwaConfig) -> Refined:
    """Keep P and weight each pixel by how sure the teacher is, eq. (9).

    Always answers. `score` is the mean weight.
    """
    weight_HW = pwa_weight(evidence.prob_HW, config)
    return Refined(
        mask_HW=evidence.label_HW,
        weight_HW=weight_HW,
        source="pwa",
        score=float(weight_HW.mean(dtype=np.float64)),
        num_chosen=0,
    )


def pwa_weight(prob_HW: FloatArray, config: PwaConfig) -> FloatArray:
    """Give eq. (9) per pixel, clipped to [0, 1] so that a label shard can hold it.

    With the paper's values nothing is clipped: the weight lies in [0.038, 0.939].
    """
    peak = 1 / np.sqrt(2 * np.pi * config.variance)
    distance_HW = prob_HW - np.float32(config.mean)
    gauss_HW = np.float32(peak) * np.exp(distance_HW**2 / np.float32(-2 * config.variance))
    return np.asarray(np.clip(np.float32(config.ceiling) - gauss_HW, 0, 1), np.float32)


def keep(evidence: Evidence, config: NoneConfig) -> Refined:
    """Keep P with weight 1: the mean-teacher baseline. Always answers; `score` is 1."""
    return Refined(
        mask_HW=evidence.label_HW, weight_HW=None, source="none", score=1.0, num_chosen=0
    )
