"""Core: bring the teacher's logits from the network's stride to image geometry."""

import functools

import numpy as np
import numpy.typing as npt

from refine.evidence import FloatArray


def upsample_align_corners(value_hw: npt.NDArray[np.floating], size: tuple[int, int]) -> FloatArray:
    """Interpolate bilinearly with corners on corners.

    The rule of torch's `interpolate` with `mode="bilinear", align_corners=True`, which is how LAVT
    brings its logits to the size of its input.

    Args:
        value_hw: (h, w), any float type.
        size: (H, W) wanted, in pixels.

    Returns:
        (H, W) float32.
    """
    value_hw = np.asarray(value_hw, np.float32)
    left, fraction_W = _positions(value_hw.shape[1], size[1])
    right = np.minimum(left + 1, value_hw.shape[1] - 1)
    # Columns first, while there are few rows. `take` is three times as fast as an index.
    mixed = value_hw.take(right, axis=1)
    start = value_hw.take(left, axis=1)
    mixed -= start
    mixed *= fraction_W
    mixed += start
    top, fraction_H = _positions(value_hw.shape[0], size[0])
    step = np.zeros_like(mixed)
    np.subtract(mixed[1:], mixed[:-1], out=step[:-1])
    full_HW: FloatArray = step.take(top, axis=0)
    full_HW *= fraction_H[:, None]
    full_HW += mixed.take(top, axis=0)
    return full_HW


@functools.lru_cache(maxsize=64)
def _positions(source: int, target: int) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """Give where each target row lies: the source row before it, and how far behind that."""
    scale = np.float32((source - 1) / (target - 1)) if target > 1 else np.float32(0)
    position = scale * np.arange(target, dtype=np.float32)  # float32 as torch computes it
    start = np.minimum(position.astype(np.int64), source - 1)
    return start, np.asarray(position - start, np.float32)


def sigmoid(logit: FloatArray) -> FloatArray:
    """Give the probability of a logit margin, 0 or 1 where float32 has no more."""
    prob = np.negative(logit, dtype=np.float32)
    with np.errstate(over="ignore"):  # exp gives inf, of which the reciprocal is 0
        np.exp(prob, out=prob)
    prob += 1
    return np.asarray(np.reciprocal(prob, out=prob), np.float32)
