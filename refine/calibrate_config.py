"""The `calibrate` section of stages.yaml."""

from dataclasses import dataclass, field
from typing import Literal

from refine.probability import Context
from refine.strategies import ParameterValue
from refine.sweep import (
    DEFAULT_GATES,
    DEFAULT_GRID,
    Setting,
    expand,
)

HOLLOW = 1.5
"""A best setting with less than so many times the mean IoU of labels that mark the whole image is
not applied: a student would learn to mark everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrateConfig:
    """The `calibrate` section of stages.yaml."""

    folds: int = 4
    """Parts of the labelled images, at least 2; each is predicted by a burn-in on the others."""
    by: Literal["mean_iou", "overall_iou"] = "mean_iou"
    """What decides: the mean over labels, as a student sees them, or the sum over pixels."""
    contexts: tuple[Context, ...] = ("none", "siblings", "rivals")
    """Values of `refine.probability.context` to try, with slope and bias fitted to the truth of the
    labelled images; beside them always the teacher's own probability."""
    sharpness: tuple[float, ...] = (1.0, 1.6)
    """Factors on the fitted slope, each more than 0. The fit is right on average over all pixels;
    which candidate is best is decided by few of them, of which the teacher may be surer."""
    grid: dict[str, dict[str, tuple[ParameterValue, ...]]] = field(default_factory=dict)
    """Strategy -> parameter -> values to try; empty takes the default grid. Strategies that see P
    alone are tried with the teacher's own probability only."""
    gates: tuple[float | None, ...] = DEFAULT_GATES
    """Values of `min_gain` to try with every setting, at least one."""

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise ValueError(f"folds: expected at least 2, found {self.folds}")
        if not self.gates or any(not factor > 0 for factor in self.sharpness):
            raise ValueError("expected at least one of gates, and sharpness above 0")
        self.settings()

    def settings(self) -> list[Setting]:
        """Give the settings before gating.

        Raises:
            ValueError: If the grid does not hold together.
        """
        return expand(self.grid or DEFAULT_GRID)
