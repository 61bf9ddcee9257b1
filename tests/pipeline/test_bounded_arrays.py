"""Arrays of a store read as plain zarr reads them, and never more than they state."""

import copy
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numcodecs import blosc
from numcodecs.gzip import GZip
from numcodecs.zstd import Zstd
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec
from zarr.storage import MemoryStore

from pipeline.bounded_codecs import packed_limit
from pipeline.candidates import CandidateReader
from pipeline.cli import inspect_shards
from pipeline.errors import StoreError
from pipeline.limited_files import MAX_METADATA_BYTES, LimitedStore
from pipeline.places import place
from pipeline.shard_files import write_shard
from pipeline.store import ArraySpec, create_store, open_store
from pipeline.zarr_limits import open_arrays
from refine.labels import LabelReader
from refine.teacher_store import TeacherReader
from tests.pipeline.bombs import (
    ABSENT,
    GIB,
    blosc_states,
    gzip_zeros,
    shard_of,
    zstd_zeros,
)

ROWS, SHARD = 6, 3
SPECS = (
    ArraySpec(name="mask", dtype="uint8", row_shape=(64, 80), chunk_rows=1),
    ArraySpec(name="row", dtype="int32", fill_value=-1),
    ArraySpec(name="bytes", dtype="uint8", payload=True),
)
CHUNK = 64 * 80
"""Bytes of a chunk of `mask`."""
VALUES = np.random.default_rng(3).integers(0, 2, (ROWS, 64, 80)).astype(np.uint8)


@pytest.fixture
def store(tmp_path):
    """A store of six rows in two shards."""
    path = tmp_path / "a.zarr"
    fill(path)
    return path


def fill(path):
    create_store(path, SPECS, ROWS, SHARD, {})
    for shard in range(2):
        rows = range(shard * SHARD, (shard + 1) * SHARD)
        columns = {
            "mask": VALUES[rows.start : rows.stop],
            "row": np.arange(rows.start, rows.stop, dtype=np.int32),
            "bytes": np.arange(7, dtype=np.uint8),
        }
        write_shard(path, SPECS, shard, rows, columns)


def opened(path, **how):
    return open_arrays(open_store(path), str(path), **how)


def refusal(read):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - compared by those who ask
        read()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What is sound reads as ever.

CODECS = st.lists(
    st.sampled_from(
        [ZstdCodec(level=3, checksum=True), ZstdCodec(), GzipCodec(level=1), BloscCodec(),
         BloscCodec(cname="lz4", shuffle="shuffle"), Crc32cCodec()]
    ),
    max_size=3,
)  # fmt: skip
CODECS = CODECS.filter(
    lambda codecs: len([c for c in codecs if c.to_dict()["name"] != "crc32c"]) < 2
)


@settings(max_examples=60)
@given(data=st.data())
def test_any_store_reads_as_through_plain_zarr(data):
    """Of any layout that zarr writes with its codecs, ours among them; not every shard is there."""
    rows = data.draw(st.integers(1, 9), "rows")
    row_shape = data.draw(npst.array_shapes(min_dims=0, max_dims=2, max_side=5), "row shape")
    chunk_rows, chunks_per_shard = data.draw(st.tuples(st.integers(1, 4), st.integers(0, 3)))
    dtype = data.draw(st.sampled_from(["uint8", "bool", "int16", "float32", "int64"]), "dtype")
    transposed = bool(row_shape) and data.draw(st.booleans(), "transposed")
    memory = MemoryStore()
    written = zarr.open_group(memory, mode="w", zarr_format=3).create_array(
        "a",
        shape=(rows, *row_shape),
        chunks=(chunk_rows, *row_shape),
        shards=(chunk_rows * chunks_per_shard, *row_shape) if chunks_per_shard else None,
        dtype=dtype,
        fill_value=1,
        filters=[TransposeCodec(order=tuple(reversed(range(1 + len(row_shape)))))]
        if transposed
        else None,
        compressors=data.draw(CODECS, "codecs"),
    )
    known = data.draw(st.integers(0, rows), "rows written")
    values = data.draw(npst.arrays(dtype, (known, *row_shape)), "values")
    if known:
        written[:known] = values
    plain = zarr.open_group(memory, mode="r")["a"]
    own = open_arrays(zarr.open_group(memory, mode="r"), "store")["a"]
    start, stop = sorted(data.draw(st.tuples(st.integers(0, rows), st.integers(0, rows)), "part"))
    assert own[:].tobytes() == plain[:].tobytes()
    assert own[start:stop].tobytes() == plain[start:stop].tobytes()
    assert own[rows - 1].tobytes() == plain[rows - 1].tobytes()
    assert own[:known].tobytes() == np.asarray(values).tobytes()
    assert (own.shape, own.chunks, own.shards, own.dtype) == (
        plain.shape, plain.chunks, plain.shards, plain.dtype,
    )  # fmt: skip


