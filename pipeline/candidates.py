"""Shell: the rows of `candidates.zarr`, one per image: cells, membership, SAM's scores."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.cells import Cells, pack_membership, unpack_membership
from pipeline.errors import StoreError
from pipeline.found_values import why
from pipeline.places import Place, is_on_the_way
from pipeline.records import open_planned
from pipeline.store import PAYLOAD_CHUNK_BYTES, ArraySpec

Columns = dict[str, npt.NDArray[Any]]

NOT_WRITTEN, FAILED = -1, -2
"""What `num_candidates` says of a row that no task wrote, and of an image that failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """SAM's candidate masks of one image, in canvas geometry; there may be none.

    `cells` holds the N masks; the other columns are (N,) `predicted_iou` (about [0, 1]) and
    `stability_score` (in [0, 1]) float32, (N, 4) `box` int32 XYXY half-open pixels, (N,) `area`
    int32 pixels, (N, 2) `point` float32 (x, y) pixels, the prompt.
    """

    cells: Cells
    predicted_iou: npt.NDArray[np.float32]
    stability_score: npt.NDArray[np.float32]
    box: npt.NDArray[np.int32]
    area: npt.NDArray[np.int32]
    point: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        columns = (self.predicted_iou, self.stability_score, self.box, self.area, self.point)
        lengths = {len(column) for column in columns} | {self.cells.num_candidates}
        if len(lengths) > 1:
            raise ValueError(f"expected columns of one length, found {sorted(lengths)}")


def no_candidates(size: tuple[int, int]) -> Candidates:
    """Give the valid result of an image in which nothing was found."""
    cells = Cells(cells=np.zeros(size, np.uint16), membership=np.zeros((0, 1), np.bool_))
    return Candidates(
        cells=cells,
        predicted_iou=np.zeros(0, np.float32),
        stability_score=np.zeros(0, np.float32),
        box=np.zeros((0, 4), np.int32),
        area=np.zeros(0, np.int32),
        point=np.zeros((0, 2), np.float32),
    )


def candidate_arrays(canvas: int, max_candidates: int) -> tuple[ArraySpec, ...]:
    """List the arrays of `candidates.zarr`.

    Args:
        canvas: Longest side in pixels that `cells` has room for.
        max_candidates: Candidates per image that the score columns have room for.
    """
    per_candidate = (max_candidates,)
    return (
        ArraySpec(name="image", dtype="int64", fill_value=-1),
        ArraySpec(name="size", dtype="int32", row_shape=(2,)),
        ArraySpec(name="num_candidates", dtype="int32", fill_value=NOT_WRITTEN),
        ArraySpec(name="num_cells", dtype="int32"),
        ArraySpec(name="cells", dtype="uint16", row_shape=(canvas, canvas), chunk_rows=1),
        ArraySpec(name="membership_offset", dtype="int64"),
        ArraySpec(name="membership", dtype="uint8", payload=True),
        ArraySpec(name="predicted_iou", dtype="float32", row_shape=per_candidate),
        ArraySpec(name="stability_score", dtype="float32", row_shape=per_candidate),
        ArraySpec(name="box", dtype="int32", row_shape=(*per_candidate, 4)),
        ArraySpec(name="area", dtype="int32", row_shape=per_candidate),
        ArraySpec(name="point", dtype="float32", row_shape=(*per_candidate, 2)),
    )


def encode_rows(
    images: npt.NDArray[np.int64],
    rows: list[Candidates | None],
    canvas: int,
    max_candidates: int,
) -> Columns:
    """Lay the candidates of a shard's images out as columns.

    Args:
        images: Manifest rows of the images, (n,) int64.
        rows: Per image its candidates; None for an image that failed, stored with
            `num_candidates` = `FAILED`.
        canvas: Side of `cells`; a smaller image lies at the top left.
        max_candidates: Width of the score columns.
    """
    specs = candidate_arrays(canvas, max_candidates)
    columns: Columns = {
        spec.name: np.full((len(rows), *spec.row_shape), spec.fill_value, spec.dtype)
        for spec in specs
        if not spec.payload
    }
    columns["image"][:] = images
    payload: list[npt.NDArray[np.uint8]] = []
    offset = 0
    for row, candidates in enumerate(rows):
        columns["membership_offset"][row] = offset
        if candidates is None:
            columns["num_candidates"][row] = FAILED
            continue
        _encode_row(columns, row, candidates)
        packed = pack_membership(candidates.cells)
        payload.append(packed)
        offset += packed.size
    columns["membership"] = np.concatenate([np.zeros(0, np.uint8), *payload])
    return columns


