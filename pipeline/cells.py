"""Core: candidates of one image as cells, so that overlaps become sums over rows.

SAM's candidates overlap and nest. Two pixels share a *cell* when exactly the same candidates cover
both; cell 0 is covered by none. A map of cells and a bit matrix (candidates x cells) hold all masks
without loss, and the overlap of a label with every candidate is one count of its pixels per cell.

Shape legend: N candidates, C cells (cell 0 included), H and W pixels.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

MAX_CELLS = 65_535
"""Covered cells that uint16 can number beside cell 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """All candidate masks of one image.

    `cells` is (H, W) uint16, the cell of each pixel, 0 = covered by no candidate, the others
    numbered by first appearance in raster order. `membership` is (N, C) bool, C-contiguous; column
    0 is False throughout.
    """

    cells: npt.NDArray[np.uint16]
    membership: BoolArray

    def __post_init__(self) -> None:
        if self.cells.ndim != 2 or self.membership.ndim != 2 or self.membership.shape[1] < 1:
            raise ValueError(
                f"expected cells (H, W) and membership (N, C >= 1), found {self.cells.shape} "
                f"and {self.membership.shape}"
            )

    @property
    def num_candidates(self) -> int:
        """Number of masks, N."""
        return int(self.membership.shape[0])

    @property
    def num_cells(self) -> int:
        """Number of cells with cell 0, C."""
        return int(self.membership.shape[1])

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.cells.shape[0], self.cells.shape[1]


def build_cells(masks_NHW: BoolArray) -> Cells:
    """Cut an image into cells by its candidate masks.

    Exact: no hashing is involved. Pixels are first grouped into horizontal runs along which no mask
    changes; the runs' columns of bits are then numbered.

    Args:
        masks_NHW: Masks, (N, H, W) bool, any overlap; N may be 0.

    Raises:
        ValueError: If more than `MAX_CELLS` cells would be needed; see `build_cells_capped`.
    """
    num_masks, height, width = masks_NHW.shape
    if num_masks == 0 or height * width == 0:
        empty = np.zeros((height, width), np.uint16)
        return Cells(cells=empty, membership=np.zeros((num_masks, 1), np.bool_))
    masks_NP = np.ascontiguousarray(masks_NHW, np.bool_).reshape(num_masks, -1)
    starts_R = _run_starts(masks_NP.view(np.uint8))
    columns_RB = np.ascontiguousarray(np.packbits(masks_NP[:, starts_R], axis=0).T)
    cell_of_run_R, first_run_C = _number_by_appearance(columns_RB)
    if len(first_run_C) - 1 > MAX_CELLS:
        raise ValueError(
            f"{num_masks} masks cut the image into {len(first_run_C) - 1} cells, "
            f"at most {MAX_CELLS} can be stored"
        )
    lengths_R = np.diff(starts_R, append=height * width)
    cells_P = np.repeat(cell_of_run_R.astype(np.uint16), lengths_R)
    membership_NC = np.zeros((num_masks, len(first_run_C)), np.bool_)
    membership_NC[:, 1:] = masks_NP[:, starts_R[first_run_C[1:]]]
    return Cells(cells=cells_P.reshape(height, width), membership=membership_NC)


def build_cells_capped(
    masks_NHW: BoolArray, score_N: npt.NDArray[np.float32]
) -> tuple[Cells, IntArray]:
    """Cut into cells, dropping the lowest-scored masks if there are too many cells.

    Args:
        masks_NHW: (N, H, W) bool.
        score_N: (N,) float32; ties drop the later mask first.

    Returns:
        The cells, and the (K,) int64 rows of the masks kept, ascending.
    """
    order_N = np.argsort(-score_N, kind="stable")
    fits, fails = 0, len(order_N) + 1
    best = build_cells(masks_NHW[:0])
    keep = len(order_N)
    while fails - fits > 1:
        rows = np.sort(order_N[:keep])
        try:
            best, fits = build_cells(masks_NHW[rows]), keep
        except ValueError:
            fails = keep
        keep = (fits + fails) // 2
    return best, np.sort(order_N[:fits]).astype(np.int64)


def _run_starts(masks_NP: npt.NDArray[np.uint8]) -> IntArray:
    changed_P = np.zeros(masks_NP.shape[1], np.uint8)
    changed_P[0] = 1
    edge = np.empty(masks_NP.shape[1] - 1, np.uint8)
    for mask_P in masks_NP:  # one mask at a time stays in the cache
        np.bitwise_xor(mask_P[1:], mask_P[:-1], out=edge)
        np.bitwise_or(changed_P[1:], edge, out=changed_P[1:])
    return np.flatnonzero(changed_P)


def _number_by_appearance(columns_RB: npt.NDArray[np.uint8]) -> tuple[IntArray, IntArray]:
    """Number equal rows 1, 2, … by first appearance, all-zero rows 0.

    Returns the number of each row, and the first row with each number (entry 0 is meaningless if
    no row is zero).
    """
    as_void = columns_RB.view(np.dtype((np.void, columns_RB.shape[1]))).ravel()
    _, first_U, inverse_R = np.unique(as_void, return_index=True, return_inverse=True)
    is_zero_U = ~columns_RB[first_U].any(axis=1)
    covered_U = np.flatnonzero(~is_zero_U)
    covered_U = covered_U[np.argsort(first_U[covered_U], kind="stable")]
    number_U = np.zeros(len(first_U), np.int64)
    number_U[covered_U] = np.arange(1, len(covered_U) + 1)
    first_C = np.concatenate([np.zeros(1, np.int64), first_U[covered_U].astype(np.int64)])
    return number_U[inverse_R], first_C


def masks_of(cells: Cells) -> BoolArray:
    """Give back every candidate mask, (N, H, W) bool."""
    return cells.membership[:, cells.cells]


def cell_sizes(cells: Cells) -> IntArray:
    """Count the pixels of each cell, (C,) int64; they sum to H * W."""
    return np.bincount(cells.cells.ravel(), minlength=cells.num_cells)


def pixels_per_cell(cells: Cells, label_HW: BoolArray) -> IntArray:
    """Count a label's pixels in each cell, (C,) int64.

    Raises:
        ValueError: If the label is of another size than the candidates.
    """
    if label_HW.shape != cells.size:
        raise ValueError(f"candidates are of size {cells.size}, the label is {label_HW.shape}")
    rows = np.flatnonzero(label_HW.any(axis=1))
    if not len(rows):
        return np.zeros(cells.num_cells, np.int64)
    columns = np.flatnonzero(label_HW[rows[0] : rows[-1] + 1].any(axis=0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]  # most labels are small
    return np.bincount(cells.cells[box][label_HW[box]], minlength=cells.num_cells)


def sums_per_cell(cells: Cells, value_HW: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Sum a value, e.g. the teacher's probability, over each cell, (C,) float64."""
    sums_C = np.bincount(cells.cells.ravel(), value_HW.ravel(), minlength=cells.num_cells)
    return np.asarray(sums_C, np.float64)


def mask_of_cells(cells: Cells, chosen_C: BoolArray) -> BoolArray:
    """Paint the chosen cells, (C,) bool to (H, W) bool."""
    return chosen_C.take(cells.cells)  # half the time of an index


def pack_membership(cells: Cells) -> npt.NDArray[np.uint8]:
    """Pack `membership` without column 0 into bytes, each candidate from a byte of its own.

    Returns:
        (N * ceil((C - 1) / 8),) uint8, big-endian bits as `np.packbits`.
    """
    return np.ascontiguousarray(np.packbits(cells.membership[:, 1:], axis=1)).ravel()


def unpack_membership(
    packed: npt.NDArray[np.uint8], num_candidates: int, num_cells: int
) -> BoolArray:
    """Invert `pack_membership`; `num_cells` counts cell 0.

    Raises:
        ValueError: If the bytes are not as many as the numbers demand.
    """
    row_bytes = (num_cells - 1 + 7) // 8
    if len(packed) != num_candidates * row_bytes:
        raise ValueError(
            f"membership of {num_candidates} candidates and {num_cells} cells takes "
            f"{num_candidates * row_bytes} bytes, found {len(packed)}"
        )
    membership_NC = np.zeros((num_candidates, num_cells), np.bool_)
    bits = packed.reshape(num_candidates, row_bytes)
    membership_NC[:, 1:] = np.unpackbits(bits, axis=1, count=num_cells - 1)
    return membership_NC
