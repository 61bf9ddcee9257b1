"""Columns of an evaluation, the figures made of them, intervals over images, the picture."""

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import StoreError
from train.bootstrap import Ratios, by_image, intervals, paired_differences
from train.metrics import THRESHOLDS
from train.outcomes import (
    METRICS,
    Outcomes,
    compare,
    figures,
    join,
    load_outcomes,
    ratios,
    save_outcomes,
)
from train.sheets import pick


def draw_outcomes(seed=0, count=200, images=40, offset=0.0):
    rng = np.random.default_rng(seed)
    image = np.sort(rng.integers(0, images, count))
    area = rng.integers(1, 20_000, count)
    hard = np.random.default_rng(99).random(images)[image]  # the same image is hard for all runs
    union = area + rng.integers(0, 500, count)
    share = np.clip(hard + offset + rng.normal(0, 0.05, count), 0, 1)
    intersection = (area * share).astype(np.int64)
    return Outcomes(
        expression=np.arange(count) * 2,
        image=image,
        true_area=area,
        image_area=np.full(count, 100_000),
        intersection={"square": intersection // 2, "image": intersection},
        union={"square": union, "image": union},
    )


def test_figures_equal_plain_python():
    """Every figure written out with loops and dictionaries, by size too."""
    outcomes = draw_outcomes()
    found = figures(outcomes, "image", sizes="coco", resamples=0, seed=0)
    rows = list(
        zip(
            outcomes.intersection["image"].tolist(),
            outcomes.union["image"].tolist(),
            outcomes.true_area.tolist(),
            strict=True,
        )
    )
    assert found["overall_iou"] == sum(i for i, _, _ in rows) / sum(u for _, u, _ in rows)
    ious = [i / u for i, u, _ in rows]
    assert found["mean_iou"] == pytest.approx(sum(ious) / len(ious), rel=1e-14)
    for limit in THRESHOLDS:
        reached = sum(iou >= limit for iou in ious) / len(ious)
        assert found["precision_at"][f"{limit:g}"] == reached
    limits = {"small": (0, 1024), "medium": (1024, 9216), "large": (9216, 10**9)}
    for name, (low, high) in limits.items():
        part = [(i, u) for i, u, area in rows if low <= area < high]
        assert found["by_size"][name]["sentences"] == len(part) > 5
        mean = sum(i / u for i, u in part) / len(part)
        assert found["by_size"][name]["mean_iou"] == pytest.approx(mean, rel=1e-14)
        overall = sum(i for i, _ in part) / sum(u for _, u in part)
        assert found["by_size"][name]["overall_iou"] == overall
    assert found["interval"] is None


def test_shares_of_the_image_are_another_rule():
    outcomes = draw_outcomes()
    found = figures(outcomes, "image", sizes="share", resamples=0, seed=0)["by_size"]
    share = outcomes.true_area / outcomes.image_area
    assert found["small"]["sentences"] == (share < 0.02).sum()
    assert found["medium"]["sentences"] == ((share >= 0.02) & (share < 0.1)).sum()
    assert found["large"]["sentences"] == (share >= 0.1).sum() > 0


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), ranks=st.integers(1, 7), cut=st.integers(0, 50))
def test_the_parts_of_any_ranks_join_to_the_whole(seed, ranks, cut):
    whole = draw_outcomes(seed % 5, count=50)
    parts = [whole.select(np.arange(rank, 50, ranks)) for rank in range(ranks)]
    parts = [p for part in parts for p in (part.select(np.arange(len(part)) < cut),
                                           part.select(np.arange(len(part)) >= cut))]  # fmt: skip
    np.random.default_rng(seed).shuffle(parts)
    joined = join(parts)
    arguments = {"sizes": "coco", "resamples": 20, "seed": 0}
    assert np.array_equal(joined.expression, whole.expression)
    for name in ("square", "image"):
        assert figures(joined, name, **arguments) == figures(whole, name, **arguments)


def test_a_sentence_twice_and_other_protocols_are_refused():
    whole = draw_outcomes()
    with pytest.raises(ValueError, match="each once"):
        join([whole, whole.select(np.arange(3))])
    other = replace(whole, intersection={}, union={})
    with pytest.raises(ValueError, match="protocols"):
        join([whole, other])
    with pytest.raises(ValueError, match="found none"):
        join([])


def test_columns_round_trip_in_the_same_bytes(tmp_path):
    outcomes = draw_outcomes()
    save_outcomes(tmp_path / "a.npz", outcomes)
    save_outcomes(tmp_path / "b.npz", load_outcomes(tmp_path / "a.npz"))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    read = load_outcomes(tmp_path / "b.npz")
    assert read.protocols == ("square", "image")
    assert np.array_equal(read.union["image"], outcomes.union["image"])
    assert (tmp_path / "a.npz").stat().st_size < 32 * len(outcomes)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not a zip", None])
def test_damaged_columns_name_the_file(tmp_path, damage):
    path = tmp_path / "metrics-val.npz"
    if damage is not None:
        path.write_bytes(damage)
    with pytest.raises(StoreError, match=r"metrics-val\.npz: missing or damaged"):
        load_outcomes(path)