def test_an_array_that_was_sent_to_another_process_is_as_careful(store):
    sound = opened(store)
    (store / "mask" / "c" / "1" / "0" / "0").write_bytes(
        shard_of([zstd_zeros(1 << 17), None, None])
    )
    for array in (
        sound["mask"],
        pickle.loads(pickle.dumps(sound))["mask"],
        copy.copy(sound["mask"]),
    ):
        assert np.array_equal(array[1], VALUES[1])
        assert refusal(lambda array=array: array[3]) == (
            "array mask: a chunk: expected 5120 bytes unpacked, found 131072"
        )
        with pytest.raises(NotImplementedError):
            array[0] = 1


def test_the_metadata_is_that_of_the_file(store):
    from pipeline.zarr_limits import document_of

    plain = zarr.open_group(store, mode="r")
    for name, array in opened(store).items():
        assert document_of(array) == document_of(plain[name])


# Bombs in chunks.


def sharded(chunk):
    return lambda store: (store / "mask" / "c" / "0" / "0" / "0").write_bytes(
        shard_of([chunk, Zstd(3, checksum=True).encode(VALUES[1]), None])
    )


@pytest.mark.parametrize(
    ("chunk", "reason"),
    [
        (zstd_zeros(1 << 27), "expected 5120 bytes unpacked, found 134217728"),
        (zstd_zeros(1 << 27, states=None), "damaged: Zstd decompression error: "),
        (zstd_zeros(1 << 27, states=CHUNK), "damaged: Zstd decompression error: "),
        (zstd_zeros(1 << 17, states=1 << 60), "found 1152921504606846976"),
        (Zstd(3).encode(VALUES[0, 1:]), "expected 5120 bytes unpacked, found 5040"),
    ],
)
def test_a_bomb_in_a_shard_is_one_reason_and_its_neighbours_are_read(store, chunk, reason):
    sharded(chunk)(store)
    mask = opened(store)["mask"]
    for rows in (0, slice(0, 3), slice(None)):
        message = refusal(lambda rows=rows: mask[rows])
        assert message.startswith("array mask: a chunk: ")
        assert reason in message
    assert np.array_equal(mask[1], VALUES[1])
    assert np.array_equal(mask[3:], VALUES[3:])


def test_a_bomb_that_is_packed_into_more_than_the_chunk_is_not_even_read(store):
    mask = opened(store)["mask"]
    bomb = zstd_zeros(3 << 26)
    assert len(bomb) > packed_limit(CHUNK)
    sharded(bomb)(store)
    for rows in (0, slice(0, 3)):
        assert refusal(lambda rows=rows: mask[rows]) == (
            f"array mask: a shard's index: expected chunks of 1 to 5456 bytes packed, "
            f"found {len(bomb)}"
        )
    bomb = zstd_zeros(3 * GIB)
    sharded(bomb)(store)
    for rows in (0, slice(0, 3)):
        assert refusal(lambda rows=rows: mask[rows]).startswith(
            "expected 1 to 16420 bytes in mask/c/0/0/0, found 9"
        )


