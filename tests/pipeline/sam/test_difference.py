"""How far two sets of masks differ, by hand."""

import numpy as np
import pytest

from pipeline.sam.difference import compare_masks
from pipeline.sam.masks import masks_from_bits


def masks_of(*rectangles, size=(8, 10)):
    """Masks of half-open rectangles (top, left, bottom, right)."""
    masks = np.zeros((len(rectangles), *size), np.bool_)
    for mask, (top, left, bottom, right) in zip(masks, rectangles, strict=True):
        mask[top:bottom, left:right] = True
    ones = np.ones(len(masks), np.float32)
    point = np.zeros((len(masks), 2), np.float32)
    return masks_from_bits(np.packbits(masks, axis=2), size[1], ones, ones, point)


A, B, C = (0, 0, 4, 4), (2, 2, 8, 9), (0, 5, 2, 7)


def test_equal_masks_do_not_differ():
    difference = compare_masks(masks_of(A, B), masks_of(A, B))
    assert (difference.identical, difference.in_order, difference.matched_iou) == (2, True, 1.0)


def test_another_order_is_told_but_costs_no_overlap():
    difference = compare_masks(masks_of(A, B), masks_of(B, A))
    assert (difference.identical, difference.in_order, difference.matched_iou) == (0, False, 1.0)


def test_a_mask_without_partner_counts_as_0():
    for one, other in ((masks_of(A, B, C), masks_of(A, C)), (masks_of(A, C), masks_of(A, B, C))):
        difference = compare_masks(one, other)
        assert not difference.in_order
        assert difference.matched_iou == pytest.approx(2 / 3)


def test_overlap_by_hand():
    half = compare_masks(masks_of(A), masks_of((0, 0, 4, 2)))
    assert half.matched_iou == pytest.approx(0.5)
    assert half.identical == 0


def test_none_and_empty():
    assert compare_masks(masks_of(), masks_of()).matched_iou == 1.0
    assert compare_masks(masks_of(A), masks_of()).matched_iou == 0.0
    nothing = masks_of((0, 0, 0, 0))
    assert compare_masks(nothing, nothing).matched_iou == 1.0


def test_two_sizes_are_refused():
    with pytest.raises(ValueError, match="found two sizes"):
        compare_masks(masks_of(A), masks_of(A, size=(9, 10)))
