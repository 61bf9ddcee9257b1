"""Packed chunks give the bytes that they should, or a reason; never more than was made room for."""

import itertools
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numcodecs import blosc
from numcodecs.gzip import GZip
from numcodecs.zstd import Zstd

from pipeline.bounded_codecs import ABSENT, UNPACK, check_index, packed_limit
from tests.pipeline.bombs import GIB, blosc_states, gzip_zeros, zstd_zeros

PACK = {
    "zstd": lambda content, level: Zstd(level, checksum=level % 2 == 0).encode(content),
    "gzip": lambda content, level: GZip(level).encode(content),
    "blosc": lambda content, level: blosc.compress(content, b"lz4", level, blosc.SHUFFLE),
}
CONTENTS = st.one_of(
    st.binary(min_size=1, max_size=3000),
    st.builds(lambda piece, n: piece * n, st.binary(min_size=1, max_size=9), st.integers(1, 40000)),
)


def packed_by(name, content, level=4):
    return np.frombuffer(PACK[name](content, level), np.uint8)


def test_every_codec_that_packs_is_tried_here():
    assert PACK.keys() == UNPACK.keys()


@pytest.mark.parametrize("name", UNPACK)
@settings(max_examples=60)
@given(content=CONTENTS, level=st.integers(0, 9))
def test_what_was_packed_comes_back(name, content, level):
    packed = packed_by(name, content, level)
    assert UNPACK[name](packed, len(content)).tobytes() == content
    assert packed.size <= packed_limit(len(content))


@pytest.mark.parametrize("name", UNPACK)
@settings(max_examples=40)
@given(content=CONTENTS, other=st.integers(-3, 300).filter(bool))
def test_another_number_of_bytes_is_refused(name, content, other):
    expected = max(1, len(content) + other)
    if expected == len(content):
        return
    with pytest.raises(ValueError, match=rf"^expected {expected} bytes unpacked, found"):
        UNPACK[name](packed_by(name, content), expected)


@pytest.mark.parametrize("name", UNPACK)
@settings(max_examples=150)
@given(
    data=st.data(), content=st.binary(min_size=1, max_size=400), ends=st.binary(max_size=30)
)  # fmt: skip
def test_any_damage_is_a_value_error_or_as_many_bytes(name, data, content, ends):
    packed = bytearray(packed_by(name, content * 5).tobytes() + ends)
    del packed[data.draw(st.integers(0, len(packed))) :]
    for _ in range(data.draw(st.integers(0, 3))):
        if packed:
            packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    try:
        unpacked = UNPACK[name](np.frombuffer(bytes(packed), np.uint8), 5 * len(content))
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert unpacked.shape == (5 * len(content),)


@pytest.mark.parametrize("size", [1, 255, 256, 257, 65791, 65792, 1 << 20])
def test_every_width_of_the_stated_size_is_read(size):
    """A header states a size in 1, 2 or 4 bytes (8 in the bombs); 2 bytes count from 256."""
    content = np.random.default_rng(size).bytes(size)
    packed = packed_by("zstd", content)
    assert UNPACK["zstd"](packed, size).tobytes() == content


def test_a_frame_that_states_nothing_has_to_fill_the_room():
    packed = np.frombuffer(zstd_zeros(1 << 18, states=None), np.uint8)
    assert not UNPACK["zstd"](packed, 1 << 18).any()
    for other in ((1 << 18) - 1, (1 << 18) + 1):
        with pytest.raises(ValueError, match=r"^damaged: Zstd decompression error"):
            UNPACK["zstd"](packed, other)


