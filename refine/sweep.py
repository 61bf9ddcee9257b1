"""Core: many settings on labels whose truth is known, each overlap counted once.

A setting is a way to make the probability, a strategy with its parameters, and a gate; where it
gives no answer the label is P, as with the PWA fallback. Gates cost nothing: the gain in expected
IoU is kept with every answer.

Shape legend: S settings before gating, E expressions.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config import parse_config
from refine.choice import Choice, TruthCounts, expected_iou_of, overlap_with
from refine.evidence import Evidence
from refine.strategies import KEEP_LABEL, STRATEGIES, ParameterValue

Grid = Mapping[str, Mapping[str, Sequence[ParameterValue]]]
Array = npt.NDArray[np.float64]


def _steps(first: float, last: float, count: int) -> tuple[float, ...]:
    return tuple(round(float(value), 4) for value in np.linspace(first, last, count))


DEFAULT_GRID: Grid = {
    "none": {},
    "iom": {"min_iou": _steps(0, 0.9, 10)},
    "cpi-u": {"min_label_coverage": _steps(0.3, 0.9, 7), "max_area_ratio": (None, 4.0, 2.0)},
    "cpi-o": {"min_mask_coverage": _steps(0.3, 0.9, 7)},
    "cpi": {
        "min_label_coverage": (0.5, 0.6, 0.7, 0.8),
        "min_mask_coverage": (0.5, 0.6, 0.7, 0.8),
        "max_area_ratio": (None, 2.0),
    },
    "sepl": {"min_label_coverage": (0.7, 0.85, 0.95), "min_mask_coverage": (0.4, 0.5, 0.6)},
    "soft-iou": {"min_iou": _steps(0, 0.7, 15)},
    "vote": {"min_prob": _steps(0.2, 0.6, 9)},
    "best-union": {"min_expected_iou": _steps(0, 0.7, 8), "min_step": (0.005, 0.02)},
}
"""Strategy -> parameter -> values that are tried, in every combination."""

DEFAULT_GATES: tuple[float | None, ...] = (None, -0.05, 0.0, 0.03, 0.06)
"""Values of `min_gain` that are tried with every setting."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A strategy with parameters, ready to be asked."""

    strategy: str
    params: dict[str, ParameterValue]
    config: Any = field(repr=False)


def expand(grid: Grid) -> list[Setting]:
    """List every combination of a grid.

    Raises:
        ConfigError: For an unknown parameter or a value out of range.
        ValueError: For an unknown strategy.
    """
    settings = []
    for strategy, axes in grid.items():
        if strategy not in STRATEGIES or strategy == "drop":
            known = ", ".join(name for name in STRATEGIES if name != "drop")
            raise ValueError(f"grid: unknown strategy {strategy!r}; known are {known}")
        for name, values in axes.items():
            if not len(values):
                raise ValueError(f"grid ({strategy}): expected values for {name}, found none")
        for values in itertools.product(*axes.values()):
            params = dict(zip(axes, values, strict=True))
            config = parse_config(STRATEGIES[strategy].config, params, f"grid ({strategy})")
            settings.append(Setting(strategy, params, config))
    return settings


@dataclass(frozen=True, slots=True)
class Answers:
    """What all settings answer for one expression, against its truth; pixels unless said."""

    answered: npt.NDArray[np.bool_]
    """(S,) whether the strategy gave an answer of its own."""
    gain: Array
    """(S,) expected IoU of the answer, less that of P."""
    inside: Array
    """(S,) |answer & truth|."""
    union: Array
    """(S,) |answer | truth|."""
    label: tuple[float, float]
    """|P & truth| and |P | truth|."""
    whole: float
    """IoU with the truth of a label that marks the whole image."""
    size: str
    """Name of the object's size."""
    image: int
    """Which image it belongs to."""
    fold: int
    """Which fold held it out."""


def ask_all(
    settings: Sequence[Setting],
    evidence: Evidence,
    truth: TruthCounts,
    size: str,
    image: int,
    fold: int,
) -> Answers:
    """Ask every setting about one expression."""
    answered = np.zeros(len(settings), np.bool_)
    gain, inside, union = (np.zeros(len(settings)) for _ in range(3))
    before = evidence.label_expected_iou
    # Many thresholds choose the same cells, for which an evidence keeps one array.
    known: dict[tuple[int, bool], tuple[Choice, float, float, float]] = {}
    for row, setting in enumerate(settings):
        choice = STRATEGIES[setting.strategy].function(evidence, setting.config)
        if choice is None or choice.source in KEEP_LABEL:
            continue
        key = (id(choice.chosen_C), choice.keep_uncovered)
        if key not in known:
            expected = expected_iou_of(evidence, choice)
            known[key] = (choice, expected - before, *overlap_with(evidence, choice, truth))
        answered[row] = True
        _, gain[row], inside[row], union[row] = known[key]  # the choice keeps its array alive
    label = (truth.in_label, evidence.label_area + truth.area - truth.in_label)
    whole = truth.area / max(evidence.label_HW.size, 1)
    return Answers(answered, gain, inside, union, label, whole, size, image, fold)


