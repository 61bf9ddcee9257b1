"""Core: masks as packed bits: count, box, and non-maximum suppression.

Shape legend: N masks, H and W rows and columns, P = ceil(W / 8) bytes of a packed row.
"""

import numpy as np
import numpy.typing as npt


def count_pixels(bits: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Count the set pixels of packed masks (N, H, P), shape (N,)."""
    flat = bits.reshape(len(bits), bits.shape[1] * bits.shape[2])
    spare = -flat.shape[1] % 8
    if spare:
        flat = np.pad(flat, ((0, 0), (0, spare)))
    return np.asarray(np.bitwise_count(flat.view(np.uint64)).sum(axis=1), np.int64)


def boxes_of(bits: npt.NDArray[np.uint8], width: int) -> npt.NDArray[np.int32]:
    """Give the half-open boxes of packed masks, XYXY, shape (N, 4); zeros for an empty mask."""
    if not len(bits):
        return np.zeros((0, 4), np.int32)
    rows = np.asarray(bits.any(axis=2))
    columns = np.unpackbits(np.bitwise_or.reduce(bits, axis=1), axis=1, count=width)
    ends = [
        columns.argmax(1),
        rows.argmax(1),
        width - columns[:, ::-1].argmax(1),
        rows.shape[1] - rows[:, ::-1].argmax(1),
    ]
    return np.stack(ends, axis=1).astype(np.int32) * rows.any(axis=1, keepdims=True)


def inclusive_boxes(bits: npt.NDArray[np.uint8], width: int) -> npt.NDArray[np.float32]:
    """Give boxes that end at the last pixel instead of behind it, as SAM compares them, (N, 4)."""
    return np.maximum(boxes_of(bits, width) - [0, 0, 1, 1], 0).astype(np.float32)


def greedy_nms(
    box: npt.NDArray[np.float32], score: npt.NDArray[np.float32], thresh: float
) -> npt.NDArray[np.int64]:
    """Keep the best boxes, dropping every box that overlaps a kept one too much.

    Args:
        box: XYXY, shape (N, 4).
        score: Shape (N,); ties go to the earlier box.
        thresh: A box is dropped if its IoU with a better kept box is greater.

    Returns:
        Rows kept, by descending score, int64.
    """
    order = np.argsort(-score, kind="stable")
    low, high = box[order, :2], box[order, 2:]
    area = np.prod(high - low, axis=1)
    alive = np.ones(len(order), np.bool_)
    kept = []
    for row in range(len(order)):
        if not alive[row]:
            continue
        kept.append(row)
        side = np.minimum(high[row], high[row:]) - np.maximum(low[row], low[row:])
        overlap = np.prod(np.maximum(side, 0), axis=1)
        union = area[row] + area[row:] - overlap
        iou = np.divide(overlap, union, out=np.zeros_like(union), where=union > 0)
        # As in torchvision, a float32 IoU against a double threshold.
        alive[row:] &= ~(iou.astype(np.float64) > thresh)
    return np.asarray(order[kept], np.int64)
