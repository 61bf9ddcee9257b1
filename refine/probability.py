"""Core: from the teacher's logit margins to the probability that strategies see. Not in SemiRES.

A data set knows more than one sentence at a time: which expressions name the same object, and that
two objects of one image share no pixel. Neither needs a mask.

Shape legend: E expressions of one image, h and w the network's stride.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from refine.evidence import FloatArray

Context = Literal["none", "siblings", "rivals"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbabilityConfig:
    """How p is made of logit margins m; with the defaults it is the teacher's own, sigmoid(m)."""

    context: Context = "none"
    """`siblings` averages m over the expressions of an object; `rivals` lets the objects of an
    image compete for each pixel after that: softmax over all objects and the background."""
    slope: float = 1.0
    """p = sigmoid(slope * m + bias), more than 0; below 1 for a teacher that is too sure."""
    bias: float = 0.0
    """Above 0 for a teacher that marks too little. P stays the teacher's own mask, m > 0."""

    def __post_init__(self) -> None:
        if not self.slope > 0:
            raise ValueError(f"slope: expected more than 0, found {self.slope}")

    @property
    def is_own(self) -> bool:
        """Whether p is the teacher's own."""
        return self == ProbabilityConfig()


def with_context(
    margin_Ehw: FloatArray,
    object_E: npt.NDArray[np.int64],
    context: Context,
) -> FloatArray:
    """Let the expressions of one image speak for and against each other.

    Args:
        margin_Ehw: Logit margins of all expressions of an image, (E, h, w) float32.
        object_E: Which object each names, (E,); equal numbers are one object.
        context: As `ProbabilityConfig.context`.

    Returns:
        (E, h, w) float32, equal for the expressions of an object unless `context` is "none". For
        "rivals" object k has m_k - log(1 + sum of exp(m_j) over the others): the log odds of the
        softmax over the objects and a background of margin 0.
    """
    if context == "none" or not len(margin_Ehw):
        return margin_Ehw
    _, first, place_E = np.unique(object_E, return_index=True, return_inverse=True)
    if len(first) == len(object_E):
        mean_Ohw = margin_Ehw[first].astype(np.float64)
    else:
        mean_Ohw = np.zeros((len(first), *margin_Ehw.shape[1:]))
        np.add.at(mean_Ohw, place_E, margin_Ehw)
        mean_Ohw /= np.bincount(place_E)[:, None, None]
    if context == "rivals" and len(first) > 1:
        top_hw = np.maximum(mean_Ohw.max(axis=0), 0)
        odds_Ohw = np.exp(mean_Ohw - top_hw)
        # All others are summed, not subtracted from all: one object may have nearly all the odds.
        others_Ohw = np.repeat(np.exp(-top_hw)[None], len(odds_Ohw), axis=0)
        others_Ohw[1:] += np.cumsum(odds_Ohw[:-1], axis=0)
        others_Ohw[:-1] += np.cumsum(odds_Ohw[:0:-1], axis=0)[::-1]
        tiny = np.finfo(np.float64).tiny
        mean_Ohw = mean_Ohw - top_hw - np.log(np.maximum(others_Ohw, tiny))
    return mean_Ohw[place_E].astype(np.float32)


def fit_probability(
    margin: npt.NDArray[np.floating], truth: npt.NDArray[np.bool_], steps: int = 30
) -> tuple[float, float]:
    """Fit slope and bias by logistic regression of the truth on the margin (Platt, 1999).

    Args:
        margin: Margins of some pixels, any shape.
        truth: Whether each is foreground, the same shape.
        steps: Newton steps at most.

    Returns:
        Slope (at least 0.05, as a useless teacher could have a negative one) and bias.
    """
    x = np.asarray(margin, np.float64).ravel()
    y = np.asarray(truth, np.float64).ravel()
    slope, bias = 1.0, 0.0
    for _ in range(steps):
        p = 1 / (1 + np.exp(-np.clip(slope * x + bias, -60, 60)))
        spread = p * (1 - p)
        # A little ridge towards slope 1: keeps the fit finite if margin and truth separate.
        gradient = np.array([((p - y) * x).mean() + 1e-4 * (slope - 1), (p - y).mean()])
        cross = (spread * x).mean()
        hessian = np.array([[(spread * x * x).mean() + 1e-4, cross], [cross, spread.mean() + 1e-9]])
        step = np.clip(np.linalg.solve(hessian, gradient), -1, 1)
        slope, bias = slope - float(step[0]), bias - float(step[1])
        if np.abs(step).max() < 1e-8:
            break
    return max(slope, 0.05), bias
