"""Crops and small regions against segment-anything's own functions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.sam.crops import Crop, crops_of, cut_by_crop, uncrop
from pipeline.sam.small_regions import drop_islands, fill_holes, tidy_masks
from pipeline.torchvision_ops import ensure_importable

ensure_importable()

from segment_anything.utils.amg import (  # noqa: E402 - imports torchvision
    generate_crop_boxes,
    is_box_near_crop_edge,
    remove_small_regions,
)

MASKS = st.tuples(st.integers(1, 14), st.integers(1, 19)).flatmap(
    lambda shape: arrays(np.bool_, shape)
)


@given(
    st.tuples(st.integers(1, 900), st.integers(1, 900)),
    st.integers(0, 3),
    st.floats(0, 0.9),
)
@settings(max_examples=200)
def test_crops_are_the_originals(size, layers, overlap):
    boxes, layer_of = generate_crop_boxes(size, layers, overlap)
    expected = [
        (*box, layer)
        for box, layer in zip(boxes, layer_of, strict=True)
        if box[2] > box[0] and box[3] > box[1]
    ]
    found = [(c.left, c.top, c.right, c.bottom, c.layer) for c in crops_of(size, layers, overlap)]
    assert found == expected


@given(st.lists(st.tuples(*[st.integers(0, 60)] * 4), min_size=1, max_size=20))
@settings(max_examples=200)
def test_boxes_near_a_crops_edge_are_the_originals(boxes):
    crop, size = Crop(30, 10, 90, 70, 1), (100, 120)
    box = np.array(boxes, np.float32)
    expected = is_box_near_crop_edge(
        torch.from_numpy(box), [30, 10, 90, 70], [0, 0, size[1], size[0]]
    )
    assert np.array_equal(cut_by_crop(box + crop.offset, crop, size), expected.numpy())


def test_masks_of_a_crop_lie_where_the_crop_lies():
    crop, size = Crop(3, 2, 14, 7, 1), (9, 21)
    masks = np.random.default_rng(0).random((40, *crop.size)) < 0.5
    whole = np.unpackbits(uncrop(np.packbits(masks, axis=2), crop, size), axis=2, count=size[1])
    assert np.array_equal(whole[:, 2:7, 3:14], masks)
    whole[:, 2:7, 3:14] = 0
    assert not whole.any()


@given(MASKS, st.integers(0, 30))
@settings(max_examples=300)
def test_small_regions_equal_opencvs(mask, min_area):
    pytest.importorskip("cv2")
    for ours, mode in ((fill_holes, "holes"), (drop_islands, "islands")):
        expected, changed = remove_small_regions(mask, min_area, mode)
        found, had = ours(mask, min_area)
        assert had == changed
        assert np.array_equal(found, expected)


def test_tidied_masks_come_behind_those_that_needed_nothing():
    masks = np.zeros((3, 30, 40), np.bool_)
    masks[0, 2:12, 2:12] = True
    masks[0, 5, 5] = False  # a hole
    masks[1, 15:28, 20:38] = True
    masks[2, 2:12, 2:12] = True  # what mask 0 becomes
    bits, rows = tidy_masks(np.packbits(masks, axis=2), 40, 4, 0.7)
    assert rows.tolist() == [1, 2]
    assert np.array_equal(bits, np.packbits(masks[1:], axis=2))
