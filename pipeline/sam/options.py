"""The options of the mask generator."""

from dataclasses import dataclass, fields, replace
from typing import Literal

from pipeline.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorOptions:
    """How candidates are made; None takes the model entry's default."""

    points_per_side: int | None = None
    """Points along each side of the grid, at least 1."""
    points_per_batch: int | None = None
    """Points that the decoder handles at once, at least 1; does not change the result but by
    rounding."""
    pred_iou_thresh: float | None = None
    """A mask is kept if its predicted IoU is greater; 0 keeps all."""
    stability_score_thresh: float | None = None
    """A mask is kept if its stability score is at least this, in [0, 1]."""
    stability_score_offset: float | None = None
    """The score compares the mask at logits above and below 0 by this much, greater than 0."""
    box_nms_thresh: float | None = None
    """A mask is dropped if its box's IoU with a better mask's box is greater, in (0, 1]."""
    max_candidates: int | None = None
    """Most masks of an image, those of highest predicted IoU; None keeps all."""
    profile: Literal["reference", "fast"] | None = None
    """`reference` runs segment-anything's decoder as it is, `fast` ours, equal up to rounding."""

    def __post_init__(self) -> None:
        for name in ("points_per_side", "points_per_batch", "max_candidates"):
            self._check(name, 1, None)
        for name in ("pred_iou_thresh", "stability_score_thresh", "box_nms_thresh"):
            self._check(name, 0, 1)
        if self.stability_score_offset is not None and not self.stability_score_offset > 0:
            raise ConfigError(
                f"stability_score_offset must be greater than 0, got {self.stability_score_offset}"
            )
        if self.profile not in (None, "reference", "fast"):
            raise ConfigError(f"profile must be 'reference' or 'fast', got {self.profile!r}")

    def _check(self, name: str, low: float, high: float | None) -> None:
        """Refuse a field outside [low, high]."""
        value = getattr(self, name)
        if value is None or (value >= low and (high is None or value <= high)):
            return
        wanted = f"at least {low}" if high is None else f"in [{low}, {high}]"
        raise ConfigError(f"{name} must be {wanted}, got {value!r}")

    def filled(self, defaults: "GeneratorOptions") -> "GeneratorOptions":
        """Give the options with every None replaced by the default's value."""
        gaps = [f.name for f in fields(self) if getattr(self, f.name) is None]
        return replace(self, **{name: getattr(defaults, name) for name in gaps})


REFERENCE = GeneratorOptions(
    points_per_side=32,
    points_per_batch=64,
    pred_iou_thresh=0.88,
    stability_score_thresh=0.95,
    stability_score_offset=1.0,
    box_nms_thresh=0.7,
    profile="reference",
)
"""The defaults of segment-anything's own generator; fill what a model entry leaves open."""
