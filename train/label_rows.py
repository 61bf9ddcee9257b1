"""Shell: labels read straight from their shards: what zarr gives, without its overhead.

A training draws labels at random, one at a time. For each, zarr opens the shard, reads and checks
its index and schedules coroutines; here an index is read once, and a row is one read of one frame.
"""

import math
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from upath import UPath

from pipeline.bounded_codecs import (
    ABSENT,
    CRC_BYTES,
    INDEX_ENTRY_BYTES,
    check_index,
    packed_limit,
    unpack_zstd,
)
from pipeline.places import Place, here, is_local
from pipeline.zarr_limits import document_of
from refine.labels import LabelReader

_CODECS = ["bytes", "zstd"]
_INDEX_CODECS = ["bytes", "crc32c"]


class FastLabelReader(LabelReader):
    """A `LabelReader` that reads mask and weight by `ShardRows` where the store is made for it."""

    def _open(self) -> None:
        if self._arrays:
            return
        super()._open()
        for name in ("mask", "weight"):
            array = self._arrays[name]
            self._arrays[name] = open_rows(here(self.path / name), array) or array


def open_rows(folder: Place, array: "zarr.Array[Any]") -> "ShardRows | None":
    """Read an array of a store row by row.

    Args:
        folder: Of the array.
        array: The same, opened by `pipeline.zarr_limits.open_arrays`, which knows its limits.

    Returns:
        The rows; None if the array is laid out otherwise than `pipeline.store` does, which zarr
        can read all the same.
    """
    about = document_of(array)
    codecs = about["codecs"]
    if [codec["name"] for codec in codecs] != ["sharding_indexed"]:
        return None
    sharding = codecs[0]["configuration"]
    shard, chunk = about["chunk_grid"]["configuration"]["chunk_shape"], sharding["chunk_shape"]
    plain = (
        about["data_type"] == "uint8"
        and shard[1:] == chunk[1:] == about["shape"][1:]
        and sharding["index_location"] == "end"
        and [codec["name"] for codec in sharding["codecs"]] == _CODECS
        and [codec["name"] for codec in sharding["index_codecs"]] == _INDEX_CODECS
        and about["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "/"}}
    )
    if not plain:
        return None
    return ShardRows(
        folder=folder,
        num_rows=about["shape"][0],
        shard_rows=shard[0],
        chunk_shape=tuple(chunk),
        fill_value=about["fill_value"],
        _indices={},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRows:
    """Rows of one sharded uint8 array, by `rows[row, ...]` as of a zarr array; made by `open_rows`.

    Checks what zarr checks, the index by its CRC and every chunk by its frame's checksum, and
    unpacks no more than a chunk's shape states.
    """

    folder: Place
    num_rows: int
    shard_rows: int
    chunk_shape: tuple[int, ...]
    fill_value: int
    _indices: dict[int, tuple[tuple[int, int, int], npt.NDArray[np.uint64]]]
    """Per shard, which file it was read from, and offset and length of every chunk."""

    def __getitem__(self, key: tuple[Any, ...]) -> npt.NDArray[np.uint8]:
        """Give part of one row; the first of `key` is its number, the rest slices.

        Raises:
            IndexError: If there is no such row.
            ValueError: If the shard is damaged.
            OSError: If it cannot be read.
        """
        row = int(key[0])
        if not 0 <= row < self.num_rows:
            raise IndexError(f"{self.folder}: row {row} of {self.num_rows}")
        shard, inside = divmod(row, self.shard_rows)
        chunk, position = divmod(inside, self.chunk_shape[0])
        content = self._chunk(shard, chunk)
        if content is None:
            whole = np.full(self.chunk_shape, self.fill_value, np.uint8)
        else:
            whole = content.reshape(self.chunk_shape)
        return np.asarray(whole[(position, *key[1:])], np.uint8)

    def _chunk(self, shard: int, chunk: int) -> npt.NDArray[np.uint8] | None:
        """Read one chunk's bytes; None if it was never written."""
        path = self.folder.joinpath("c", str(shard), *["0"] * (len(self.chunk_shape) - 1))
        try:
            packed = (
                self._of_file(path, shard, chunk)
                if is_local(path)
                else self._of_object(path, shard, chunk)
            )
        except FileNotFoundError:
            return None
        if packed is None:
            return None
        try:
            return unpack_zstd(np.frombuffer(packed, np.uint8), math.prod(self.chunk_shape))
        except ValueError as error:
            raise ValueError(f"{self._what(shard)}: chunk {chunk}: {error}") from error

    def _of_file(self, path: Path, shard: int, chunk: int) -> bytes | None:
        """Read one chunk's packed bytes; the index is read anew if the file is another by now."""
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would be waited for
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError(f"{self._what(shard)}: expected a file, found a pipe or device")
            identity = (status.st_ino, status.st_size, status.st_mtime_ns)
            if shard not in self._indices or self._indices[shard][0] != identity:
                length = self._index_bytes
                content = os.pread(descriptor, length, max(0, status.st_size - length))
                end = status.st_size - length
                self._indices[shard] = identity, self._checked(shard, content, end)
            extent = self._extent(shard, chunk)
            return None if extent is None else os.pread(descriptor, extent[1], extent[0])
        finally:
            os.close(descriptor)

    def _of_object(self, path: UPath, shard: int, chunk: int) -> bytes | None:
        """Fetch one chunk's packed bytes; the index is fetched once."""
        if shard not in self._indices:
            content = bytes(path.fs.cat_file(path.path, start=-self._index_bytes))
            self._indices[shard] = (0, 0, 0), self._checked(shard, content)
        extent = self._extent(shard, chunk)
        if extent is None:
            return None
        return bytes(path.fs.cat_file(path.path, start=extent[0], end=sum(extent)))

    @property
    def _index_bytes(self) -> int:
        return self.shard_rows // self.chunk_shape[0] * INDEX_ENTRY_BYTES + CRC_BYTES

    def _what(self, shard: int) -> str:
        return f"array {self.folder.name}: shard {shard}"

    def _extent(self, shard: int, chunk: int) -> tuple[int, int] | None:
        """Give offset and length of a chunk; None if it was never written."""
        offset, length = (int(number) for number in self._indices[shard][1][chunk])
        return None if offset == length == ABSENT else (offset, length)

    def _checked(self, shard: int, content: bytes, end: int = 1 << 62) -> npt.NDArray[np.uint64]:
        """Give a shard's index (chunks, 2) out of the file's last bytes."""
        length, what = self._index_bytes - CRC_BYTES, self._what(shard)
        if len(content) != self._index_bytes:
            raise ValueError(f"{what}: {len(content)} bytes are too few for its index")
        if struct.unpack("<I", content[length:])[0] != crc32c(content[:length]):
            raise ValueError(f"{what}: the checksum of its index differs")
        index = np.frombuffer(content[:length], "<u8").reshape(-1, 2)
        try:
            check_index(index, packed_limit(math.prod(self.chunk_shape)), end)
        except ValueError as error:
            raise ValueError(f"{what}: its index: {error}") from error
        return index


def _table() -> tuple[int, ...]:
    entries = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        entries.append(value)
    return tuple(entries)


_TABLE = _table()


def crc32c(content: bytes) -> int:
    """Give the CRC-32C (Castagnoli) of some bytes, as Zarr's `crc32c` codec has it."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF
