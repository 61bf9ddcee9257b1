"""Core: fill small holes of masks and remove small islands.

As `SamAutomaticMaskGenerator` with `min_mask_region_area`, which uses OpenCV's connected
components; regions touch across corners.

Shape legend: N masks, H and W rows and columns of the image, P = ceil(W / 8) packed bytes of a row.
"""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pipeline.sam.packed import greedy_nms, inclusive_boxes

BoolArray = npt.NDArray[np.bool_]
_CORNERS_TOUCH = np.ones((3, 3), np.bool_)


def _regions(mask_HW: BoolArray) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Number the connected regions from 1 in raster order; give numbers (H, W) and areas."""
    labels = np.empty(mask_HW.shape, np.int32)
    count = int(ndimage.label(mask_HW, structure=_CORNERS_TOUCH, output=labels))
    return labels, np.bincount(labels.ravel(), minlength=count + 1)


def fill_holes(mask_HW: BoolArray, min_area: int) -> tuple[BoolArray, bool]:
    """Add the background's regions of fewer than `min_area` pixels, also those at the border.

    Returns:
        The mask, and whether there was such a region.
    """
    labels, area = _regions(~mask_HW)
    small = area < min_area
    small[0] = True  # the mask itself
    return np.asarray(small[labels], np.bool_), bool(small[1:].any())


def drop_islands(mask_HW: BoolArray, min_area: int) -> tuple[BoolArray, bool]:
    """Remove the mask's regions of fewer than `min_area` pixels; the largest always stays.

    Returns:
        The mask, and whether there was such a region, be it one that stays.
    """
    labels, area = _regions(mask_HW)
    kept = area >= min_area
    some_small = not bool(kept[1:].all())
    kept[0] = False
    if some_small and not kept.any():
        largest = np.flatnonzero(area[1:] == area[1:].max()) + 1
        y, x = np.nonzero(np.isin(labels, largest))
        # Of several, the one that OpenCV numbers first: it goes by blocks of 2 x 2 pixels.
        first = int(np.argmin((y // 2) * mask_HW.shape[1] + x // 2))
        kept[labels[y[first], x[first]]] = True
    return np.asarray(kept[labels], np.bool_), some_small


def tidy_masks(
    bits: npt.NDArray[np.uint8], width: int, min_area: int, nms_thresh: float
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Fill small holes, remove small islands, then drop what has become a duplicate.

    Args:
        bits: Packed masks, shape (N, H, P).
        width: Columns of the image, W.
        min_area: Smaller regions go, pixels.
        nms_thresh: A mask is dropped if its box's IoU with a kept one's is greater; masks without
            a small region come first.

    Returns:
        The packed masks that are kept, shape (K, H, P), those without a small region first, and
        their rows in the input, shape (K,), int64.
    """
    tidy = np.empty_like(bits)
    untouched = np.zeros(len(bits), np.float32)
    for row, packed in enumerate(bits):  # one mask at a time: labels take 4 bytes a pixel
        mask = np.unpackbits(packed, axis=1, count=width).view(np.bool_)
        filled, had_hole = fill_holes(mask, min_area)
        tidied, had_island = drop_islands(filled, min_area)
        tidy[row] = np.packbits(tidied, axis=1)
        untouched[row] = not (had_hole or had_island)
    inclusive = inclusive_boxes(tidy, width)
    kept = greedy_nms(inclusive, untouched, nms_thresh)
    return tidy[kept], kept