@pytest.mark.parametrize(
    ("codec", "sound", "bomb", "found"),
    [
        (GzipCodec(), GZip(1).encode, gzip_zeros(8), "found more"),
        (BloscCodec(), blosc.compress, blosc_states(2 * GIB - 16), "found 2147483632"),
        (ZstdCodec(), Zstd().encode, zstd_zeros(1 << 27), "found 134217728"),
    ],
)
@pytest.mark.parametrize("shards", [(4, 4096), None])
def test_a_store_that_was_packed_otherwise_is_read_as_carefully(
    tmp_path, codec, sound, bomb, found, shards
):
    del sound
    group = zarr.open_group(tmp_path / "b.zarr", mode="w", zarr_format=3)
    array = group.create_array(
        "a", shape=(8, 4096), chunks=(2, 4096), shards=shards, dtype="int32", compressors=codec
    )
    values = np.arange(8 * 4096, dtype=np.int32).reshape(8, 4096)
    array[:] = values
    mine = opened(tmp_path / "b.zarr")["a"]
    assert np.array_equal(mine[:], values)
    file = tmp_path / "b.zarr" / "a" / "c" / "0" / "0"
    file.write_bytes(shard_of([bomb, None]) if shards else bomb)
    assert refusal(lambda: mine[0]) == (f"array a: a chunk: expected 32768 bytes unpacked, {found}")


# Indices that lead astray.

SOUND = Zstd(3, checksum=True).encode(VALUES[0])


@pytest.mark.parametrize(
    ("extents", "reason"),
    [
        ([(0, len(SOUND))] * 3, "found two that share some"),
        ([(0, len(SOUND)), (0, 1 << 40), (ABSENT, ABSENT)], "found 1099511627776"),
        ([(0, len(SOUND)), (2**63, 100), (ABSENT, ABSENT)], "found one beyond its end"),
        ([(0, len(SOUND)), (ABSENT, 100), (ABSENT, ABSENT)], "found one beyond its end"),
        ([(0, len(SOUND)), (0, 0), (ABSENT, ABSENT)], "found 0"),
    ],
)
def test_an_index_that_leads_astray_is_refused_for_every_row(store, extents, reason):
    (store / "mask" / "c" / "0" / "0" / "0").write_bytes(shard_of([SOUND], extents))
    mask = opened(store)["mask"]
    for rows in (0, 1, slice(0, 3)):
        message = refusal(lambda rows=rows: mask[rows])
        assert message.startswith("array mask: a shard's index: expected chunks ")
        assert reason in message
    assert np.array_equal(mask[3], VALUES[3])


def test_a_chunk_beyond_the_end_of_its_file_is_no_fill_value(store):
    """To zarr, what is read beyond the end of a file is a chunk that was never written."""
    content = shard_of([SOUND], [(0, len(SOUND)), (5000, 90), (ABSENT, ABSENT)])
    (store / "mask" / "c" / "0" / "0" / "0").write_bytes(content)
    mask = opened(store)["mask"]
    assert np.array_equal(mask[0], VALUES[0])
    assert not mask[2].any()
    assert refusal(lambda: mask[1]) == "mask/c/0/0/0 ends before one of its chunks does"
    assert refusal(lambda: mask[:3]).startswith("array mask: a chunk: damaged: ")
    assert not zarr.open_group(store, mode="r")["mask"][1].any()


# Files that are longer than they may be, or none.


def make_sparse(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(1 << 42)


def make_pipe(path):
    path.unlink()
    os.mkfifo(path)


def make_link(path):
    path.unlink()
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (make_sparse, "expected 1 to {limit} bytes in {file}, found 4398046511104"),
        (make_pipe, "expected a file, found a pipe or device at {file}"),
        (make_link, "expected a file, found a pipe or device at {file}"),
        (lambda path: path.write_bytes(b""), "expected 1 to {limit} bytes in {file}, found 0"),
    ],
)
@pytest.mark.parametrize(
    ("file", "limit"), [("mask/c/0/0/0", 16420), ("row/c/0", 268), ("bytes/c/0/0", 1065216)]
)
def test_a_file_that_is_too_long_or_none_is_not_read(store, make, reason, file, limit):
    make(store / file)
    arrays = opened(store)
    name = file.split("/")[0]
    part = (0, slice(0, 5)) if name == "bytes" else 0
    assert refusal(lambda: arrays[name][part]) == reason.format(limit=limit, file=file)
    if name == "mask":
        assert refusal(lambda: arrays[name][:3]) == reason.format(limit=limit, file=file)


