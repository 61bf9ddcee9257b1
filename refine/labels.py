"""Shell: the rows of `labels.zarr`, one per unlabelled expression: all that a trainer needs.

`mask` holds (canvas, canvas / 8) bytes, bits big-endian along the width; `weight` (canvas, canvas)
uint8, 255 = 1.0; both have the image at the top left, `size` = (H, W) beside it, and zeros outside.
`source` is the position of the strategy's name in the group's attribute `strategies`, -1 where an
item failed and there is no label.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.cells import BoolArray
from pipeline.errors import StoreError
from pipeline.found_values import why
from pipeline.places import Place, is_on_the_way
from pipeline.records import open_planned
from pipeline.store import ArraySpec, open_store
from refine.choice import Refined
from refine.strategies import STRATEGIES

WEIGHT_ONE = 255
NO_LABEL = -1
STRATEGY_NAMES = tuple(STRATEGIES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """One label as a trainer reads it.

    `mask` is (H, W) bool, `weight` (H, W) float32 in [0, 1], in canvas geometry; `expression` and
    `image` are rows of the manifest; `source` names the strategy that decided.
    """

    expression: int
    image: int
    mask: BoolArray
    weight: npt.NDArray[np.float32]
    source: str
    score: float


def label_arrays(canvas: int) -> tuple[ArraySpec, ...]:
    """List the arrays of `labels.zarr` for a canvas, a multiple of 8 pixels."""
    if canvas % 8:
        raise StoreError(f"canvas: expected a multiple of 8 pixels, found {canvas}")
    return (
        ArraySpec(name="expression", dtype="int64", fill_value=-1),
        ArraySpec(name="image", dtype="int64", fill_value=-1),
        ArraySpec(name="size", dtype="int32", row_shape=(2,)),
        # Zarr costs about a third of a millisecond per chunk written, and the same per chunk read
        # whatever it holds: a few labels in one chunk are twice as fast to write.
        ArraySpec(
            name="mask",
            dtype="uint8",
            row_shape=(canvas, canvas // 8),
            chunk_rows=8,
        ),
        ArraySpec(
            name="weight",
            dtype="uint8",
            row_shape=(canvas, canvas),
            chunk_rows=2,
        ),
        ArraySpec(name="source", dtype="int8", fill_value=NO_LABEL),
        ArraySpec(name="score", dtype="float32"),
        ArraySpec(name="expected_iou", dtype="float32"),
        ArraySpec(name="num_chosen", dtype="int32"),
    )


def empty_columns(num_rows: int, canvas: int) -> dict[str, npt.NDArray[Any]]:
    """Make a shard's columns in which no row has a label yet."""
    return {
        spec.name: np.full((num_rows, *spec.row_shape), spec.fill_value, spec.dtype)
        for spec in label_arrays(canvas)
    }


def encode_label(
    columns: dict[str, npt.NDArray[Any]], row: int, refined: Refined, expected_iou: float
) -> None:
    """Put one refined label into its row of a shard's columns."""
    height, width = refined.mask_HW.shape
    packed = np.packbits(refined.mask_HW, axis=1)
    columns["size"][row] = height, width
    columns["mask"][row, :height, : packed.shape[1]] = packed
    if refined.weight_HW is None:
        columns["weight"][row, :height, :width] = WEIGHT_ONE
    else:
        scaled_HW = refined.weight_HW * np.float32(WEIGHT_ONE)
        np.rint(scaled_HW, out=scaled_HW)
        columns["weight"][row, :height, :width] = scaled_HW
    columns["source"][row] = STRATEGY_NAMES.index(refined.source)
    columns["score"][row] = refined.score
    columns["expected_iou"][row] = expected_iou
    columns["num_chosen"][row] = refined.num_chosen


_DAMAGE = (ValueError, RuntimeError, OSError, LookupError, TypeError, ArithmeticError, MemoryError)
"""What reading a damaged store raises."""


class LabelReader:
    """Read labels one at a time; picklable, opens the store at its first use in each process."""

    def __init__(self, path: Place) -> None:
        self.path = path
        self._arrays: dict[str, Any] = {}
        self._scalars: dict[str, npt.NDArray[Any]] = {}
        self._strategies: tuple[str, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_arrays": {}, "_scalars": {}, "_strategies": ()}

    def scalars(self) -> dict[str, npt.NDArray[Any]]:
        """Give the per-label columns as arrays in memory: everything but mask and weight."""
        self._open()
        return self._scalars

    def code_of(self, strategy: str) -> int:
        """Give the code of a strategy in this store's `source`; -2 if the store has none."""
        self._open()
        return self._strategies.index(strategy) if strategy in self._strategies else -2

    def read(self, row: int) -> Label | None:
        """Give the label of store row `row`; None where the item failed.

        Raises:
            StoreError: If the shard is damaged; names the row.
        """
        self._open()
        scalars = self._scalars
        try:
            code = int(scalars["source"][row])
            if code == NO_LABEL:
                return None
            height, width = (int(side) for side in scalars["size"][row])
            source = self._strategies[code]
            packed = self._arrays["mask"][row, :height, : -(-width // 8)]
            weight = self._arrays["weight"][row, :height, :width]
            mask = np.unpackbits(packed, axis=1, count=width).astype(np.bool_)
        except _DAMAGE as error:
            if isinstance(error, OSError) and is_on_the_way(self.path, error):
                raise
            raise StoreError(
                f"{self.path}: row {row} cannot be read ({why(error)}); "
                f"run 'inspect-shards verify {self.path}'"
            ) from error
        return Label(
            expression=int(scalars["expression"][row]),
            image=int(scalars["image"][row]),
            mask=mask,
            weight=np.asarray(weight, np.float32) / np.float32(WEIGHT_ONE),
            source=source,
            score=float(scalars["score"][row]),
        )

    def _open(self) -> None:
        if self._arrays:
            return
        arrays: dict[str, Any] = dict(open_planned(self.path))
        names = arrays.keys() - {"mask", "weight"}
        try:
            self._scalars = {name: arrays[name][:] for name in names}
            names_of_codes: Any = open_store(self.path).attrs["strategies"]
            self._strategies = tuple(str(name) for name in names_of_codes)
        except _DAMAGE as error:
            if isinstance(error, OSError) and is_on_the_way(self.path, error):
                raise
            raise StoreError(
                f"{self.path}: cannot be read ({why(error)}); "
                f"run 'inspect-shards verify {self.path}'"
            ) from error
        self._arrays = arrays
