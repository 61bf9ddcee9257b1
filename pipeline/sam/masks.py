"""The masks of one image, wherever they come from: a network, region merging, a file.

Shape legend: N masks, H and W rows and columns of the image, P = ceil(W / 8) packed bytes of a row.
"""

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from pipeline.sam.packed import boxes_of, count_pixels

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Masks:
    """The masks of one image, in the order in which they are kept; columns of one length N >= 0."""

    bits: npt.NDArray[np.uint8]
    """Shape (N, H, P), each row packed as by `np.packbits`."""
    width: int
    """Columns of the image, W."""
    predicted_iou: npt.NDArray[np.float32]
    """The network's own estimate, shape (N,), about [0, 1]."""
    stability_score: npt.NDArray[np.float32]
    """IoU of the mask under two logit cut-offs, shape (N,), in [0, 1]."""
    box: npt.NDArray[np.int32]
    """XYXY, half-open, pixels, shape (N, 4); zeros for a mask without a pixel."""
    area: npt.NDArray[np.int32]
    """Pixels of the mask, shape (N,)."""
    point: npt.NDArray[np.float32]
    """The prompt, (x, y) in pixels, shape (N, 2)."""
    num_dropped: int = 0
    """Masks beyond `max_candidates`, which are not in the columns."""

    def __post_init__(self) -> None:
        columns = [f.name for f in fields(self) if f.name not in ("width", "num_dropped")]
        lengths = {name: len(getattr(self, name)) for name in columns}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns of different lengths: {lengths}")

    def __len__(self) -> int:
        return len(self.bits)

    @property
    def masks(self) -> BoolArray:
        """Every mask, unpacked, shape (N, H, W)."""
        return np.unpackbits(self.bits, axis=2, count=self.width).view(np.bool_)

    def select(self, rows: npt.NDArray[np.int64]) -> "Masks":
        """Give the masks of the rows, in their order; `num_dropped` stays."""
        return Masks(
            bits=self.bits[rows],
            width=self.width,
            predicted_iou=self.predicted_iou[rows],
            stability_score=self.stability_score[rows],
            box=self.box[rows],
            area=self.area[rows],
            point=self.point[rows],
            num_dropped=self.num_dropped,
        )


def masks_from_bits(
    bits: npt.NDArray[np.uint8],
    width: int,
    predicted_iou: npt.NDArray[np.float32],
    stability_score: npt.NDArray[np.float32],
    point: npt.NDArray[np.float32],
    num_dropped: int = 0,
) -> Masks:
    """Give masks with their boxes and areas, which follow from the bits."""
    return Masks(
        bits=bits,
        width=width,
        predicted_iou=predicted_iou,
        stability_score=stability_score,
        box=boxes_of(bits, width),
        area=count_pixels(bits).astype(np.int32),
        point=point,
        num_dropped=num_dropped,
    )
