"""Core: Swin's relative position bias tables, and the index of which pair reads which row."""

import math

import torch
from torch.nn import functional as F


def is_table(name: str) -> bool:
    """Tell a table by its name, theirs or ours."""
    return name.endswith("relative_position_bias_table")


def window_of(table: torch.Tensor) -> int | None:
    """Give the side of the window that a table is for; None if it is of no window.

    Args:
        table: Shape ((2 w - 1) ** 2, heads).
    """
    if table.ndim != 2:
        return None
    side = math.isqrt(table.shape[0])
    return (side + 1) // 2 if side * side == table.shape[0] and side % 2 else None


def resize_table(table: torch.Tensor, rows: int) -> torch.Tensor:
    """Interpolate a table to another window, bicubic, as LAVT does on loading a Swin.

    Args:
        table: Shape ((2 w - 1) ** 2, heads), floating; w the old window's side.
        rows: (2 v - 1) ** 2, v the new window's side.

    Returns:
        Shape (rows, heads), float32.
    """
    old, new = math.isqrt(table.shape[0]), math.isqrt(rows)
    image = table.float().T.unflatten(1, (old, old))[None]
    resized = F.interpolate(image, (new, new), mode="bicubic", align_corners=False)
    return resized[0].flatten(1).T


def position_index(window: int) -> torch.Tensor:
    """Give the row of the table for every pair of a window's tokens.

    Token i of row y_i and column x_i and token j read row
    (y_i - y_j + w - 1) (2 w - 1) + (x_i - x_j + w - 1).

    Returns:
        Shape (w * w, w * w), int64.
    """
    tokens = torch.arange(window * window)
    y, x = tokens // window, tokens % window
    down = y[:, None] - y[None] + window - 1
    across = x[:, None] - x[None] + window - 1
    return down * (2 * window - 1) + across


def index_differs(index: torch.Tensor) -> int:
    """Count the entries of an index that are not those of its window; all if it is of none."""
    window = math.isqrt(math.isqrt(index.numel()))
    if index.ndim != 2 or index.shape != (window**2, window**2):
        return index.numel()
    return int((index != position_index(window)).sum())
