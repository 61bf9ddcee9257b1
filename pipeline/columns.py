"""Columns of numbers and strings, as .npy files that can be memory-mapped."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from pipeline.places import Place, is_local, is_url, place


@dataclass(frozen=True, slots=True)
class StringColumn:
    """Strings (UTF-8) or bytes of differing length, one after the other."""

    data: npt.NDArray[np.uint8]
    """All rows joined, shape (B,), uint8."""
    offsets: npt.NDArray[np.int64]
    """Row i is data[offsets[i]:offsets[i + 1]]; shape (rows + 1,), int64, from 0, never falling."""

    def __post_init__(self) -> None:
        if self.data.dtype != np.uint8 or self.data.ndim != 1:
            raise ValueError(f"expected data as (B,) uint8, found {self.data.dtype}")
        if self.offsets.dtype != np.int64 or self.offsets.ndim != 1 or len(self.offsets) == 0:
            raise ValueError(f"expected offsets as (rows + 1,) int64, found {self.offsets.dtype}")
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.data):
            raise ValueError(
                f"expected offsets from 0 to {len(self.data)}, found {self.offsets[0]} to "
                f"{self.offsets[-1]}"
            )

    @classmethod
    def from_strings(cls, rows: Iterable[str | bytes]) -> "StringColumn":
        """Join rows into a column; text is stored as UTF-8."""
        encoded = [row if isinstance(row, bytes) else row.encode() for row in rows]
        lengths = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
        offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int | np.integer) -> str:
        return self.bytes_at(row).decode()

    def __iter__(self) -> Iterator[str]:
        return (self[row] for row in range(len(self)))

    def bytes_at(self, row: int | np.integer) -> bytes:
        """Give the bytes of one row; negative rows count from the end.

        Raises:
            IndexError: If there is no such row.
        """
        start = int(row) + len(self) if row < 0 else int(row)
        if not 0 <= start < len(self):
            raise IndexError(f"row {row} of a column of {len(self)}")
        return self.data[self.offsets[start] : self.offsets[start + 1]].tobytes()

    def lengths(self) -> npt.NDArray[np.int64]:
        """Give the bytes of every row, shape (rows,), int64."""
        return np.diff(self.offsets)

    def take(self, rows: npt.NDArray[np.integer]) -> "StringColumn":
        """Give a column of some rows, shape (n,), in the order in which they are named.

        No row becomes a Python string. It is this column if all rows are named in their order.
        """
        first, end = joined_runs(rows, np.ones(len(rows), dtype=np.int32))
        if self.is_whole(first, end):
            return self
        low, high = self.offsets[first], self.offsets[end]
        data = np.empty(int((high - low).sum()), dtype=np.uint8)
        size = 0
        for begin, length in zip(low, high - low, strict=True):
            data[size : size + length] = self.data[begin : begin + length]
            size += length
        return StringColumn(data, self.offsets_of(first, end))

    def is_whole(self, first: npt.NDArray[np.integer], end: npt.NDArray[np.integer]) -> bool:
        """Tell whether runs are one, of all rows."""
        return len(first) == 1 and first[0] == 0 and end[0] == len(self)

    def offsets_of(
        self, first: npt.NDArray[np.integer], end: npt.NDArray[np.integer]
    ) -> npt.NDArray[np.int64]:
        """Give the offsets of a column of runs of rows [first, end), one after the other."""
        offsets = np.zeros(int((end - first).sum()) + 1, dtype=np.int64)
        row = 0
        for run in map(slice, first, end + 1):
            ends = self.offsets[run]
            count = len(ends) - 1
            offsets[row + 1 : row + 1 + count] = ends[1:] + (offsets[row] - ends[0])
            row += count
        return offsets


def joined_runs(
    first: npt.NDArray[np.integer], lengths: npt.NDArray[np.integer]
) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.integer]]:
    """Join runs of rows where one begins at the end of the one before.

    Args:
        first: First row of every run, shape (n,), from 0.
        lengths: Rows of every run, shape (n,).

    Returns:
        First row, and the row after the last, of every joined run, in the order of `first`.
    """
    end = first + lengths
    is_first, is_last = np.ones((2, len(first)), dtype=np.bool_)
    is_first[1:] = first[1:] != end[:-1]
    is_last[:-1] = is_first[1:]
    return first[is_first], end[is_last]


def column_arrays(
    columns: Mapping[str, npt.NDArray[Any] | StringColumn],
) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Give the file name and array of every column; a column of strings is two."""
    for name, column in columns.items():
        if isinstance(column, StringColumn):
            yield f"{name}.data.npy", column.data
            yield f"{name}.offsets.npy", column.offsets
        else:
            yield f"{name}.npy", np.ascontiguousarray(column)


def write_columns(
    folder: Path, columns: Mapping[str, npt.NDArray[Any] | StringColumn]
) -> dict[str, str]:
    """Write columns and bring them to disk.

    Args:
        folder: Existing folder.
        columns: Column names and values.

    Returns:
        sha256 of every file, hex, by file name.
    """
    for name, array in column_arrays(columns):
        with (folder / name).open("wb") as file:
            np.save(file, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
    return {name: file_sha256(folder / name) for name, _ in column_arrays(columns)}


def open_array(path: Path) -> npt.NDArray[Any]:
    """Memory-map one .npy file, read-only; pickled arrays are refused.

    Raises:
        OSError: If there is no such file.
        ValueError: If it is no .npy file, or shorter than its header says.
    """
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError):
        raise
    except Exception as error:  # numpy reads the header as a piece of Python: SyntaxError and more
        raise ValueError(f"no array of numpy in {path.name} ({type(error).__name__})") from error


def open_strings(file_of: Callable[[str], Path], name: str) -> StringColumn:
    """Memory-map a column of strings, its files found by name; raises what `open_array` raises."""
    return StringColumn(
        open_array(file_of(f"{name}.data.npy")), open_array(file_of(f"{name}.offsets.npy"))
    )


def file_sha256(path: Place) -> str:
    """Give the sha256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(cast("Any", file), "sha256").hexdigest()


def portable_path(path: Place, folder: Place) -> str:
    """Name `path` from within `folder`, so that both can be moved together.

    Returns:
        A relative path if `path` lies beside or in `folder`, else an absolute one or a URL; with
        forward slashes. `resolved_path` turns it back.
    """
    if is_local(path):
        path = path.absolute()
    if is_local(path) and is_local(folder):
        folder = folder.absolute()
        if path.is_relative_to(folder.parent):
            return Path(os.path.relpath(path, folder)).as_posix()
    elif not is_local(path) and not is_local(folder) and path.is_relative_to(folder.parent):
        return f"../{path.relative_to(folder.parent).as_posix()}"
    return path.as_posix()


def resolved_path(text: str, folder: Place) -> Place:
    """Give the place that `portable_path` named from within `folder`."""
    if is_local(folder):
        if is_url(text):
            return place(text)
        return Path(os.path.normpath(folder.absolute() / text))  # an absolute one stays itself
    if is_url(text) or text.startswith("/"):
        return place(text)
    found: Place = folder
    for part in text.split("/"):
        found = found.parent if part == ".." else found / part
    return found
