"""Cells hold any set of masks without loss, and their sums equal those over pixels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline import cells as core

MASKS = st.tuples(st.integers(0, 12), st.integers(1, 9), st.integers(1, 11)).flatmap(
    lambda shape: arrays(np.bool_, shape)
)


@st.composite
def nested_masks(draw):
    """Rectangles that overlap, nest, repeat, vanish and fill the frame."""
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 20))
    masks = []
    for _ in range(draw(st.integers(0, 15))):
        top, left = draw(st.integers(0, height)), draw(st.integers(0, width))
        bottom, right = draw(st.integers(top, height)), draw(st.integers(left, width))
        mask = np.zeros((height, width), np.bool_)
        mask[top:bottom, left:right] = True
        masks += [mask] * draw(st.integers(1, 2))
    return np.array(masks, np.bool_).reshape(-1, height, width)


@given(st.one_of(MASKS, nested_masks()))
@settings(max_examples=300)
def test_masks_come_back_exactly(masks):
    cells = core.build_cells(masks)
    assert np.array_equal(core.masks_of(cells), masks)
    assert not cells.membership[:, 0].any()
    assert np.array_equal(cells.cells == 0, ~masks.any(axis=0))


@given(st.one_of(MASKS, nested_masks()))
@settings(max_examples=200)
def test_two_pixels_share_a_cell_exactly_when_the_same_masks_cover_both(masks):
    cells = core.build_cells(masks)
    columns = masks.reshape(len(masks), cells.cells.size).T
    numbers = cells.cells.ravel()
    for first in range(0, len(columns), 3):
        same = (columns == columns[first]).all(axis=1)
        assert np.array_equal(numbers == numbers[first], same)


@given(nested_masks(), st.randoms(use_true_random=False))
@settings(max_examples=200)
def test_sums_over_cells_equal_sums_over_pixels(masks, random):
    cells = core.build_cells(masks)
    label = np.array([random.random() < 0.5 for _ in range(masks[0].size if len(masks) else 1)])
    label = np.resize(label, cells.size)
    counts = core.pixels_per_cell(cells, label)
    assert np.array_equal(cells.membership @ counts, (masks & label).sum(axis=(1, 2)))
    assert np.array_equal(
        cells.membership @ core.cell_sizes(cells), masks.sum(axis=(1, 2), dtype=np.int64)
    )
    assert core.cell_sizes(cells).sum() == label.size


@given(st.one_of(MASKS, nested_masks()))
@settings(max_examples=200)
def test_membership_survives_packing(masks):
    cells = core.build_cells(masks)
    packed = core.pack_membership(cells)
    unpacked = core.unpack_membership(packed, cells.num_candidates, cells.num_cells)
    assert np.array_equal(unpacked, cells.membership)


def test_cells_by_hand():
    """Two overlapping strips cut four cells: none, left only, both, right only."""
    masks = np.array([[[1, 1, 1, 0, 0]], [[0, 0, 1, 1, 0]]], np.bool_)
    cells = core.build_cells(masks)
    assert cells.cells.tolist() == [[1, 1, 2, 3, 0]]
    assert cells.membership.tolist() == [[False, True, True, False], [False, False, True, True]]


def test_many_candidates_at_photo_size():
    rng = np.random.default_rng(0)
    yy, xx = np.mgrid[:240, :320]
    masks = np.array(
        [
            (yy - rng.uniform(0, 240)) ** 2 + (xx - rng.uniform(0, 320)) ** 2
            < rng.uniform(4, 90) ** 2
            for _ in range(1024)
        ]
    )
    cells, kept = core.build_cells_capped(
        np.packbits(masks, axis=2), masks.shape[2], rng.random(1024).astype(np.float32)
    )
    assert np.array_equal(core.masks_of(cells), masks[kept])


def test_too_many_cells_drop_the_lowest_scored_masks(monkeypatch):
    monkeypatch.setattr(core, "MAX_CELLS", 3)
    masks = np.zeros((5, 1, 5), np.bool_)
    masks[range(5), 0, range(5)] = True
    score = np.array([0.1, 0.9, 0.3, 0.8, 0.7], np.float32)
    with pytest.raises(ValueError, match="5 cells, at most 3"):
        core.build_cells(masks)
    cells, kept = core.build_cells_capped(np.packbits(masks, axis=2), masks.shape[2], score)
    assert kept.tolist() == [1, 3, 4]
    assert np.array_equal(core.masks_of(cells), masks[kept])


def test_as_many_cells_as_16_bits_number():
    """16 masks, the bits of the pixel's number, cut 65 536 pixels into as many cells."""
    number = np.arange(1 << 16).reshape(256, 256)
    masks = np.array([(number >> bit) & 1 for bit in range(16)], np.bool_)
    cells = core.build_cells(masks)
    assert cells.num_cells == core.MAX_CELLS + 1
    assert np.array_equal(core.masks_of(cells), masks)


def test_one_mask_too_many_is_dropped():
    number = np.arange(1 << 17).reshape(256, 512)
    masks = np.array([(number >> bit) & 1 for bit in range(17)], np.bool_)
    score = np.linspace(0.5, 0.9, 17, dtype=np.float32)
    cells, kept = core.build_cells_capped(np.packbits(masks, axis=2), 512, score)
    assert kept.tolist() == list(range(1, 17))
    assert np.array_equal(core.masks_of(cells), masks[1:])


@given(st.one_of(MASKS, nested_masks()))
@settings(max_examples=50)
def test_equal_hashes_of_unequal_columns_lose_nothing(masks):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core, "_ODD", np.uint64(0))  # every column has the hash 0
        cells = core.build_cells(masks)
    expected = core.build_cells(masks)
    assert np.array_equal(cells.cells, expected.cells)
    assert np.array_equal(cells.membership, expected.membership)


def test_a_label_of_another_size_is_refused():
    cells = core.build_cells(np.ones((1, 3, 4), np.bool_))
    with pytest.raises(ValueError, match=r"size \(3, 4\), the label is \(4, 3\)"):
        core.pixels_per_cell(cells, np.ones((4, 3), np.bool_))


@given(st.one_of(MASKS, nested_masks()))
@settings(max_examples=200)
def test_overlaps_equal_those_of_pixels(masks):
    flat = masks.reshape(len(masks), -1 if masks.size else 0).astype(np.int64)
    assert np.array_equal(core.overlaps(np.packbits(masks, axis=2)), flat @ flat.T)


def test_overlaps_of_more_cells_than_can_be_stored():
    number = np.arange(1 << 17).reshape(256, 512)
    masks = np.array([(number >> bit) & 1 for bit in range(17)], np.bool_)
    shared = core.overlaps(np.packbits(masks, axis=2))
    assert np.array_equal(np.diag(shared), np.full(17, 1 << 16))
    assert shared[0, 1] == shared[3, 9] == 1 << 15
