"""Labels read straight from their shards equal what zarr reads, damage included."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest
import zarr
from zarr.codecs import GzipCodec, ZstdCodec

from benchmarks.loader import read_released, write_released
from pipeline.bounded_codecs import packed_limit
from pipeline.errors import StoreError
from pipeline.exchange.runs import mask_of_runs, runs_of_pairs
from pipeline.store import open_store
from pipeline.zarr_limits import open_arrays
from refine.labels import LabelReader
from tests.pipeline.bombs import ABSENT, shard_of, zstd_zeros
from train.label_rows import FastLabelReader, ShardRows, crc32c, open_rows

NEAREST = (np.arange(18) * 14 / 18).astype(int)
"""Columns that nearest interpolation takes to go from 14 to 18."""


@pytest.fixture
def store(finished_run, tmp_path):
    path = tmp_path / "labels.zarr"
    shutil.copytree(finished_run[0] / "round-1" / "labels.zarr", path)
    return path


def rows_of(folder, name):
    """Open an array in a folder as `FastLabelReader` does."""
    return open_rows(folder / name, open_arrays(open_store(folder), str(folder))[name])


def shard_file(store, name):
    (path,) = [path for path in (store / name / "c" / "1").rglob("*") if path.is_file()]
    return path


def test_crc_by_the_published_check_value():
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(b"") == 0


def test_every_label_equals_zarrs(store):
    slow, fast = LabelReader(store), FastLabelReader(store)
    count = len(slow.scalars()["source"])
    assert count > 50
    for row in np.random.default_rng(0).permutation(count).tolist():
        own, expected = fast.read(row), slow.read(row)
        assert np.array_equal(own.mask, expected.mask)
        assert np.array_equal(own.weight, expected.weight)
        assert (own.source, own.score, own.expression) == (
            expected.source, expected.score, expected.expression,
        )  # fmt: skip
    assert isinstance(fast._arrays["mask"], ShardRows)
    again = pickle.loads(pickle.dumps(fast))
    assert np.array_equal(again.read(3).mask, slow.read(3).mask)


@pytest.mark.parametrize(
    ("shape", "chunks", "shards"),
    [
        ((10, 4, 6), (2, 4, 6), (4, 4, 6)),
        ((5, 3), (1, 3), (5, 3)),
        ((7, 2, 2), (3, 2, 2), (6, 2, 2)),
    ],
)
def test_rows_of_any_layout_equal_zarrs(tmp_path, shape, chunks, shards):
    """Ragged last shards, chunks that were never written, shards that are not there."""
    array = zarr.open_group(tmp_path, mode="w").create_array(
        "a", shape=shape, chunks=chunks, shards=shards, dtype="uint8", fill_value=7,
        compressors=ZstdCodec(level=3, checksum=True),
    )  # fmt: skip
    values = np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)
    array[: shards[0]] = values[: shards[0]]
    array[0 : chunks[0]] = 7  # back to the fill value: zarr drops the chunk
    rows = rows_of(tmp_path, "a")
    for row in range(shape[0]):
        assert np.array_equal(rows[row, :2], array[row, :2])
    with pytest.raises(IndexError):
        rows[shape[0], :2]


def test_other_layouts_are_left_to_zarr(tmp_path):
    group, chunks = zarr.open_group(tmp_path, mode="w"), {"shape": (4, 4), "chunks": (2, 4)}
    group.create_array("plain", dtype="uint8", **chunks)
    group.create_array("wide", dtype="uint16", shards=(4, 4), **chunks)
    group.create_array("gzip", dtype="uint8", shards=(4, 4), compressors=GzipCodec(), **chunks)
    for name in ("plain", "wide", "gzip"):
        assert rows_of(tmp_path, name) is None


@pytest.mark.parametrize("place", ["chunk", "index", "end"])
def test_damage_is_named_as_by_zarr(store, place):
    path = shard_file(store, "weight")
    content = bytearray(path.read_bytes())
    if place == "end":
        content = content[:-30]
    else:
        content[len(content) - 12 if place == "index" else 20] ^= 4
    path.write_bytes(bytes(content))
    row = 24  # the first of shard 1, whose first chunk is damaged
    for reader in (LabelReader(store), FastLabelReader(store)):
        with pytest.raises(StoreError, match=r"row 24 cannot be read .*inspect-shards verify"):
            reader.read(row)


@pytest.mark.parametrize(
    ("chunks", "extents", "reason"),
    [
        ([zstd_zeros(1 << 30)], None, "chunk 0: expected {size} bytes unpacked, found 1073741824"),
        ([zstd_zeros(1 << 30, states=None)], None, "chunk 0: damaged: Zstd decompression error"),
        ([b"x" * 9], [(0, 1 << 40)], "its index: expected chunks of 1 to {limit} bytes packed,"),
        ([b"x" * 9], [(0, 9)] * 2, "its index: expected chunks of their own bytes, found two"),
        ([b"x" * 9], [(0, 10)], "its index: expected chunks inside the shard, found one beyond"),
        ([b"x" * 9], [(0, 0)], "its index: expected chunks of 1 to {limit} bytes packed, found 0"),
    ],
)
def test_a_bomb_is_one_line_that_names_store_array_and_row(store, chunks, extents, reason):
    fast = FastLabelReader(store)
    assert fast.read(24) is not None
    rows = fast._arrays["mask"]
    absent = [(ABSENT, ABSENT)] * (rows.shard_rows // rows.chunk_shape[0])
    found = extents or [(0, len(chunks[0]))]
    shard_file(store, "mask").write_bytes(shard_of(chunks, (found + absent)[: len(absent)]))
    size = np.prod(rows.chunk_shape)
    reason = reason.format(size=size, limit=packed_limit(size))
    for reader in (fast, FastLabelReader(store)):
        with pytest.raises(StoreError) as caught:
            reader.read(24)
        message = str(caught.value)
        assert message.startswith(f"{store}: row 24 cannot be read (array mask: shard 1: {reason}")
        assert message.endswith(f"); run 'inspect-shards verify {store}'")
        assert "\n" not in message
    with pytest.raises(StoreError, match=r"row 24 cannot be read \(array mask: a "):
        LabelReader(store).read(24)


def test_a_pipe_in_the_place_of_a_shard_is_not_waited_for(store):
    path = shard_file(store, "weight")
    path.unlink()
    os.mkfifo(path)
    for reader in (LabelReader(store), FastLabelReader(store)):
        with pytest.raises(StoreError, match=r"row 24 cannot be read .*found a pipe or device"):
            reader.read(24)


def test_a_shard_that_is_written_anew_is_read_anew(store):
    fast, path = FastLabelReader(store), shard_file(store, "mask")
    before = fast.read(24).mask
    other = store / "mask" / "c" / "0" / "0" / "0"
    path.unlink()
    shutil.copy(other, path)
    assert np.array_equal(FastLabelReader(store).read(24).mask, fast.read(24).mask)
    assert not np.array_equal(fast.read(24).mask, before)


def test_the_benchmarks_peer_reads_what_the_released_format_holds(tmp_path):
    """Its writer against our importer of that format, its reader against the masks themselves."""
    masks = np.random.default_rng(0).random((3, 9, 14)) < np.array([0.5, 0.05, 0.99])[:, None, None]
    masks[1, 0, 0] = masks[2, -1, -1] = True
    write_released(masks, tmp_path / "7.json")
    for entry, mask in zip(json.loads((tmp_path / "7.json").read_text()), masks, strict=True):
        assert entry["size"] == [9, 14]
        runs = runs_of_pairs(entry["counts"], (9, 14))
        assert np.array_equal(mask_of_runs(runs, (9, 14)), mask)
    assert np.array_equal(read_released(tmp_path / "7.json", 18)[:, ::2], masks[:, :, NEAREST])