@pytest.mark.parametrize("make", [make_sparse, make_pipe, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("file", ["zarr.json", "row/zarr.json"])
def test_metadata_that_is_too_long_or_none_is_one_line(store, make, file):
    make(store / file)
    with pytest.raises(StoreError) as caught:
        opened(store)
    message = str(caught.value)
    assert message.startswith(f"{store}: ")
    assert f"expected 1 to {MAX_METADATA_BYTES} bytes in {file}" in message or (
        f"expected a file, found a pipe or device at {file}" in message
    )


def test_a_folder_in_the_place_of_a_chunk_is_a_chunk_that_was_never_written(store):
    """As to zarr; the done record tells that it was."""
    (store / "row" / "c" / "0").unlink()
    (store / "row" / "c" / "0").mkdir()
    assert opened(store)["row"][:3].tolist() == [-1] * 3


def test_a_limited_store_is_for_reading(store):
    inner = zarr.storage.LocalStore(store)
    limited = LimitedStore(inner, 100)
    assert limited == LimitedStore(inner, 100) != LimitedStore(inner, 101)
    with pytest.raises(ValueError, match="read-only"):
        zarr.open_group(limited, mode="r+").create_array("b", shape=(1,), dtype="uint8")
    assert not (store / "b").exists()


# Memory, measured.

LIMITED = """
    import resource, sys
    from pathlib import Path
    import zarr
    from pipeline.store import open_store
    from pipeline.zarr_limits import open_arrays

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10  # MiB

    group = open_store(Path(sys.argv[1]))
    arrays = open_arrays(group, "store")
    for array in arrays.values():
        array[1]
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 29), used + (1 << 29)))
    before = peak()
    for name, array in arrays.items():
        try:
            print(array[0].sum())
        except ValueError as error:
            print("refused:", error)
    print(peak() - before)
    for name in arrays:
        try:
            print("plain zarr:", group[name][0].sum())
        except (MemoryError, RuntimeError, OSError) as error:
            print("plain zarr:", type(error).__name__)
"""


def test_bombs_of_gigabytes_take_no_memory_and_in_plain_zarr_they_would(tmp_path):
    """Chunks of some MiB that unpack to 3 GiB, read by a process that may have half a GiB more."""
    path = tmp_path / "bombs.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=3)
    bombs = {
        "frame": (ZstdCodec(), zstd_zeros(3 * GIB)),
        "member": (GzipCodec(), gzip_zeros(3 << 10)),
        "stream": (ZstdCodec(), zstd_zeros(3 * GIB, states=None)),
    }
    for name, (codec, bomb) in bombs.items():
        side = 1 << 19 if name != "member" else 1 << 22
        array = group.create_array(
            name, shape=(4, side), chunks=(1, side), shards=(2, side), dtype="uint8",
            compressors=codec,
        )  # fmt: skip
        array[:] = 1
        sound = array[1]
        packed = Zstd().encode(sound) if name != "member" else GZip(1).encode(sound)
        (path / name / "c" / "0" / "0").write_bytes(shard_of([bomb, packed]))
    array = group.create_array("sparse", shape=(4, 9), chunks=(1, 9), dtype="uint8")
    array[:] = 1
    make_sparse(path / "sparse" / "c" / "0" / "0")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LIMITED), str(path)],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert len(lines) == 9, done.stderr
    assert all(line.startswith("refused: ") for line in lines[:4])
    assert int(lines[4]) < 32, lines  # MiB; the chunks are 4 at most
    assert all(line.startswith("plain zarr: ") for line in lines[5:])
    assert all(line.endswith("Error") for line in lines[5:]), lines


# By the readers of a run.