def test_a_second_frame_is_not_unpacked():
    packed = np.frombuffer(zstd_zeros(1 << 17) * 2, np.uint8)
    for size in (1 << 17, 1 << 18):
        with pytest.raises(ValueError, match=r"damaged: destination|expected 262144 bytes"):
            UNPACK["zstd"](packed, size)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("zstd", zstd_zeros(3 * GIB), "expected 1024 bytes unpacked, found 3221225472"),
        ("zstd", zstd_zeros(3 * GIB, states=None), "damaged: Zstd decompression error: "),
        ("zstd", zstd_zeros(3 * GIB, states=1024), "damaged: Zstd decompression error: "),
        ("zstd", zstd_zeros(1 << 17, states=2**64 - 3), "found 18446744073709551613"),
        ("zstd", b"\x50\x2a\x4d\x18\x04\0\0\0xxxx", "damaged: expected a zstd frame, found none"),
        ("zstd", zstd_zeros(1 << 17)[:9], "damaged: the header of its zstd frame is cut short"),
        ("gzip", gzip_zeros(3 << 10), "expected 1024 bytes unpacked, found more"),
        ("gzip", GZip(1).encode(b"x" * 1024) * 2, "damaged: expected one gzip member"),
        ("blosc", blosc_states(2 * GIB - 16), "expected 1024 bytes unpacked, found 2147483632"),
        ("blosc", blosc_states(1024) + b"x", "damaged: a blosc buffer of "),
        ("blosc", blosc_states(1024), "damaged: error during blosc decompression"),
        ("blosc", b"\2", "damaged: the header of its blosc buffer is cut short"),
    ],
    ids=itertools.count(),  # a gzip member holds the second in which it was made
)
def test_bombs_and_lies_are_refused(name, content, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - compared below
        UNPACK[name](np.frombuffer(content, np.uint8), 1024)
    assert message in str(caught.value)


def test_a_blosc_buffer_that_claims_bytes_beyond_its_end_is_not_read():
    packed = bytearray(blosc.compress(bytes(1024), b"zstd", 5))
    packed[12:16] = struct.pack("<I", 1 << 30)
    with pytest.raises(ValueError, match=r"damaged: a blosc buffer of 1073741824 bytes in \d+"):
        UNPACK["blosc"](np.frombuffer(bytes(packed), np.uint8), 1024)


LIMITED = """
    import resource, sys, zlib
    from pathlib import Path
    import numpy as np
    from numcodecs import get_codec
    from pipeline.bounded_codecs import UNPACK

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10  # MiB

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 29), used + (1 << 29)))
    before = peak()
    bombs = [(path.suffix[1:], path.read_bytes()) for path in sorted(Path(sys.argv[1]).iterdir())]
    for name, content in bombs:
        try:
            UNPACK[name](np.frombuffer(content, np.uint8), 1 << 20)
            print("unpacked")
        except ValueError as error:
            print("refused:", error)
    print(peak() - before)
    for name, content in bombs:
        try:
            print("numcodecs unpacks", len(get_codec({"id": name}).decode(content)))
        except (MemoryError, RuntimeError) as error:
            print("numcodecs:", type(error).__name__)
"""


def test_bombs_take_no_memory_and_without_us_they_would(tmp_path):
    """Of 3 GiB each, read by a process that may have half a GiB more."""
    (tmp_path / "1.zstd").write_bytes(zstd_zeros(3 * GIB))
    (tmp_path / "2.zstd").write_bytes(zstd_zeros(3 * GIB, states=None))
    (tmp_path / "3.gzip").write_bytes(gzip_zeros(3 << 10))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 4 << 20
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LIMITED), str(tmp_path)],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    *lines, taken, first, second, third = done.stdout.splitlines()
    assert len(lines) == 3, done.stderr
    assert all(line.startswith("refused: ") for line in lines)
    assert int(taken) < 16  # MiB, of which the files are 4
    assert {first, third} == {"numcodecs: MemoryError"}
    assert second in ("numcodecs: MemoryError", "numcodecs: RuntimeError")


def index_of(*extents):
    return np.array(extents, np.uint64).reshape(-1, 2)


def test_an_index_of_chunks_apart_is_admitted_in_any_order():
    check_index(index_of((100, 50), (ABSENT, ABSENT), (0, 100), (150, 7)), 100, 157)
    check_index(index_of((ABSENT, ABSENT)), 1)
    check_index(index_of(), 1)


@pytest.mark.parametrize(
    ("extents", "message"),
    [
        ([(0, 101)], "expected chunks of 1 to 100 bytes packed, found 101"),
        ([(0, 0)], "expected chunks of 1 to 100 bytes packed, found 0"),
        ([(0, 10), (ABSENT, 10)], "found one beyond its end"),
        ([(0, ABSENT)], "found 18446744073709551615"),
        ([(950, 51)], "found one beyond its end"),
        ([(2**63, 10)], "found one beyond its end"),
        ([(2**64 - 10, 20)], "found one beyond its end"),
        ([(5, 10)] * 3, "found two that share some"),
        ([(0, 11), (10, 10)], "found two that share some"),
    ],
)
def test_an_index_that_leads_astray_is_refused(extents, message):
    for others in ([], [(400 + chunk, 1) for chunk in range(300)]):  # few, and many
        check_index(index_of(*others), 100, 1000)
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - compared below
            check_index(index_of(*others, *extents), 100, 1000)
        assert message in str(caught.value)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=12), st.booleans())
@example([(0, 5), (3, 1), (9, 2)], True)
def test_sharing_is_found_as_by_looking_at_every_byte(extents, in_many):
    owned = [byte for start, length in extents for byte in range(start, start + length)]
    others = [(100 + 9 * chunk, 9) for chunk in range(300 * in_many)]
    if len(set(owned)) == len(owned):
        check_index(index_of(*others, *extents), 9)
    else:
        with pytest.raises(ValueError, match="share"):
            check_index(index_of(*others, *extents), 9)
