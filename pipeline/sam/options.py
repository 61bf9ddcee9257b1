"""The options of the mask generator."""

from dataclasses import dataclass, fields, replace
from typing import Literal

from pipeline.errors import ConfigError

PointGrid = tuple[tuple[float, ...], ...]
"""Points (x, y), each in [0, 1] of the image or crop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorOptions:
    """How candidates are made; None takes what suits the model."""

    points_per_side: int | None = None
    """Points along each side of the grid, at least 1."""
    point_grids: tuple[PointGrid, ...] | None = None
    """Instead of `points_per_side`: per crop layer the points (x, y), each in [0, 1]."""
    points_per_batch: int | None = None
    """Points that the decoder handles at once, at least 1; does not change the result but by
    rounding."""
    images_per_batch: int | None = None
    """Images, or crops, that the encoder handles at once, at least 1; likewise."""
    pred_iou_thresh: float | None = None
    """A mask is kept if its predicted IoU is greater, in [0, 1]; 0 keeps all."""
    stability_score_thresh: float | None = None
    """A mask is kept if its stability score is at least this, in [0, 1]; 0 keeps all."""
    stability_score_offset: float | None = None
    """The score compares the mask at logits above and below the model's cut-off by this much,
    more than 0."""
    box_nms_thresh: float | None = None
    """A mask is dropped if its box's IoU with a better mask's box is greater, in [0, 1]."""
    crop_n_layers: int | None = None
    """Layers of crops beside the whole image, in [0, 4]; layer n has 4 ** n crops."""
    crop_nms_thresh: float | None = None
    """As `box_nms_thresh`, between crops: masks of smaller crops come first; in [0, 1]."""
    crop_overlap_ratio: float | None = None
    """Overlap of neighbouring crops of layer 1, as a share of the shorter side, in [0, 1)."""
    crop_n_points_downscale_factor: int | None = None
    """`points_per_side` is divided by this in each layer, at least 1."""
    min_mask_region_area: int | None = None
    """Holes and islands of fewer pixels are removed; at least 0, which leaves all."""
    max_candidates: int | None = None
    """Most masks of an image, those of highest predicted IoU, at least 1; None keeps all. In a
    config it is `candidates.max_candidates`."""
    profile: Literal["reference", "fast"] | None = None
    """`reference` gives what segment-anything's own generator gives; `fast` computes in another
    order, on a GPU in bfloat16: its masks differ a little, see `sam-candidates --difference`."""
    compile_encoder: bool | None = None
    """Whether `fast` compiles the image encoder, which takes a minute once per process."""

    def __post_init__(self) -> None:
        for name in (
            "points_per_side",
            "points_per_batch",
            "images_per_batch",
            "max_candidates",
            "crop_n_points_downscale_factor",
        ):
            self._check(name, 1, None)
        self._check("crop_n_layers", 0, 4)  # 341 crops
        self._check("min_mask_region_area", 0, None)
        for name in (
            "pred_iou_thresh",
            "stability_score_thresh",
            "box_nms_thresh",
            "crop_nms_thresh",
            "crop_overlap_ratio",
        ):
            self._check(name, 0, 1)
        if self.crop_overlap_ratio == 1:
            raise ConfigError("crop_overlap_ratio must be less than 1, got 1")
        if self.stability_score_offset is not None and not self.stability_score_offset > 0:
            raise ConfigError(
                f"stability_score_offset must be greater than 0, got {self.stability_score_offset}"
            )
        if self.profile not in (None, "reference", "fast"):
            raise ConfigError(f"profile must be 'reference' or 'fast', got {self.profile!r}")
        self._check_grids()

    def _check(self, name: str, low: float, high: float | None) -> None:
        """Refuse a field outside [low, high]."""
        value = getattr(self, name)
        if value is None or (
            isinstance(value, int | float) and value >= low and (high is None or value <= high)
        ):
            self._check_whole(name, value)
            return
        wanted = f"at least {low}" if high is None else f"in [{low}, {high}]"
        raise ConfigError(f"{name} must be {wanted}, got {value!r}")

    def _check_whole(self, name: str, value: float | None) -> None:
        """Refuse a fraction where a number of things is meant."""
        is_count = name.startswith(("points_", "images_", "crop_n_", "min_mask", "max_"))
        if value is not None and is_count and type(value) is not int:
            raise ConfigError(f"{name} must be a whole number, got {value!r}")

    def _check_grids(self) -> None:
        """Refuse grids that are empty, out of range, or beside `points_per_side`."""
        if self.point_grids is None:
            return
        if self.points_per_side is not None:
            raise ConfigError("give points_per_side or point_grids, got both")
        if not self.point_grids or not all(self.point_grids):
            raise ConfigError("point_grids must hold a grid of at least one point per layer")
        for layer, grid in enumerate(self.point_grids):
            for point in grid:
                if len(point) != 2 or not all(0 <= value <= 1 for value in point):
                    raise ConfigError(
                        f"point_grids: layer {layer}: expected (x, y) in [0, 1], got {point!r}"
                    )

    def filled(self, defaults: "GeneratorOptions") -> "GeneratorOptions":
        """Give the options with every None replaced by the default's value."""
        gaps = {f.name for f in fields(self) if getattr(self, f.name) is None}
        if self.point_grids is not None:
            gaps -= {"points_per_side"}
        if self.points_per_side is not None:
            gaps -= {"point_grids"}
        return replace(self, **{name: getattr(defaults, name) for name in gaps})


REFERENCE = GeneratorOptions(
    points_per_side=32,
    points_per_batch=64,
    images_per_batch=1,
    pred_iou_thresh=0.88,
    stability_score_thresh=0.95,
    stability_score_offset=1.0,
    box_nms_thresh=0.7,
    crop_n_layers=0,
    crop_nms_thresh=0.7,
    crop_overlap_ratio=512 / 1500,
    crop_n_points_downscale_factor=1,
    min_mask_region_area=0,
    profile="reference",
    compile_encoder=False,
)
"""The defaults of segment-anything's own generator; fill what a model entry leaves open."""

FAST = replace(REFERENCE, points_per_batch=256, images_per_batch=4, profile="fast")
"""What the fast profile takes instead: larger batches."""
