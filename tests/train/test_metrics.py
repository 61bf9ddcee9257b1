import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from train.metrics import THRESHOLDS, IoUSums, iou_sums


def draw_masks(seed, count=7):
    rng = np.random.default_rng(seed)
    return rng.random((count, 5, 6)) < 0.6, rng.random((count, 5, 6)) < rng.random((count, 1, 1))


def test_sums_by_hand():
    predicted = np.array([[[1, 1, 0, 0]], [[1, 1, 1, 1]], [[0, 0, 0, 0]]], bool)
    truth = np.array([[[1, 0, 0, 0]], [[1, 1, 1, 1]], [[1, 1, 0, 0]]], bool)
    sums = iou_sums(predicted, truth)
    assert sums == IoUSums(intersection=5, union=8, iou=1.5, reached=(2, 1, 1, 1, 1), count=3)
    assert (sums.overall_iou, sums.mean_iou) == (5 / 8, 0.5)
    assert sums.precision_at(0.5) == 2 / 3  # reached exactly counts, as in LAVT


@settings(max_examples=30, deadline=None)
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


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), cut=st.integers(0, 7))
def test_parts_add_up_to_the_whole(seed, cut):
    predicted, truth = draw_masks(seed)
    parts = [iou_sums(predicted[:cut], truth[:cut]), iou_sums(predicted[cut:], truth[cut:])]
    joined, whole = sum(parts, IoUSums()), iou_sums(predicted, truth)
    assert joined.iou == pytest.approx(whole.iou)
    assert (joined.intersection, joined.union, joined.reached, joined.count) == (
        whole.intersection,
        whole.union,
        whole.reached,
        whole.count,
    )


def test_empty_union_counts_as_zero_and_no_sentence_gives_zero():
    nothing = np.zeros((2, 3, 3), bool)
    assert iou_sums(nothing, nothing).mean_iou == 0
    assert iou_sums(nothing, nothing).count == 2
    assert iou_sums(nothing[:0], nothing[:0]) == IoUSums()
    assert (IoUSums().overall_iou, IoUSums().mean_iou, IoUSums().precision_at(0.5)) == (0, 0, 0)


def test_other_shapes_and_thresholds_are_refused():
    with pytest.raises(ConfigError, match="shape"):
        iou_sums(np.zeros((1, 2, 2), bool), np.zeros((1, 2, 3), bool))
    with pytest.raises(ConfigError, match=r"0\.55"):
        IoUSums().precision_at(0.55)