@dataclass(frozen=True, slots=True)
class Records:
    """The answers of all settings for all expressions."""

    answered: npt.NDArray[np.bool_]
    """(S, E)"""
    gain: Array
    """(S, E)"""
    inside: Array
    """(S, E)"""
    union: Array
    """(S, E)"""
    label: Array
    """(2, E)"""
    whole: Array
    """(E,)"""
    size: npt.NDArray[np.str_]
    """(E,)"""
    image: npt.NDArray[np.int64]
    """(E,)"""
    fold: npt.NDArray[np.int64]
    """(E,)"""


def collect(answers: Sequence[Answers]) -> Records:
    """Stack the answers of at least one expression."""
    return Records(
        answered=np.stack([one.answered for one in answers], 1),
        gain=np.stack([one.gain for one in answers], 1),
        inside=np.stack([one.inside for one in answers], 1),
        union=np.stack([one.union for one in answers], 1),
        label=np.array([one.label for one in answers], np.float64).T,
        whole=np.array([one.whole for one in answers], np.float64),
        size=np.array([one.size for one in answers]),
        image=np.array([one.image for one in answers], np.int64),
        fold=np.array([one.fold for one in answers], np.int64),
    )


def iou_of(inside: Array, union: Array) -> Array:
    """Give IoUs; two empty masks have 0, as in LAVT."""
    return np.divide(inside, union, out=np.zeros_like(inside), where=union > 0)


def outcome(
    records: Records, row: int, gate: float | None
) -> tuple[Array, Array, npt.NDArray[np.bool_]]:
    """Give |label & truth|, |label | truth| and whether it was refined, per expression."""
    taken = records.answered[row]
    if gate is not None:
        taken = taken & (records.gain[row] > gate)
    inside = np.where(taken, records.inside[row], records.label[0])
    union = np.where(taken, records.union[row], records.label[1])
    return inside, union, taken


def figures(records: Records, row: int, gate: float | None) -> dict[str, Any]:
    """Give one setting's figures, fractions in [0, 1]; helped and hurt are beside P."""
    inside, union, taken = outcome(records, row, gate)
    iou, raw = iou_of(inside, union), iou_of(*records.label)
    helped, hurt = int((iou > raw).sum()), int((iou < raw).sum())
    return {
        "mean_iou": float(iou.mean()),
        "overall_iou": float(inside.sum() / max(union.sum(), 1)),
        "match_rate": float(taken.mean()),
        "helped": helped,
        "hurt": hurt,
        "correction_precision": helped / (helped + hurt) if helped + hurt else None,
        "by_size": {
            str(size): float(iou[records.size == size].mean()) for size in np.unique(records.size)
        },
    }


def gain_of_choosing(
    scores: Array, gains: Array, fold: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Give what choosing the best setting gains on labels that had no part in the choice.

    The best of thousands of settings looks better than it is. So for every fold the setting is
    chosen that is best on the other folds, and what it gains on this one is taken.

    Args:
        scores: Per setting and label what decides, by its mean, (M, E).
        gains: Per setting and label the gain in IoU over P, (M, E).
        fold: Which fold held the label out, (E,).

    Returns:
        Gain per label, (E,).
    """
    gained = np.zeros(len(fold))
    for number in np.unique(fold):
        here = fold == number
        chosen = int(scores[:, ~here].mean(axis=1).argmax()) if not here.all() else 0
        gained[here] = gains[chosen, here]
    return gained


def interval(
    value: Array, image: npt.NDArray[np.int64], resamples: int = 2000
) -> tuple[float, float]:
    """Give the 95 % bootstrap interval of a mean over labels.

    Images are drawn with replacement, with all their labels: those of one image stand or fall
    together.

    Args:
        value: (E,)
        image: Which image each label belongs to, (E,).
        resamples: Draws.
    """
    _, place = np.unique(image, return_inverse=True)
    total, count = np.bincount(place, value), np.bincount(place)
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(len(count), np.full(len(count), 1 / len(count)), resamples)
    means = (drawn @ total) / np.maximum(drawn @ count, 1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
