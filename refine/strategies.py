"""Core: the strategies of SemiRES, each a pure function in cell space, and chains of them.

SemiRES (Yang et al., ICML 2024, arXiv:2406.01451). P is the teacher's mask, S a candidate, all
comparisons are strict. A strategy answers with a label or with None, in which case the next of the
chain is asked.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.cells import BoolArray, mask_of_cells
from pipeline.config import parse_config
from refine.evidence import (
    Evidence,
    FloatArray,
    iou_N,
    label_coverage_N,
    mask_coverage_N,
)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class IomConfig:
    """IoU-based Optimal Matching."""

    min_iou: float = 0.5
    """The best candidate is taken when its IoU with P is above this, in [0, 1]; the paper's
    IoU_rate."""

    def __post_init__(self) -> None:
        _check_share("min_iou", self.min_iou)


@dataclass(frozen=True, slots=True, kw_only=True)
class CpiConfig:
    """Composite Parts Integration; None switches a test off."""

    min_label_coverage: float | None = 0.7
    """Take S when |P & S| / |P| is above this; the paper's inter1 (CPI-U alone)."""
    min_mask_coverage: float | None = 0.7
    """Take S when |P & S| / |S| is above this; the paper's inter2 (CPI-O alone)."""

    def __post_init__(self) -> None:
        for name in ("min_label_coverage", "min_mask_coverage"):
            if getattr(self, name) is not None:
                _check_share(name, getattr(self, name))
        if self.min_label_coverage is None and self.min_mask_coverage is None:
            raise ValueError("expected at least one of min_label_coverage and min_mask_coverage")


@dataclass(frozen=True, slots=True, kw_only=True)
class CpiUConfig(CpiConfig):
    """CPI-U: only the share of P is tested."""

    min_mask_coverage: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CpiOConfig(CpiConfig):
    """CPI-O: only the share of S is tested."""

    min_label_coverage: float | None = None


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
        _check_share("mean", self.mean)


@dataclass(frozen=True, slots=True, kw_only=True)
class NoneConfig:
    """Keep the teacher's mask as it is."""


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: expected a number in [0, 1], found {value}")


def iom(evidence: Evidence, config: IomConfig) -> Refined | None:
    """Take the candidate with the best IoU with P, eq. (6), if that is good enough.

    Of equally good candidates the first is taken. `score` is the IoU.
    """
    scores_N = iou_N(evidence)
    if len(scores_N) == 0 or not scores_N.max() > config.min_iou:
        return None
    chosen_N = np.zeros(len(scores_N), np.bool_)
    chosen_N[int(scores_N.argmax())] = True
    return _union("iom", evidence, chosen_N, float(scores_N.max()))


def cpi(evidence: Evidence, config: CpiConfig) -> Refined | None:
    """Merge every candidate that belongs to P, eq. (7) and (8), Algorithm 1.

    Candidate S is merged when either coverage exceeds its threshold (the text says both, Algorithm
    1 and the code say either). Departs from the code in one place: an empty S is left out instead
    of dividing by zero. `score` is the best coverage among the tests that are on.
    """
    tests = (
        (label_coverage_N(evidence), config.min_label_coverage),
        (mask_coverage_N(evidence), config.min_mask_coverage),
    )
    active = [(coverage_N, limit) for coverage_N, limit in tests if limit is not None]
    chosen_N = np.any([coverage_N > limit for coverage_N, limit in active], axis=0)
    if not chosen_N.any():
        return None
    score = max(float(coverage_N[chosen_N].max()) for coverage_N, _ in active)
    name = {CpiUConfig: "cpi-u", CpiOConfig: "cpi-o"}.get(type(config), "cpi")
    return _union(name, evidence, chosen_N, score)


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


def _union(source: str, evidence: Evidence, chosen_N: BoolArray, score: float) -> Refined:
    cells = evidence.image.cells
    chosen_C = np.any(cells.membership[chosen_N], axis=0)
    return Refined(
        mask_HW=mask_of_cells(cells, chosen_C),
        weight_HW=None,
        source=source,
        score=score,
        num_chosen=int(chosen_N.sum()),
    )


@dataclass(frozen=True, slots=True)
class Strategy:
    """A strategy: its function, and the config that it takes."""

    function: Callable[[Evidence, Any], Refined | None]
    config: type[Any]


STRATEGIES: dict[str, Strategy] = {
    "none": Strategy(keep, NoneConfig),
    "iom": Strategy(iom, IomConfig),
    "cpi": Strategy(cpi, CpiConfig),
    "cpi-u": Strategy(cpi, CpiUConfig),
    "cpi-o": Strategy(cpi, CpiOConfig),
    "pwa": Strategy(pwa, PwaConfig),
}
"""All strategies. The position of a name is its code in label shards: append, never reorder."""

Chain = Sequence[tuple[str, Any]]
"""Strategies with their configs, in the order in which they are asked."""


def parse_chain(links: Sequence[tuple[str, dict[str, Any]]], where: str) -> list[tuple[str, Any]]:
    """Build a chain from names and plain parameters.

    Raises:
        ConfigError: For an unknown parameter or a value out of range.
        ValueError: For an unknown strategy, or a chain that may end without an answer.
    """
    chain: list[tuple[str, Any]] = []
    for position, (name, parameters) in enumerate(links):
        if name not in STRATEGIES:
            known = ", ".join(STRATEGIES)
            raise ValueError(f"{where}[{position}]: unknown strategy {name!r}; known are {known}")
        config = STRATEGIES[name].config
        chain.append((name, parse_config(config, parameters, f"{where}[{position}] ({name})")))
    if not chain or chain[-1][0] not in ("pwa", "none"):
        raise ValueError(f"{where}: the last strategy must always answer; end with pwa or none")
    return chain


def refine(evidence: Evidence, chain: Chain) -> Refined:
    """Ask the strategies in turn and give the first answer.

    Raises:
        ValueError: If none answers, which `parse_chain` rules out.
    """
    for name, config in chain:
        refined = STRATEGIES[name].function(evidence, config)
        if refined is not None:
            return refined
    raise ValueError("no strategy of the chain answered; end it with pwa or none")