@pytest.mark.parametrize(
    ("store", "array", "read"),
    [
        ("candidates", "cells", lambda place: CandidateReader(place).read(0)),
        ("candidates", "cells", lambda place: CandidateReader(place).read_run(range(2))),
        ("candidates", "membership", lambda place: CandidateReader(place).read(0)),
        ("candidates", "num_cells", lambda place: CandidateReader(place).read(0)),
        ("round-1/teacher", "logit", lambda place: TeacherReader(place).read(range(2))),
        ("round-1/teacher", "valid", lambda place: TeacherReader(place).scalars()),
        ("round-1/labels", "weight", lambda place: LabelReader(place).read(0)),
        ("round-1/labels", "source", lambda place: LabelReader(place).read(0)),
    ],
)
def test_every_reader_tells_of_a_bomb_in_one_line_and_repair_removes_it(
    finished_run, tmp_path, store, array, read
):
    run = shutil.copytree(finished_run[0], tmp_path / "run")
    path = run / f"{store}.zarr"
    assert read(path) is not None
    (file,) = [file for file in (path / array / "c" / "0").rglob("*") if file.is_file()] or [
        path / array / "c" / "0"
    ]
    opened_array = zarr.open_group(path, mode="r")[array]
    bomb = zstd_zeros(1 << 22)  # packed into 145 bytes, which any chunk may have
    if opened_array.shards:
        file.write_bytes(shard_of([bomb], [(0, len(bomb))] + [(ABSENT, ABSENT)] * (
            opened_array.shards[0] // opened_array.chunks[0] - 1
        )))  # fmt: skip
    else:
        file.write_bytes(bomb)
    message = refusal(lambda: read(path))
    assert message.startswith(f"{path}: ")
    assert f" cannot be read (array {array}: a chunk: expected " in message
    assert f"found {1 << 22}); run 'inspect-shards verify {path}'" in message
    show = CliRunner().invoke(inspect_shards, ["show", str(path), "--out", str(tmp_path / "x.png")])
    if array != "valid":  # the same, but for columns that are not shown
        assert show.exit_code == 1
        assert show.stderr.count("\n") == 1
        assert f"error: {path}: row 0 cannot be read (array {array}: a chunk: " in show.stderr
    for verb, code, found in (("verify", 1, "damaged"), ("repair", 0, "1 damaged shards removed")):
        result = CliRunner().invoke(inspect_shards, [verb, str(path)])
        assert result.exit_code == code, result.output
        assert found in result.stdout
    assert not file.exists()


# The same in an object store.


def test_objects_are_limited_as_files_are(tmp_path, store):
    """The server counts what it sends: of objects of 32 MiB it is about what was asked for."""
    server = pytest.importorskip("object_server")
    served = []
    with server.used_here(tmp_path / "cache") as gate:
        app = gate.app

        def counted(environ, start_response):
            pieces = list(app(environ, start_response))
            served.append(sum(map(len, pieces)))
            return pieces

        gate.app = counted
        try:
            read_hostile_objects(server, store, served)
        finally:
            gate.app = app


def read_hostile_objects(server, store, served):
    bucket = server.make_bucket()
    files = [path.relative_to(store) for path in store.rglob("*") if path.is_file()]

    def put(content, *names):
        for name in names:
            server.put(bucket, f"a.zarr/{name}", content)

    for file in files:
        put((store / file).read_bytes(), file)
    arrays = opened(place(f"s3://{bucket}/a.zarr"))
    assert np.array_equal(arrays["mask"][:], VALUES)
    assert arrays["row"][:].tolist() == list(range(ROWS))
    assert arrays["bytes"][0, :7].tolist() == list(range(7))
    served.clear()
    put(bytes(1 << 25), "row/c/0", "mask/c/1/0/0", "bytes/c/0/0")
    put(b"", "row/c/1")
    assert refusal(lambda: arrays["row"][0]) == "expected 1 to 268 bytes in row/c/0, found 269"
    assert refusal(lambda: arrays["row"][3]) == "expected 1 to 268 bytes in row/c/1, found 0"
    assert "in mask/c/1/0/0, found 16421" in refusal(lambda: arrays["mask"][3:])
    assert "in bytes/c/0/0, found 1065217" in refusal(lambda: arrays["bytes"][0, :9])
    for extent, reason in [
        ((1 << 25, 1 << 24), "packed, found 16777216"),
        ((5000, 40), "mask/c/0/0/0 ends before one of its chunks does"),
    ]:
        put(shard_of([SOUND], [(0, len(SOUND)), extent, (ABSENT, ABSENT)]), "mask/c/0/0/0")
        assert reason in refusal(lambda: arrays["mask"][1])
    put(b" " * (1 << 25), "row/zarr.json")
    with pytest.raises(StoreError, match=r"expected 1 to 4194304 bytes in row/zarr\.json"):
        opened(place(f"s3://{bucket}/a.zarr"))
    assert 5 << 20 < sum(served) < 6 << 20  # most of it is what zarr.json may take
