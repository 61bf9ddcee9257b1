"""Core: move the edges of masks to those of small regions, and drop near duplicates.

Shape legend: N masks, H and W rows and columns of the image, P = ceil(W / 8) packed bytes of a row,
R regions, C cells.
"""

import numpy as np
import numpy.typing as npt

from pipeline.cells import build_cells_packed, overlaps

_AT_ONCE = 16  # masks whose cells are built together: no more than 16 bits can number


def snap_to_regions(
    bits: npt.NDArray[np.uint8], regions_HW: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint8]:
    """Let every mask take the regions of which it covers more than half, whole.

    Args:
        bits: Packed masks, shape (N, H, P).
        regions_HW: The region of every pixel, from 0.

    Returns:
        Packed masks, shape (N, H, P); a mask that covers half of no region stays as it is.
    """
    snapped = bits.copy()
    for start in range(0, len(bits), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        taken_NR = _mostly_covered(bits[part], regions_HW)
        rows = np.flatnonzero(taken_NR.any(axis=1))
        snapped[start + rows] = np.packbits(taken_NR[rows][:, regions_HW], axis=2)
    return snapped


def _mostly_covered(
    bits: npt.NDArray[np.uint8], regions_HW: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Tell of which regions each mask covers more than half, (N, R)."""
    cells = build_cells_packed(bits, regions_HW.shape[1])
    num_regions = int(regions_HW.max(initial=0)) + 1
    pair_HW = regions_HW * cells.num_cells + cells.cells
    shared_RC = np.bincount(pair_HW.ravel(), minlength=num_regions * cells.num_cells)
    shared_RC = shared_RC.reshape(num_regions, cells.num_cells)
    covered_NR = cells.membership.astype(np.float64) @ shared_RC.T.astype(np.float64)
    return np.asarray(2 * covered_NR > shared_RC.sum(axis=1), np.bool_)


def without_duplicates(bits: npt.NDArray[np.uint8], max_iou: float) -> npt.NDArray[np.int64]:
    """Keep masks in their order, but those too much like one kept before, pixel by pixel.

    Args:
        bits: Packed masks, shape (N, H, P).
        max_iou: A mask is dropped if its IoU with one kept before is greater.

    Returns:
        The rows kept, rising, int64; masks without a pixel are dropped.
    """
    both_NN = overlaps(bits)
    area_N = np.diag(both_NN)
    alive = area_N > 0
    kept = []
    for row in range(len(area_N)):
        if not alive[row]:
            continue
        kept.append(row)
        either_N = area_N[row] + area_N - both_NN[row]
        alive &= both_NN[row] <= max_iou * either_N
    return np.asarray(kept, np.int64)
