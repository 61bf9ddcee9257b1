"""Shell: the rows of `teacher.zarr`, one per unlabelled expression, in image order.

Stored is the teacher's *logit margin* (foreground minus background, so that p = sigmoid(margin) and
p > 0.5 where it is positive) at the network's own stride, as float16. The network interpolates
logits, not probabilities, so only the margin gives its mask back after upsampling; and float16 is
finest around zero, where the mask is decided.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import StoreError
from pipeline.found_values import why
from pipeline.places import Place, is_on_the_way
from pipeline.records import open_planned
from pipeline.store import ArraySpec
from refine.upsample import sigmoid

LOGIT_LIMIT = 60_000.0  # float16 ends at 65 504


def teacher_arrays(stride_size: tuple[int, int]) -> tuple[ArraySpec, ...]:
    """List the arrays of `teacher.zarr`; `stride_size` is (h, w) of the network's output."""
    return (
        ArraySpec(name="expression", dtype="int64", fill_value=-1),
        ArraySpec(name="valid", dtype="uint8"),
        ArraySpec(name="confidence", dtype="float32"),
        ArraySpec(name="logit", dtype="float16", row_shape=stride_size, chunk_rows=16),
    )


def encode_logits(logit_Ehw: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """Quantise logit margins, keeping every sign.

    A margin that float16 would round to zero becomes its smallest number of the same sign.

    Raises:
        StoreError: If a margin is not finite: the network is broken.
    """
    if not np.isfinite(logit_Ehw).all():
        raise StoreError("the teacher's logits are not finite; its checkpoint is broken")
    rounded = np.clip(logit_Ehw, -LOGIT_LIMIT, LOGIT_LIMIT).astype(np.float16)
    lost = (rounded == 0) & (logit_Ehw != 0)
    tiny = np.finfo(np.float16).smallest_subnormal
    return np.asarray(np.where(lost, np.copysign(tiny, logit_Ehw), rounded), np.float16)


def confidence_of(logit_Ehw: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
    """Give the mean probability over each mask at the network's stride, (E,); 0 if it is empty."""
    margin_Ehw = logit_Ehw.astype(np.float32)
    inside_Ehw = margin_Ehw > 0
    prob_Ehw = np.where(inside_Ehw, sigmoid(margin_Ehw), 0)
    count_E = np.maximum(np.count_nonzero(inside_Ehw, axis=(1, 2)), 1)
    return np.asarray(prob_Ehw.sum(axis=(1, 2), dtype=np.float64) / count_E, np.float32)


class TeacherReader:
    """Read a run of rows of `teacher.zarr`; opens the store at its first use."""

    def __init__(self, path: Place) -> None:
        self._path = path
        self._arrays: dict[str, Any] = {}
        self._scalars: dict[str, npt.NDArray[Any]] = {}

    def scalars(self) -> dict[str, npt.NDArray[Any]]:
        """Give `expression`, `valid` and `confidence` of all rows.

        Raises:
            StoreError: If they are missing or damaged.
        """
        if not self._scalars:
            names = ("expression", "valid", "confidence")
            self._scalars = self._read(names, slice(None), "all rows")
        return self._scalars

    def read(self, rows: range) -> dict[str, npt.NDArray[Any]]:
        """Give `expression`, `valid`, `confidence` (n,) and `logit` (n, h, w) of the given rows.

        Raises:
            StoreError: If they are missing or damaged.
        """
        where = f"rows {rows.start} to {rows.stop}"
        names = ("expression", "valid", "confidence", "logit")
        return self._read(names, slice(rows.start, rows.stop), where)

    def _read(self, names: tuple[str, ...], rows: slice, where: str) -> dict[str, npt.NDArray[Any]]:
        if not self._arrays:
            self._arrays = dict(open_planned(self._path))
        try:
            return {name: self._arrays[name][rows] for name in names}
        except KeyError as error:
            raise StoreError(
                f"{self._path}: has no array {error}; made by an earlier version, make it again "
                "with 'predict-teacher --force'"
            ) from error
        except (
            ValueError, RuntimeError, IndexError, OSError, TypeError, ArithmeticError, MemoryError
        ) as error:  # fmt: skip
            if isinstance(error, OSError) and is_on_the_way(self._path, error):
                raise
            raise StoreError(
                f"{self._path}: {where} cannot be read "
                f"({why(error)}); run 'inspect-shards verify {self._path}'"
            ) from error
