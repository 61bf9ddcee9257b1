"""Core: run lengths as other tools write them in JSON, and the masks that they encode.

All of them are column-major. Lists come from a file that nobody vouches for.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import ItemError

Size = tuple[int, int]
Runs = npt.NDArray[np.int64]


def runs_of_counts(counts: list[Any], size: Size) -> Runs:
    """Check the counts of an uncompressed COCO RLE.

    Args:
        counts: Lengths of runs, background first; runs of no pixel are fine.
        size: (H, W) in pixels.

    Returns:
        The same, shape (R,), int64, together H * W.

    Raises:
        ItemError: If they are no integers from 0 to H * W or do not fill H * W pixels.
    """
    runs = _integers(counts, size)
    _check_total(int(runs.sum()), size)
    return runs


def runs_of_pairs(pairs: list[Any], size: Size) -> Runs:
    """Turn SemiRES' (start, length) pairs into run lengths.

    Args:
        pairs: Start, length, start, length, ... of the runs of foreground; the first pixel is 1.
        size: (H, W) in pixels.

    Returns:
        Lengths of runs, background first, no two runs of one kind in a row, shape (R,), int64,
        together H * W.

    Raises:
        ItemError: If they are no pairs of integers, overlap, do not rise or leave the image.
    """
    flat = _integers(pairs, size)
    if len(flat) % 2:
        raise ItemError(f"expected pairs of start and length as counts, found {len(flat)} numbers")
    start, length = flat[0::2] - 1, flat[1::2]
    end = start + length
    gap = start - np.concatenate((np.zeros(1, np.int64), end[:-1]))[: len(start)]
    if (start < 0).any() or (length < 1).any() or (gap < 0).any():
        raise ItemError("expected rising starts from 1 and lengths from 1 that do not overlap")
    if len(end) and end[-1] > size[0] * size[1]:
        raise ItemError(
            f"expected runs within {size[0]}x{size[1]} = {size[0] * size[1]} pixels, found one "
            f"that ends at {end[-1]}"
        )
    fresh = gap > 0
    fresh[:1] = True
    start, end = start[fresh], end[np.append(fresh[1:], True)[: len(end)]]
    edges = np.stack((start, end), axis=1).ravel()
    return np.asarray(np.diff(edges, prepend=0, append=size[0] * size[1]), np.int64)


def mask_of_runs(runs: Runs, size: Size) -> npt.NDArray[np.bool_]:
    """Paint checked run lengths, background first, shape (H, W), bool, C-contiguous."""
    values = (np.arange(len(runs)) & 1).astype(np.bool_)
    return np.ascontiguousarray(np.repeat(values, runs).reshape(size[1], size[0]).T)


def _integers(values: list[Any], size: Size) -> Runs:
    """Give a list as int64 if it holds integers from 0 to H * W and nothing else."""
    limit = size[0] * size[1]
    # Types first: bool and float would compare and convert without a word.
    if values and not (
        set(map(type, values)) == {int} and 0 <= min(values) <= max(values) <= limit
    ):
        bad = next(value for value in values if type(value) is not int or not 0 <= value <= limit)
        raise ItemError(f"expected RLE counts as integers from 0 to {limit}, found {bad!r:.20}")
    return np.array(values, np.int64)


def _check_total(total: int, size: Size) -> None:
    if total != size[0] * size[1]:
        raise ItemError(
            f"expected an RLE of {size[0]}x{size[1]} = {size[0] * size[1]} pixels, found runs "
            f"that sum to {total}"
        )