def test_an_interval_by_hand():
    """Two images, IoU 0 and 1: a resample's mean is 0, 1/2 or 1 with chance 1/4, 1/2, 1/4."""
    found = by_image(np.array([4, 7]), np.array([[0.0], [1.0]]), np.ones((2, 1)))
    assert intervals(found, resamples=400, seed=0) == [(0.0, 1.0)]
    same = by_image(np.array([4, 4]), np.array([[0.0], [1.0]]), np.ones((2, 1)))
    assert intervals(same, resamples=400, seed=0) is None  # one image says nothing about others


def test_intervals_draw_images_and_not_sentences():
    """Sentences of an image stand or fall together, which widens the interval."""
    image = np.repeat(np.arange(50), 20)
    value = np.random.default_rng(0).random(50)[image][:, None]
    together = intervals(by_image(image, value, np.ones_like(value)), resamples=500, seed=0)[0]
    apart = by_image(np.arange(1000), value, np.ones_like(value))
    alone = intervals(apart, resamples=500, seed=0)[0]
    assert together[1] - together[0] > 3 * (alone[1] - alone[0])


def test_an_interval_has_the_width_that_theory_gives():
    value = np.random.default_rng(1).normal(0.5, 0.1, (4000, 1))
    ratio = by_image(np.arange(4000), value, np.ones_like(value))
    ((low, high),) = intervals(ratio, resamples=2000, seed=3)
    expected = 2 * 1.96 * value.std() / np.sqrt(4000)
    assert high - low == pytest.approx(expected, rel=0.06)
    assert (low + high) / 2 == pytest.approx(value.mean(), abs=expected / 20)


def test_intervals_equal_a_loop_over_drawn_images():
    """The draws taken apart: sums of the drawn images, one resample at a time."""
    found = ratios(draw_outcomes(), "image")
    count = len(found.numerator_IM)
    drawn = np.random.default_rng([5, count]).integers(0, count, (300, count))
    loop = [
        [
            sum(found.numerator_IM[i, m] for i in images)
            / sum(found.denominator_IM[i, m] for i in images)
            for m in range(2)
        ]
        for images in drawn[:300]
    ]
    expected = np.quantile(loop, [0.025, 0.975], axis=0)
    assert np.allclose(np.array(intervals(found, resamples=300, seed=5))[:2].T, expected, atol=2e-6)


def test_ten_thousand_expressions_take_less_than_two_seconds():
    outcomes = draw_outcomes(count=10_000, images=1500)
    started = time.process_time()
    found = figures(outcomes, "image", sizes="coco", resamples=1000, seed=0)
    assert time.process_time() - started < 2
    assert list(found["interval"]) == list(METRICS)
    low, high = found["interval"]["mIoU"]
    assert low < found["mean_iou"] < high


def test_a_pair_tells_what_two_intervals_cannot():
    """Runs that differ by little on images that differ by much: their own intervals overlap."""
    this, other = draw_outcomes(1, offset=0.03), draw_outcomes(1)
    ends = [figures(o, "image", sizes="coco", resamples=500, seed=0)["interval"]["mIoU"]
            for o in (this, other)]  # fmt: skip
    assert ends[0][0] < ends[1][1]
    found = compare(this, other, "image", resamples=500, seed=0)
    assert list(found) == list(METRICS)
    assert 0 < found["mIoU"].low < found["mIoU"].gain < found["mIoU"].high < 0.06
    assert found["mIoU"].outside_chance
    back = compare(other, this, "image", resamples=500, seed=0)
    assert back["mIoU"].gain == -found["mIoU"].gain
    assert back["mIoU"].outside_chance
    own = compare(this, this, "image", resamples=500, seed=0)["mIoU"]
    assert (own.gain, own.low, own.high, own.outside_chance) == (0, 0, 0, False)


def test_a_comparison_uses_the_sentences_that_both_have():
    this, other = draw_outcomes(1, offset=0.1), draw_outcomes(1)
    half = compare(this.select(np.arange(100)), other, "image", resamples=50, seed=0)
    direct = compare(
        this.select(np.arange(100)), other.select(np.arange(100)), "image", resamples=50, seed=0
    )
    assert half == direct


def test_other_shapes_do_not_pair():
    one = Ratios(np.zeros((3, 1)), np.ones((3, 1)))
    with pytest.raises(ValueError, match="paired"):
        paired_differences(one, Ratios(np.zeros((4, 1)), np.ones((4, 1))), resamples=9, seed=0)
    with pytest.raises(ValueError, match="ratios"):
        Ratios(np.zeros((3, 1)), np.ones((3, 2)))


@given(count=st.integers(1, 30), rows=st.integers(1, 5), images=st.integers(1, 30))
def test_best_median_and_worst_show_no_image_twice(count, rows, images):
    rng = np.random.default_rng(count)
    iou, image = rng.random(count), rng.integers(0, images, count)
    found = pick(iou, image, rows)
    shown = [image[position] for positions in found.values() for position in positions]
    assert len(set(shown)) == len(shown) <= 3 * rows
    assert found["best"][0] == iou.argmax()
    assert list(iou[found["best"]]) == sorted(iou[found["best"]], reverse=True)


def test_best_median_and_worst_by_hand():
    iou, image = np.array([0.1, 0.9, 0.5, 0.8, 0.2, 0.6, 0.0]), np.array([0, 1, 2, 1, 4, 5, 0])
    assert pick(iou, image, 1) == {"best": [1], "median": [2], "worst": [6]}
    assert pick(iou, np.arange(7), 2) == {"best": [1, 3], "median": [2, 5], "worst": [6, 0]}
