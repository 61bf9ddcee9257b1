"""Strings that come one by one, kept without a Python object each."""

from array import array
from collections.abc import Iterator
from tempfile import TemporaryFile

import numpy as np
import numpy.typing as npt

from pipeline.columns import StringColumn, joined_runs


class GrowingStrings:
    """Strings or bytes that come one by one and become a `StringColumn`.

    They take their bytes and 8 more each, and up to an eighth more while they grow; as Python
    strings they would take some 60 more each.
    """

    __slots__ = ("_data", "_offsets")

    _data: bytearray
    _offsets: "array[int]"

    def __init__(self) -> None:
        self._clear()

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: int) -> str:
        return self.bytes_at(row).decode()

    def __iter__(self) -> Iterator[str]:
        return (self[row] for row in range(len(self)))

    def bytes_at(self, row: int) -> bytes:
        """Give the bytes of a row, counted from 0."""
        return bytes(self._data[self._offsets[row] : self._offsets[row + 1]])

    def append(self, row: str | bytes) -> None:
        """Add a row; text is stored as UTF-8."""
        self._data += row if isinstance(row, bytes) else row.encode()
        self._offsets.append(len(self._data))

    def hand_over(self) -> StringColumn:
        """Give the rows as a column, in the memory that they lie in: none is left here."""
        data, offsets = self._data, self._offsets
        self._clear()
        return StringColumn(np.frombuffer(data, np.uint8), np.frombuffer(offsets, np.int64))

    def hand_over_runs(
        self, first: npt.NDArray[np.integer], lengths: npt.NDArray[np.integer]
    ) -> StringColumn:
        """Give runs of rows as a column, in the order in which they are named: none is left here.

        Where that is another order, the rows go through a temporary file, so that they are at no
        time held twice: of a million objects the shapes alone are 0.4 GB.

        Args:
            first: First row of every run, shape (n,), from 0.
            lengths: Rows of every run, shape (n,).

        Raises:
            OSError: If there is no room for the file.
        """
        column = self.hand_over()
        first, end = joined_runs(first, lengths)
        if column.is_whole(first, end):
            return column
        offsets = column.offsets_of(first, end)
        with TemporaryFile(prefix="semires-") as file:
            for low, high in zip(column.offsets[first], column.offsets[end], strict=True):
                file.write(column.data[low:high].data)
            del column
            file.seek(0)
            return StringColumn(np.fromfile(file, np.uint8), offsets)

    def _clear(self) -> None:
        self._data, self._offsets = bytearray(), array("q", [0])


class DistinctStrings(GrowingStrings):
    """Growing strings, each of them once, whose rows are found by the string.

    The hash table holds row numbers, 8 to 16 bytes a string, and is compared with the strings
    themselves: a dict of Python strings would take some 150.
    """

    __slots__ = ("_slots",)

    _slots: "array[int]"

    def row_of(self, text: str) -> int | None:
        """Give the row of a string, None if it is not there."""
        row = self._slots[self._slot(text.encode())]
        return None if row < 0 else row

    def append(self, row: str | bytes) -> None:
        """Add a row; text is stored as UTF-8.

        Raises:
            ValueError: If it is there.
        """
        encoded = row if isinstance(row, bytes) else row.encode()
        if 2 * len(self) >= len(self._slots):
            self._widen()
        slot = self._slot(encoded)
        if self._slots[slot] >= 0:
            raise ValueError(f"expected every string once, found {row!r:.60} again")
        self._slots[slot] = len(self)
        super().append(encoded)

    def _clear(self) -> None:
        super()._clear()
        self._slots = array("i", [-1]) * 8  # a power of two, -1 is free

    def _slot(self, encoded: bytes) -> int:
        """Give the slot that names the row of a string, or the free one that would."""
        last = len(self._slots) - 1
        slot = hash(encoded) & last
        while (row := self._slots[slot]) >= 0 and self.bytes_at(row) != encoded:
            slot = (slot + 1) & last
        return slot

    def _widen(self) -> None:
        self._slots = array("i", [-1]) * (2 * len(self._slots))
        for row in range(len(self)):
            self._slots[self._slot(self.bytes_at(row))] = row
