"""Shell: Zarr arrays of which no more is read or unpacked than their metadata states.

zarr reads files whole and unpacks whatever is in them, however much that is. Here the same arrays
are read through files of limited length and codecs of limited output. Nothing is registered with
zarr: arrays that somebody else opens are read as ever.
"""

import asyncio
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import zarr
from zarr.abc.codec import BytesBytesCodec, Codec
from zarr.codecs import Crc32cCodec, ShardingCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer
from zarr.storage import StorePath

from pipeline.bounded_codecs import (
    CRC_BYTES,
    INDEX_ENTRY_BYTES,
    UNPACK,
    check_index,
    packed_limit,
)
from pipeline.limited_files import LimitedStore

_AT_ONCE_BYTES = 1 << 16
"""Unpacked in less time than another thread takes to begin: 20 µs against 100."""


def bounded(array: zarr.Array[Any], name: str) -> zarr.Array[Any]:
    """Give an array that reads as another does, and refuses chunks that are too long.

    Args:
        array: Opened, its metadata admitted by `pipeline.zarr_limits.check_metadata`.
        name: For the messages of errors.

    Returns:
        The same array for reading. A chunk that states or unpacks to another size than the array's
        metadata, and a file that is longer than its chunks could make it, raise ValueError.
    """
    opened = array.async_array
    where = f"array {name}"
    codecs, limit = _bounded_codecs(
        opened.metadata.codecs, array.shards or array.chunks, array.dtype.itemsize, where
    )
    store = opened.store_path.store
    if isinstance(store, LimitedStore):
        store = store.inner
    reader: zarr.AsyncArray[Any] = zarr.AsyncArray(
        metadata=replace(opened.metadata, codecs=codecs),
        store_path=StorePath(LimitedStore(store, limit), opened.store_path.path),
    )
    return zarr.Array(reader)


def _bounded_codecs(
    codecs: Iterable[Codec], shape: tuple[int, ...], item_bytes: int, where: str
) -> tuple[tuple[Codec, ...], int]:
    """Replace codecs by bounded ones; give the bytes that a chunk of `shape` takes at most, too."""
    size = math.prod(shape) * item_bytes
    bounds: list[Codec] = []
    for codec in codecs:
        name = codec.to_dict()["name"]
        if isinstance(codec, ShardingCodec):
            inner, limit = _bounded_codecs(codec.codecs, codec.chunk_shape, item_bytes, where)
            index_codecs = codec.index_codecs[0], _CheckedIndex(Crc32cCodec(), limit, where)
            bounds.append(
                _BoundedSharding(
                    chunk_shape=codec.chunk_shape,
                    codecs=inner,
                    index_codecs=index_codecs,
                    index_location=codec.index_location,
                )
            )
            chunks = math.prod(a // b for a, b in zip(shape, codec.chunk_shape, strict=True))
            size = chunks * (limit + INDEX_ENTRY_BYTES) + CRC_BYTES
        elif isinstance(codec, BytesBytesCodec) and name in UNPACK:
            bounds.append(_Bounded(codec, str(name), size, where))
            size = packed_limit(size)
        else:
            bounds.append(codec)
            size += CRC_BYTES if name == "crc32c" else 0
    return tuple(bounds), size


@dataclass(frozen=True)
class _Reading(BytesBytesCodec):
    """A codec that reads what `inner` wrote, and is called like it."""

    inner: BytesBytesCodec

    @property
    def is_fixed_size(self) -> bool:  # type: ignore[override]
        return self.inner.is_fixed_size

    def to_dict(self) -> dict[str, Any]:
        return self.inner.to_dict()

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        return self.inner.compute_encoded_size(input_byte_length, chunk_spec)


@dataclass(frozen=True)
class _Bounded(_Reading):
    """A codec out of which come `num_bytes`."""

    name: str
    num_bytes: int
    where: str

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        if self.num_bytes <= _AT_ONCE_BYTES:
            unpacked = self._unpacked(chunk_data)
        else:
            unpacked = await asyncio.to_thread(self._unpacked, chunk_data)
        return chunk_spec.prototype.buffer.from_array_like(unpacked)

    def _unpacked(self, packed: Buffer) -> Any:
        try:
            return UNPACK[self.name](packed.as_numpy_array().view(np.uint8), self.num_bytes)
        except ValueError as error:
            raise ValueError(f"{self.where}: a chunk: {error}") from error


@dataclass(frozen=True)
class _CheckedIndex(_Reading):
    """The checksum of a shard's index, out of which comes an index that can be believed."""

    limit_bytes: int
    where: str

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        decoded = await self.inner._decode_single(chunk_data, chunk_spec)
        try:
            check_index(decoded.as_numpy_array().view("<u8").reshape(-1, 2), self.limit_bytes)
        except ValueError as error:
            raise ValueError(f"{self.where}: a shard's index: {error}") from error
        return decoded


class _BoundedSharding(ShardingCodec):
    """A sharding codec that keeps its codecs as they are when it is sent to another process."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _sharding, (self.chunk_shape, self.codecs, self.index_codecs, self.index_location)


def _sharding(*values: Any) -> _BoundedSharding:
    names = ("chunk_shape", "codecs", "index_codecs", "index_location")
    return _BoundedSharding(**dict(zip(names, values, strict=True)))