def _encode_row(columns: Columns, row: int, candidates: Candidates) -> None:
    height, width = candidates.cells.size
    count = candidates.cells.num_candidates
    columns["size"][row] = height, width
    columns["num_candidates"][row] = count
    columns["num_cells"][row] = candidates.cells.num_cells
    columns["cells"][row, :height, :width] = candidates.cells.cells
    for name in ("predicted_iou", "stability_score", "box", "area", "point"):
        columns[name][row, :count] = getattr(candidates, name)


class CandidateReader:
    """Read rows of a finished `candidates.zarr`; opens the store at its first use."""

    def __init__(self, path: Place) -> None:
        self._path = path
        self._arrays: dict[str, Any] = {}
        self._scalars: dict[int, Columns] = {}
        self._chunks: dict[tuple[int, int], npt.NDArray[np.uint8]] = {}

    @property
    def canvas(self) -> int:
        """Longest side in pixels that a stored image may have."""
        return int(self._open()["cells"].shape[1])

    def read(self, row: int) -> Candidates | None:
        """Give the candidates of store row `row`; None if the image failed.

        Raises:
            StoreError: If the shard is damaged; names the row.
        """
        self._open()
        with self._guarded(f"row {row}"):
            return self._read(row)

    def read_run(self, rows: range) -> list[Candidates | None]:
        """Give the candidates of consecutive rows as `read` does, in few accesses to the store.

        Raises:
            StoreError: If a shard is damaged; names the rows.
        """
        arrays = self._open()
        with self._guarded(f"rows {rows.start} to {rows.stop}"):
            cells = arrays["cells"][rows.start : rows.stop]
            return [self._read(row, cells[row - rows.start]) for row in rows]

    @contextmanager
    def _guarded(self, where: str) -> Iterator[None]:
        """Turn what zarr raises on damage into one line that names the rows."""
        try:
            yield
        except StoreError:
            raise
        except (
            ValueError, RuntimeError, LookupError, OSError, TypeError, ArithmeticError, MemoryError
        ) as error:  # fmt: skip
            if isinstance(error, OSError) and is_on_the_way(self._path, error):
                raise
            raise StoreError(
                f"{self._path}: {where} cannot be read ({why(error)}); "
                f"run 'inspect-shards verify {self._path}'"
            ) from error

    def _open(self) -> dict[str, Any]:
        if not self._arrays:
            self._arrays = dict(open_planned(self._path))
        return self._arrays

    def _read(self, row: int, cells: npt.NDArray[np.uint16] | None = None) -> Candidates | None:
        shard_rows = int(self._arrays["num_candidates"].chunks[0])
        shard = row // shard_rows
        scalars = self._shard_scalars(shard, shard_rows)
        at = row - shard * shard_rows
        count, num_cells = int(scalars["num_candidates"][at]), int(scalars["num_cells"][at])
        if count == FAILED:
            return None
        if count < 0:
            raise StoreError(f"{self._path}: row {row} is not written yet; run 'sam-candidates'")
        height, width = (int(side) for side in scalars["size"][at])
        start = int(scalars["membership_offset"][at])
        num_bytes = count * ((num_cells - 1 + 7) // 8)
        packed = self._payload(shard, start, num_bytes)
        stored = self._arrays["cells"][row] if cells is None else cells
        found = Cells(
            cells=np.ascontiguousarray(stored[:height, :width]),
            membership=unpack_membership(packed, count, num_cells),
        )
        names = ("predicted_iou", "stability_score", "box", "area", "point")
        return Candidates(cells=found, **{name: scalars[name][at, :count] for name in names})

    def _payload(self, shard: int, start: int, num_bytes: int) -> npt.NDArray[np.uint8]:
        """Give a row's bytes out of the chunk that was read last, if they lie in it."""
        chunk = start // PAYLOAD_CHUNK_BYTES
        first = chunk * PAYLOAD_CHUNK_BYTES
        if start + num_bytes > first + PAYLOAD_CHUNK_BYTES:
            bytes_: npt.NDArray[np.uint8] = self._arrays["membership"][
                shard, start : start + num_bytes
            ]
            return bytes_
        if (shard, chunk) not in self._chunks:
            stop = first + PAYLOAD_CHUNK_BYTES
            self._chunks = {(shard, chunk): self._arrays["membership"][shard, first:stop]}
        return self._chunks[shard, chunk][start - first : start - first + num_bytes]

    def _shard_scalars(self, shard: int, shard_rows: int) -> Columns:
        """Keep one shard's small columns, read at once: zarr costs about 1 ms per access."""
        if shard not in self._scalars:
            rows = slice(shard * shard_rows, (shard + 1) * shard_rows)
            names = self._arrays.keys() - {"cells", "membership"}
            self._scalars = {shard: {name: self._arrays[name][rows] for name in names}}
        return self._scalars[shard]
