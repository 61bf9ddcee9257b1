"""Core: chunks unpacked into as many bytes as they should have, and not one more.

A packed chunk says itself how much comes out of it, and its author may say anything: 20 bytes of
zstd stand for a terabyte. What is expected is known beforehand, from the array's metadata, so room
is made for that; whatever states or gives another number of bytes is refused.
"""

import struct
import zlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from numcodecs import blosc, zstd

from pipeline.found_values import why

Bytes = npt.NDArray[np.uint8]
Unpack = Callable[[Bytes, int], Bytes]

ABSENT = 2**64 - 1
"""Offset and length, in a shard's index, of a chunk that was never written."""

_FEW_CHUNKS = 256
INDEX_ENTRY_BYTES = 16
CRC_BYTES = 4

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_HEADER_BYTES = 18  # at most; RFC 8878, 3.1.1.1
_BLOSC_HEADER_BYTES = 16
_GZIP_WBITS = 31  # a gzip header and trailer, which zlib checks


def packed_limit(num_bytes: int) -> int:
    """Give the bytes that a chunk of `num_bytes` takes at most, packed by any of `UNPACK`.

    What cannot be packed is stored as it is, in blocks with headers: zstd adds 1/256, gzip 5 bytes
    per 16 KiB and 18, blosc 16 bytes, and a checksum 4.
    """
    return num_bytes + num_bytes // 64 + 256


def unpack_zstd(packed: Bytes, num_bytes: int) -> Bytes:
    """Unpack zstd frames that hold exactly `num_bytes`; the first states it, or none does.

    Args:
        packed: The chunk, uint8.
        num_bytes: What has to come out, at least 1.

    Returns:
        (num_bytes,) uint8.

    Raises:
        ValueError: If anything else would come out, or the frame is damaged.
    """
    stated = _zstd_content_bytes(packed[:_ZSTD_HEADER_BYTES].tobytes())
    _require(num_bytes, num_bytes if stated is None else stated)
    unpacked = np.empty(num_bytes, np.uint8)
    try:
        # It gives up where the room ends, whatever the header states; a frame that states nothing
        # has to fill it.
        zstd.decompress(packed, unpacked)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"damaged: {why(error)}") from error
    return unpacked


def _zstd_content_bytes(header: bytes) -> int | None:
    """Read how much a frame says to hold; None if it does not say."""
    if header[:4] != _ZSTD_MAGIC or len(header) < 6:
        raise ValueError("damaged: expected a zstd frame, found none")
    flags = header[4]
    single_segment = flags >> 5 & 1
    at = 5 + (1 - single_segment) + (0, 1, 2, 4)[flags & 3]
    length = (single_segment, 2, 4, 8)[flags >> 6]
    if len(header) < at + length:
        raise ValueError("damaged: the header of its zstd frame is cut short")
    stated = int.from_bytes(header[at : at + length], "little")
    return None if length == 0 else stated + (256 if length == 2 else 0)


def unpack_gzip(packed: Bytes, num_bytes: int) -> Bytes:
    """Unpack one gzip member that holds exactly `num_bytes`; as `unpack_zstd`."""
    stream = zlib.decompressobj(_GZIP_WBITS)
    try:
        unpacked = stream.decompress(packed.tobytes(), num_bytes + 1)
    except zlib.error as error:
        raise ValueError(f"damaged: {why(error)}") from error
    if len(unpacked) > num_bytes:
        raise ValueError(f"expected {num_bytes} bytes unpacked, found more")
    if not stream.eof or stream.unused_data:
        raise ValueError("damaged: expected one gzip member, found part of one or more")
    _require(num_bytes, len(unpacked))
    return np.frombuffer(unpacked, np.uint8)


def unpack_blosc(packed: Bytes, num_bytes: int) -> Bytes:
    """Unpack a blosc buffer that holds exactly `num_bytes`; as `unpack_zstd`."""
    if packed.size < _BLOSC_HEADER_BYTES:
        raise ValueError("damaged: the header of its blosc buffer is cut short")
    stated, _, length = struct.unpack("<III", packed[4:_BLOSC_HEADER_BYTES].tobytes())
    if length != packed.size:  # blosc would believe it, and read beyond the end
        raise ValueError(f"damaged: a blosc buffer of {length} bytes in {packed.size}")
    _require(num_bytes, stated)
    unpacked = np.empty(num_bytes, np.uint8)
    try:
        blosc.decompress(packed, unpacked)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"damaged: {why(error)}") from error
    return unpacked


UNPACK: dict[str, Unpack] = {"zstd": unpack_zstd, "gzip": unpack_gzip, "blosc": unpack_blosc}
"""Codecs of Zarr that turn few bytes into many, by their names there."""


def _require(expected: int, found: int) -> None:
    if found != expected:
        raise ValueError(f"expected {expected} bytes unpacked, found {found}")


def check_index(entries_C2: npt.NDArray[np.uint64], limit_bytes: int, end: int = 1 << 62) -> None:
    """Check a shard's index before anything is read by it.

    Args:
        entries_C2: Offset and length per chunk, (chunks, 2) uint64; both `ABSENT` if not written.
        limit_bytes: What a packed chunk may take, as from `packed_limit`.
        end: Where the chunks have to end, as an offset.

    Raises:
        ValueError: If a chunk is empty, takes more than `limit_bytes` or reaches beyond `end`, or
            two share bytes: each would be unpacked again.
    """
    # zarr reads an index for every row, most of few chunks: NumPy would take ten times as long.
    suspects_C2 = (
        entries_C2 if len(entries_C2) <= _FEW_CHUNKS else _suspects(entries_C2, limit_bytes, end)
    )
    before = 0
    for offset, length in sorted(suspects_C2.tolist()):
        if offset == length == ABSENT:
            continue
        if not 0 < length <= limit_bytes:
            raise ValueError(f"expected chunks of 1 to {limit_bytes} bytes packed, found {length}")
        if offset + length > end:
            raise ValueError("expected chunks inside the shard, found one beyond its end")
        if offset < before:
            raise ValueError("expected chunks of their own bytes, found two that share some")
        before = offset + length


def _suspects(
    entries_C2: npt.NDArray[np.uint64], limit_bytes: int, end: int
) -> npt.NDArray[np.uint64]:
    """Give the first chunk that is wrong and the one before it; nothing if all are right."""
    found_C2 = entries_C2[(entries_C2 != ABSENT).any(axis=1)]
    found_C2 = found_C2[np.argsort(found_C2[:, 0], kind="stable")]
    offset_C, length_C = found_C2.T
    wrong_C = (length_C == 0) | (length_C > limit_bytes) | (offset_C > end)
    wrong_C |= offset_C + length_C > end
    wrong_C[1:] |= offset_C[1:] < (offset_C + length_C)[:-1]
    first = int(wrong_C.argmax()) if wrong_C.any() else -1
    return np.asarray(found_C2[max(0, first - 1) : first + 1], np.uint64)
