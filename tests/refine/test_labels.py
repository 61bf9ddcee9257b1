"""Label and teacher rows come back as they were meant, also with plain zarr."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pipeline.errors import StoreError
from pipeline.shard_files import write_shard
from pipeline.store import create_store
from refine.choice import Refined
from refine.labels import (
    STRATEGY_NAMES,
    LabelReader,
    empty_columns,
    encode_label,
    label_arrays,
)
from refine.teacher_store import encode_logits
from refine.upsample import sigmoid, upsample_align_corners


def refined(rng, size, source="pwa"):
    weight = rng.random(size).astype(np.float32) if source == "pwa" else None
    mask = rng.random(size) < 0.5
    return Refined(mask_HW=mask, weight_HW=weight, source=source, score=0.25, num_chosen=2)


def store_labels(path, labels, canvas):
    columns = empty_columns(len(labels), canvas)
    for row, label in enumerate(labels):
        columns["expression"][row] = 100 + row
        columns["image"][row] = row
        if label is not None:
            encode_label(columns, row, label, 0.5)
    specs = label_arrays(canvas)
    create_store(path, specs, len(labels), len(labels), {"strategies": list(STRATEGY_NAMES)})
    write_shard(path, specs, 0, range(len(labels)), columns)


def test_labels_come_back_exactly_and_weights_within_a_step(tmp_path):
    rng = np.random.default_rng(0)
    sizes = [(32, 32), (1, 1), (17, 32), (32, 9), (8, 31)]
    labels = [refined(rng, size, name) for size, name in zip(sizes, STRATEGY_NAMES, strict=False)]
    labels += [refined(rng, (32, 30), "pwa"), None]
    store_labels(tmp_path / "labels.zarr", labels, 32)
    reader = LabelReader(tmp_path / "labels.zarr")
    for row, label in enumerate(labels):
        found = reader.read(row)
        if label is None:
            assert found is None
            continue
        assert np.array_equal(found.mask, label.mask_HW)
        weight = 1.0 if label.weight_HW is None else label.weight_HW
        assert np.abs(found.weight - weight).max() <= 0.5 / 255 + 1e-6
        assert (found.source, found.expression, found.image) == (label.source, 100 + row, row)


def test_a_reader_travels_to_another_process(tmp_path):
    store_labels(tmp_path / "labels.zarr", [refined(np.random.default_rng(1), (8, 8))], 8)
    reader = LabelReader(tmp_path / "labels.zarr")
    first = reader.read(0)
    again = pickle.loads(pickle.dumps(reader)).read(0)
    assert np.array_equal(first.mask, again.mask)


def test_plain_zarr_reads_a_label(tmp_path):
    label = refined(np.random.default_rng(2), (24, 21), "iom")
    store_labels(tmp_path / "labels.zarr", [label], 24)
    group = zarr.open_group(tmp_path / "labels.zarr", mode="r")
    height, width = group["size"][0]
    mask = np.unpackbits(group["mask"][0], axis=1)[:height, :width]
    assert np.array_equal(mask, label.mask_HW)
    assert (group["weight"][0][:height, :width] == 255).all()
    assert group.attrs["strategies"][int(group["source"][0])] == "iom"


def test_a_damaged_label_names_its_row(tmp_path):
    store_labels(tmp_path / "labels.zarr", [refined(np.random.default_rng(2), (64, 64))] * 3, 64)
    shard = Path(tmp_path / "labels.zarr" / "weight" / "c" / "0" / "0" / "0")
    content = bytearray(shard.read_bytes())
    content[200] ^= 4
    shard.write_bytes(bytes(content))
    with pytest.raises(StoreError, match=r"row 0 cannot be read .*inspect-shards verify"):
        LabelReader(tmp_path / "labels.zarr").read(0)


def test_an_odd_canvas_is_refused():
    with pytest.raises(StoreError, match="multiple of 8 pixels, found 30"):
        label_arrays(30)


SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))


@given(SIZES, st.tuples(st.integers(1, 40), st.integers(1, 40)), st.integers(0, 9))
@settings(max_examples=300)
def test_upsampling_is_torchs(source, target, seed):
    value = np.random.default_rng(seed).normal(size=source).astype(np.float32)
    ours = upsample_align_corners(value, target)
    tensor = torch.from_numpy(value)[None, None]
    theirs = F.interpolate(tensor, target, mode="bilinear", align_corners=True)[0, 0].numpy()
    assert ours.shape == target
    assert np.allclose(ours, theirs, atol=2e-5)


def test_the_mask_that_comes_back_is_the_teachers():
    """float16 margins decide less than 0.01 % of the pixels otherwise."""
    rng = np.random.default_rng(0)
    differing = pixels = 0
    for _ in range(20):
        coarse = rng.normal(scale=4, size=(8, 8)).astype(np.float32)
        margin = upsample_align_corners(coarse, (120, 120)) + rng.normal(
            scale=0.2, size=(120, 120)
        ).astype(np.float32)
        own = upsample_align_corners(margin, (480, 640)) > 0
        back = upsample_align_corners(encode_logits(margin[None])[0], (480, 640)) > 0
        differing += int((own != back).sum())
        pixels += own.size
    assert differing / pixels < 1e-4


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20))
def test_no_sign_is_lost(values):
    margin = np.array(values, np.float32)
    back = encode_logits(margin)
    assert np.array_equal(back > 0, margin > 0)
    assert np.isfinite(back).all()


def test_a_broken_teacher_is_an_error():
    with pytest.raises(StoreError, match="not finite"):
        encode_logits(np.array([np.nan], np.float32))


def test_sigmoid_never_overflows():
    with np.errstate(all="raise", under="ignore"):
        assert sigmoid(np.array([-1e9, 0, 1e9], np.float32)).tolist() == pytest.approx([0, 0.5, 1])
