"""Shell: labels read straight from their shards: what zarr gives, without its overhead.

A training draws labels at random, one at a time. For each, zarr opens the shard, reads and checks
its index and schedules coroutines; here an index is read once, and a row is one read of one frame.
"""

import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numcodecs.zstd import Zstd
from upath import UPath

from pipeline.places import Place, here, is_local
from refine.labels import LabelReader

_ABSENT = 2**64 - 1
_ENTRY_BYTES = 16
_CRC_BYTES = 4
_CODECS = ["bytes", "zstd"]
_INDEX_CODECS = ["bytes", "crc32c"]


class FastLabelReader(LabelReader):
    """A `LabelReader` that reads mask and weight by `ShardRows` where the store is made for it."""

    def _open(self) -> None:
        if self._arrays:
            return
        super()._open()
        for name in ("mask", "weight"):
            self._arrays[name] = open_rows(here(self.path / name)) or self._arrays[name]


def open_rows(folder: Place) -> "ShardRows | None":
    """Open an array of a store for reading row by row.

    Args:
        folder: Of the array, with its `zarr.json`.

    Returns:
        The rows; None if the array is laid out otherwise than `pipeline.store` does, which zarr
        can read all the same.
    """
    try:
        return _rows_of(folder, json.loads((folder / "zarr.json").read_text(encoding="utf-8")))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def _rows_of(folder: Place, about: Any) -> "ShardRows | None":
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

    Checks what zarr checks: the index by its CRC, every chunk by its frame's checksum.
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
            whole = np.frombuffer(content, np.uint8)
            if whole.size != np.prod(self.chunk_shape):
                raise ValueError(f"shard {shard}: chunk {chunk} has {whole.size} bytes")
            whole = whole.reshape(self.chunk_shape)
        return np.asarray(whole[(position, *key[1:])], np.uint8)

    def _chunk(self, shard: int, chunk: int) -> bytes | None:
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
            return bytes(Zstd().decode(packed))
        except (RuntimeError, MemoryError) as error:
            raise ValueError(f"shard {shard}: chunk {chunk} is damaged ({error})") from error

    def _of_file(self, path: Path, shard: int, chunk: int) -> bytes | None:
        """Read one chunk's packed bytes; the index is read anew if the file is another by now."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            stat = os.fstat(descriptor)
            identity = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
            if shard not in self._indices or self._indices[shard][0] != identity:
                length = self._index_bytes
                content = os.pread(descriptor, length, max(0, stat.st_size - length))
                self._indices[shard] = identity, self._checked(shard, content)
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
        return self.shard_rows // self.chunk_shape[0] * _ENTRY_BYTES + _CRC_BYTES

    def _extent(self, shard: int, chunk: int) -> tuple[int, int] | None:
        """Give offset and length of a chunk; None if it was never written."""
        offset, length = (int(number) for number in self._indices[shard][1][chunk])
        return None if offset == length == _ABSENT else (offset, length)

    def _checked(self, shard: int, content: bytes) -> npt.NDArray[np.uint64]:
        """Give a shard's index (chunks, 2) out of the file's last bytes."""
        length = self._index_bytes - _CRC_BYTES
        if len(content) != self._index_bytes:
            raise ValueError(f"shard {shard}: {len(content)} bytes are too few for its index")
        if struct.unpack("<I", content[length:])[0] != crc32c(content[:length]):
            raise ValueError(f"shard {shard}: the checksum of its index differs")
        return np.frombuffer(content[:length], "<u8").reshape(-1, 2)


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
