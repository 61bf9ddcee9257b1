"""Core: candidates of one image as cells, so that overlaps become sums over rows.

SAM's candidates overlap and nest. Two pixels share a *cell* when exactly the same candidates cover
both; cell 0 is covered by none. A map of cells and a bit matrix (candidates x cells) hold all masks
without loss, and the overlap of a label with every candidate is one count of its pixels per cell.

Shape legend: N candidates, C cells (cell 0 included), H and W pixels, P pixels of a row with its
padding, B packed bytes, R horizontal runs, U distinct columns, G groups of eight candidates.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
ByteArray = npt.NDArray[np.uint8]

MAX_CELLS = 65_535
"""Covered cells that uint16 can number beside cell 0."""

_CELLS_AT_ONCE = 1 << 14
_ODD = np.uint64(0x9E3779B97F4A7C15)


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

    Args:
        masks_NHW: Masks, (N, H, W) bool, any overlap; N may be 0.

    Raises:
        ValueError: If more than `MAX_CELLS` cells would be needed; see `build_cells_capped`.
    """
    return build_cells_packed(np.packbits(masks_NHW, axis=2), masks_NHW.shape[2])


def build_cells_packed(bits_NHB: ByteArray, width: int) -> Cells:
    """Cut an image into cells by masks whose rows are packed as by `np.packbits`.

    Exact: hashes find equal columns, and what they find is compared. Pixels are first grouped into
    horizontal runs along which no mask changes; the runs' columns of bits are then numbered.

    Args:
        bits_NHB: Masks, (N, H, ceil(W / 8)) uint8, any overlap; N may be 0.
        width: Columns of the image, W.

    Raises:
        ValueError: If more than `MAX_CELLS` cells would be needed; see `build_cells_capped`.
    """
    num_masks, height, _ = bits_NHB.shape
    if num_masks == 0 or height * width == 0:
        empty = np.zeros((height, width), np.uint16)
        return Cells(cells=empty, membership=np.zeros((num_masks, 1), np.bool_))
    cell_R, length_R, membership_NC = _cut(bits_NHB)
    if membership_NC.shape[1] - 1 > MAX_CELLS:
        raise ValueError(
            f"{num_masks} masks cut the image into {membership_NC.shape[1] - 1} cells, "
            f"at most {MAX_CELLS} can be stored"
        )
    padded_HP = np.repeat(cell_R.astype(np.uint16), length_R).reshape(height, -1)
    return Cells(cells=np.ascontiguousarray(padded_HP[:, :width]), membership=membership_NC)


def overlaps(bits_NHB: ByteArray) -> npt.NDArray[np.float64]:
    """Count the pixels that every two masks share, through cells of any number.

    Args:
        bits_NHB: Masks, (N, H, ceil(W / 8)) uint8, as for `build_cells_packed`.

    Returns:
        (N, N) float64, whole numbers; the diagonal holds the areas.
    """
    if not bits_NHB.size:
        return np.zeros((len(bits_NHB), len(bits_NHB)))
    cell_R, length_R, membership_NC = _cut(bits_NHB)
    size_C = np.bincount(cell_R, length_R, minlength=membership_NC.shape[1])
    shared_NN = np.zeros((len(bits_NHB), len(bits_NHB)))
    for start in range(1, len(size_C), _CELLS_AT_ONCE):
        part = slice(start, start + _CELLS_AT_ONCE)
        member_NC = membership_NC[:, part].astype(np.float64)
        shared_NN += (member_NC * size_C[part]) @ member_NC.T
    return shared_NN


def _cut(bits_NHB: ByteArray) -> tuple[IntArray, IntArray, BoolArray]:
    """Give the cell and length of every run, padding of rows included, and the membership."""
    bits_NB = np.ascontiguousarray(bits_NHB).reshape(len(bits_NHB), -1)
    starts_R = _run_starts(bits_NB)
    place_R = (7 - (starts_R & 7)).astype(np.uint8)
    covers_NR = (bits_NB.take(starts_R >> 3, axis=1) >> place_R) & np.uint8(1)
    cell_R, first_run_C = _number_by_appearance(_words(covers_NR))
    membership_NC = np.zeros((len(bits_NB), len(first_run_C)), np.bool_)
    membership_NC[:, 1:] = covers_NR[:, first_run_C[1:]]
    return cell_R, np.diff(starts_R, append=bits_NB.shape[1] * 8), membership_NC


def build_cells_capped(
    bits_NHB: ByteArray, width: int, score_N: npt.NDArray[np.float32]
) -> tuple[Cells, IntArray]:
    """Cut into cells, dropping the lowest-scored masks if there are too many cells.

    Args:
        bits_NHB: Masks, (N, H, ceil(W / 8)) uint8, as for `build_cells_packed`.
        width: Columns of the image, W.
        score_N: (N,) float32; ties drop the later mask first.

    Returns:
        The cells, and the (K,) int64 rows of the masks kept, ascending.
    """
    order_N = np.argsort(-score_N, kind="stable")
    fits, fails = 0, len(order_N) + 1
    best = build_cells_packed(bits_NHB[:0], width)
    keep = len(order_N)
    while fails - fits > 1:
        rows = np.sort(order_N[:keep])
        try:
            best, fits = build_cells_packed(bits_NHB[rows], width), keep
        except ValueError:
            fails = keep
        keep = (fits + fails) // 2
    return best, np.sort(order_N[:fits]).astype(np.int64)


def _run_starts(bits_NB: ByteArray) -> IntArray:
    """Give the pixels at which some mask changes; the image's first is always one."""
    changed_B = np.zeros(bits_NB.shape[1], np.uint8)
    edge_B = np.empty_like(changed_B)
    for mask_B in bits_NB:  # one mask at a time stays in the cache
        np.right_shift(mask_B, 1, out=edge_B)
        edge_B[1:] |= mask_B[:-1] << 7
        edge_B ^= mask_B
        changed_B |= edge_B
    changed_B[0] |= 128
    return np.flatnonzero(np.unpackbits(changed_B))


def _words(covers_NR: ByteArray) -> list[npt.NDArray[np.uint64]]:
    """Pack columns of zeros and ones into words of 64 bits, (R,) each."""
    num_masks, num_runs = covers_NR.shape
    padded_NR = covers_NR
    if num_masks % 8:
        spare = np.zeros((-num_masks % 8, num_runs), np.uint8)
        padded_NR = np.concatenate([covers_NR, spare])
    bytes_GR = padded_NR[0::8].copy()
    for place in range(1, 8):
        bytes_GR |= padded_NR[place::8] << np.uint8(place)
    words = []
    for first in range(0, len(bytes_GR), 8):
        word_R = bytes_GR[first].astype(np.uint64)
        for place, byte_R in enumerate(bytes_GR[first + 1 : first + 8], start=1):
            word_R |= byte_R.astype(np.uint64) << np.uint64(8 * place)
        words.append(word_R)
    return words


def _number_by_appearance(words: list[npt.NDArray[np.uint64]]) -> tuple[IntArray, IntArray]:
    """Number equal columns 1, 2, … by first appearance, all-zero columns 0.

    Returns the number of each run, and the first run with each number (entry 0 is meaningless if
    no run is zero).
    """
    hash_R = np.zeros(len(words[0]), np.uint64)
    for word_R in words:
        hash_R = (hash_R ^ (hash_R >> np.uint64(29)) ^ word_R) * _ODD
    _, first_U, inverse_R = np.unique(hash_R, return_index=True, return_inverse=True)
    if any(not np.array_equal(word_R[first_U][inverse_R], word_R) for word_R in words):
        # Two columns of one hash: sort the columns themselves.
        rows = np.stack(words, axis=1).view(np.dtype((np.void, 8 * len(words)))).ravel()
        _, first_U, inverse_R = np.unique(rows, return_index=True, return_inverse=True)
    is_zero_U = ~np.any([word_R[first_U] != 0 for word_R in words], axis=0)
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
