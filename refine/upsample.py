"""Core: bring the teacher's logits from the network's stride to image geometry."""

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
    top, fraction_H = _positions(value_hw.shape[0], size[0])
    bottom = np.minimum(top + 1, value_hw.shape[0] - 1)
    rows_Hw = value_hw[top] + (value_hw[bottom] - value_hw[top]) * fraction_H[:, None]
    left, fraction_W = _positions(value_hw.shape[1], size[1])
    right = np.minimum(left + 1, value_hw.shape[1] - 1)
    start_HW = rows_Hw[:, left]
    return np.asarray(start_HW + (rows_Hw[:, right] - start_HW) * fraction_W, np.float32)


def _positions(source: int, target: int) -> tuple[npt.NDArray[np.int64], FloatArray]:
    scale = np.float32((source - 1) / (target - 1)) if target > 1 else np.float32(0)
    position = scale * np.arange(target, dtype=np.float32)  # float32 as torch computes it
    start = np.minimum(position.astype(np.int64), source - 1)
    return start, np.asarray(position - start, np.float32)


def sigmoid(logit: FloatArray) -> FloatArray:
    """Give the probability of a logit margin; never overflows."""
    return np.asarray(1 / (1 + np.exp(-np.clip(logit, -80, 80))), np.float32)
