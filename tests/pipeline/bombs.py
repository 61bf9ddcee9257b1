"""Packed bytes that unpack to far more than they look like, made by hand and without the room."""

import struct
import zlib

import google_crc32c
from numcodecs import blosc

GIB = 1 << 30
ABSENT = 2**64 - 1
_BLOCK = 1 << 17  # the most that a block of zstd holds
_MEBIBYTE = 1 << 20


def zstd_zeros(num_bytes, states="truth"):
    """Make a zstd frame of zeros in whole blocks, four bytes each.

    `states` is what its header says: the truth, nothing (None), or a number.
    """
    blocks, rest = divmod(num_bytes, _BLOCK)
    assert rest == 0
    window = b"\x58"  # 2 MiB
    frame = b"\x28\xb5\x2f\xfd"
    if states is None:
        frame += b"\x00" + window
    else:
        frame += b"\xc0" + window + struct.pack("<Q", num_bytes if states == "truth" else states)
    one = struct.pack("<I", _BLOCK << 3 | 1 << 1)[:3] + b"\0"
    last = struct.pack("<I", _BLOCK << 3 | 1 << 1 | 1)[:3] + b"\0"
    return frame + one * (blocks - 1) + last


def gzip_zeros(mebibytes):
    """Make a gzip member of zeros out of one piece that stands for a mebibyte each time."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    first = packer.compress(bytes(_MEBIBYTE)) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(_MEBIBYTE)) + packer.flush(zlib.Z_FULL_FLUSH)
    packer.compress(b"")
    end = packer.flush()[:-8]  # without the trailer
    # The checksum of that many zeros is wrong; a reader finds out when it has unpacked them all.
    return first + again * (mebibytes - 1) + end + struct.pack("<II", 0, mebibytes << 20 & ABSENT)


def blosc_states(num_bytes):
    """Make a blosc buffer whose header says that it unpacks to `num_bytes`, below 2 GiB."""
    packed = bytearray(blosc.compress(bytes(1 << 16), b"zstd", 5, blosc.SHUFFLE, 0))
    packed[4:8] = struct.pack("<I", num_bytes)
    return bytes(packed)


def shard_of(chunks, extents=None):
    """Put packed chunks together as a shard with its index at the end.

    Args:
        chunks: Their bytes in the order of the index; None was never written.
        extents: Offset and length per chunk to say instead.
    """
    content, found = b"", []
    for chunk in chunks:
        found.append((ABSENT, ABSENT) if chunk is None else (len(content), len(chunk)))
        content += chunk or b""
    index = b"".join(struct.pack("<QQ", *extent) for extent in extents or found)
    return content + index + struct.pack("<I", google_crc32c.value(index))
