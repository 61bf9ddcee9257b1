from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from pipeline.errors import ConfigError
from train.metrics import THRESHOLDS, TICKS, IoUSums, add_up, count_pixels, iou_of, iou_sums, sum_up


def draw_masks(seed, count=7):
    rng = np.random.default_rng(seed)
    return rng.random((count, 5, 6)) < 0.6, rng.random((count, 5, 6)) < rng.random((count, 1, 1))


def test_sums_by_hand():
    predicted = np.array([[[1, 1, 0, 0]], [[1, 1, 1, 1]], [[0, 0, 0, 0]]], bool)
    truth = np.array([[[1, 0, 0, 0]], [[1, 1, 1, 1]], [[1, 1, 0, 0]]], bool)
    sums = iou_sums(predicted, truth)
    assert sums == IoUSums(
        intersection=5, union=8, iou_ticks=3 * TICKS // 2, reached=(2, 1, 1, 1, 1), count=3
    )
    assert (sums.overall_iou, sums.mean_iou) == (5 / 8, 0.5)
    assert sums.precision_at(0.5) == 2 / 3  # reached exactly counts, as in LAVT


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000))
def test_sums_equal_brute_force(seed):
    predicted, truth = draw_masks(seed)
    sums = iou_sums(predicted, truth)
    ious, total_i, total_u = [], 0, 0
    for p, t in zip(predicted, truth, strict=True):
        pixels_p = {tuple(x) for x in np.argwhere(p)}
        pixels_t = {tuple(x) for x in np.argwhere(t)}
        i, u = len(pixels_p & pixels_t), len(pixels_p | pixels_t)
        total_i, total_u = total_i + i, total_u + u
        ious.append(i / u if u else 0)
    assert sums.overall_iou == pytest.approx(total_i / total_u)
    assert sums.mean_iou == pytest.approx(np.mean(ious))
    for threshold in THRESHOLDS:
        assert sums.precision_at(threshold) == np.mean([i >= threshold for i in ious])


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000))
def test_iou_equals_pycocotools(seed):
    predicted, truth = draw_masks(seed)

    def coded(masks):
        return [coco_mask.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]

    theirs = [
        coco_mask.iou([p], [t], [0])[0][0] if (pixels_p | pixels_t).any() else 0
        for p, t, pixels_p, pixels_t in zip(
            coded(predicted), coded(truth), predicted, truth, strict=True
        )
    ]
    assert iou_of(*count_pixels(predicted, truth)) == pytest.approx(theirs, abs=1e-12)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(0, 60),
    batch=st.integers(1, 9),
    ranks=st.integers(1, 5),
)
def test_any_partition_gives_the_same_bits(seed, count, batch, ranks):
    """Ragged batches of any number of ranks, in any order, up to the largest pixel counts."""
    rng = np.random.default_rng(seed)
    union = rng.integers(0, 2 ** rng.integers(1, 47, count), dtype=np.int64)
    intersection = np.asarray(union * rng.random(count), np.int64)
    whole = sum_up(intersection, union)
    parts = []
    for rank in range(ranks):
        mine = np.arange(rank, count, ranks)
        for start in range(0, len(mine), batch):
            rows = mine[start : start + batch]
            parts.append(sum_up(intersection[rows], union[rows]))
    rng.shuffle(parts)
    joined = add_up(parts)
    assert joined == whole
    assert joined.mean_iou == whole.mean_iou
    assert whole.mean_iou == pytest.approx(iou_of(intersection, union).mean() if count else 0)


def test_the_sum_is_exact_where_floats_lose_bits():
    """Adding floats gives other bits in another order; this does not."""
    rng = np.random.default_rng(0)
    union = rng.integers(1, 10_000, 999)
    intersection = np.asarray(union * rng.random(999), np.int64)
    ious = iou_of(intersection, union).tolist()
    assert sum(ious) != sum(reversed(ious))
    one_by_one = [sum_up(intersection[i : i + 1], union[i : i + 1]) for i in range(999)]
    assert add_up(one_by_one) == add_up(reversed(one_by_one)) == sum_up(intersection, union)
    assert add_up(one_by_one).mean_iou == float(sum(map(Fraction, ious)) / 999)


def test_empty_union_counts_as_zero_and_no_sentence_gives_zero():
    nothing = np.zeros((2, 3, 3), bool)
    assert iou_sums(nothing, nothing).mean_iou == 0
    assert iou_sums(nothing, nothing).count == 2
    assert iou_sums(nothing[:0], nothing[:0]) == IoUSums() == add_up([])
    assert (IoUSums().overall_iou, IoUSums().mean_iou, IoUSums().precision_at(0.5)) == (0, 0, 0)


def test_other_shapes_and_thresholds_are_refused():
    with pytest.raises(ConfigError, match="shape"):
        iou_sums(np.zeros((1, 2, 2), bool), np.zeros((1, 2, 3), bool))
    with pytest.raises(ConfigError, match=r"0\.55"):
        IoUSums().precision_at(0.55)
