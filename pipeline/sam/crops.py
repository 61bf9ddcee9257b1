"""Core: overlapping crops of an image, and the masks of a crop laid into the image.

The crops, and which masks are cut by a crop's edge, are those of `SamAutomaticMaskGenerator`.

Shape legend: N masks, H and W rows and columns of the image, P = ceil(W / 8) packed bytes of a row.
"""

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

_NEAR_EDGE = 20  # pixels
_CHUNK_PIXELS = 1 << 25  # of masks unpacked at once


@dataclass(frozen=True, slots=True)
class Crop:
    """A rectangle of an image, half-open, pixels."""

    left: int
    top: int
    right: int
    bottom: int
    layer: int
    """0 = the whole image; a crop of layer n has about 2 ** -n of its sides."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.bottom - self.top, self.right - self.left

    @property
    def offset(self) -> npt.NDArray[np.float32]:
        """What added to a box in the crop gives the box in the image, XYXY, shape (4,)."""
        return np.asarray([self.left, self.top, self.left, self.top], np.float32)


def crops_of(size: tuple[int, int], num_layers: int, overlap_ratio: float) -> list[Crop]:
    """Cut an image into crops.

    Args:
        size: (H, W) of the image, pixels.
        num_layers: Layers beside the whole image; layer n has 4 ** n crops.
        overlap_ratio: Overlap of neighbours in layer 1, as a share of the image's shorter side;
            half of it in the next layer, and so on.

    Returns:
        The whole image first, then layer by layer, column by column. A tiny image has crops
        without a pixel, which are left out.
    """
    height, width = size
    crops = [Crop(0, 0, width, height, 0)]
    for layer in range(1, num_layers + 1):
        side = 2**layer
        overlap = int(overlap_ratio * min(size) * (2 / side))
        crop_height, crop_width = (
            math.ceil((overlap * (side - 1) + length) / side) for length in size
        )
        lefts = [int((crop_width - overlap) * i) for i in range(side)]
        tops = [int((crop_height - overlap) * i) for i in range(side)]
        for left, top in product(lefts, tops):
            right, bottom = min(left + crop_width, width), min(top + crop_height, height)
            if right > left and bottom > top:
                crops.append(Crop(left, top, right, bottom, layer))
    return crops


def cut_by_crop(
    box_N4: npt.NDArray[np.float32], crop: Crop, size: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    """Tell which boxes end near an edge of the crop that is no edge of the image, shape (N,).

    Args:
        box_N4: Inclusive XYXY in the image, pixels.
        crop: Where the masks were found.
        size: (H, W) of the image, pixels.
    """
    crop_4 = np.asarray([crop.left, crop.top, crop.right, crop.bottom], np.float32)
    image_4 = np.asarray([0, 0, size[1], size[0]], np.float32)
    near_crop = np.abs(box_N4 - crop_4) <= _NEAR_EDGE
    near_image = np.abs(box_N4 - image_4) <= _NEAR_EDGE
    return np.asarray((near_crop & ~near_image).any(axis=1), np.bool_)


def uncrop(bits: npt.NDArray[np.uint8], crop: Crop, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Lay packed masks of a crop into the image, shape (N, H, P)."""
    if crop.size == size:
        return bits
    height, width = size
    whole = np.zeros((len(bits), height, -(-width // 8)), np.uint8)
    step = max(1, _CHUNK_PIXELS // (height * width))
    for start in range(0, len(bits), step):
        part = bits[start : start + step]
        canvas = np.zeros((len(part), crop.size[0], width), np.bool_)
        canvas[:, :, crop.left : crop.right] = np.unpackbits(part, axis=2, count=crop.size[1])
        whole[start : start + step, crop.top : crop.bottom] = np.packbits(canvas, axis=2)
    return whole
