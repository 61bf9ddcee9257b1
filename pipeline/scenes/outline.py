"""Fill polygons in integer arithmetic; Pillow's own filling differs between its versions."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def fill_polygon(points: Sequence[tuple[int, int]]) -> tuple[int, int, NDArray[np.bool_]]:
    """Give the samples whose centres lie in a polygon.

    A vertex (x, y) is a corner between samples, whose centres are at half integers. A sample is
    inside if the outline is crossed an odd number of times to its left or at its centre, so a
    polygon that goes in and comes back along the same line has a hole.

    Args:
        points: Vertices (x, y), x to the right, y down; the last is joined to the first.

    Returns:
        (x, y, inside): the corner of the polygon's box, and bool of the shape of that box, whose
        sides may be 0.
    """
    vertices = np.array(points, np.int64)
    corner = vertices.min(axis=0)
    width, height = (int(side) for side in vertices.max(axis=0) - corner)
    start = vertices - corner
    end = np.roll(start, -1, axis=0)
    swap = start[:, 1] > end[:, 1]
    upper = np.where(swap[:, None], end, start)
    lower = np.where(swap[:, None], start, end)
    rows_of = lower[:, 1] - upper[:, 1]  # rows that each edge crosses
    edge = np.repeat(np.arange(len(upper)), rows_of)
    first = np.cumsum(rows_of) - rows_of
    row = np.arange(len(edge)) - first[edge] + upper[edge, 1]
    fall, run = rows_of[edge], lower[edge, 0] - upper[edge, 0]
    # The crossing at the row's centre is at `twice / (2 * fall)`; the first centre not to the
    # left of it is that less one half, rounded up.
    twice = 2 * fall * upper[edge, 0] + (2 * (row - upper[edge, 1]) + 1) * run
    column = -((fall - twice) // (2 * fall))
    count = np.bincount(row * (width + 1) + column, minlength=height * (width + 1))
    odd = (count & 1).astype(np.bool_).reshape(height, width + 1)
    inside = np.logical_xor.accumulate(odd, axis=1)[:, :width]
    return int(corner[0]), int(corner[1]), inside
