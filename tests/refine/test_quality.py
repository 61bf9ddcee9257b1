"""The figures of quality.json, by hand."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cells import build_cells
from refine.choice import Refined
from refine.evidence import gather, gather_image
from refine.quality import label_sums, mask_iou, oracles, report, truth_sums


def row(*bits):
    return np.array([bits], np.bool_)


def refined(mask, source="iom", weight=None):
    return Refined(mask_HW=mask, weight_HW=weight, source=source, score=0.5, num_chosen=1)


def evidence(label):
    masks = np.array([row(1, 1, 0, 0), row(1, 1, 1, 0)])
    return gather(gather_image(build_cells(masks)), label.astype(np.float32), label)


def test_iou_by_hand():
    assert mask_iou(row(1, 1, 0), row(0, 1, 1)) == (1, 3, 1 / 3)
    assert mask_iou(row(0, 0), row(0, 0)) == (0, 0, 0.0)


def test_one_helped_one_hurt_one_unchanged():
    truth = row(1, 1, 0, 0)
    raw = row(1, 0, 0, 0)
    sums = {}
    for mask, source in [(row(1, 1, 0, 0), "iom"), (row(0, 0, 0, 1), "iom"), (raw, "pwa")]:
        label = refined(mask, source, np.full((1, 4), 0.5, np.float32) if source == "pwa" else None)
        found = evidence(raw)
        counted = (
            label_sums(found, label, 0.25),
            truth_sums(found.image, label, raw, truth),
        )
        for part in counted:
            for name, value in part.items():
                sums[name] = sums.get(name, 0) + value
    figures = report(sums)
    assert (figures["helped"], figures["hurt"], figures["unchanged"]) == (1, 1, 1)
    assert figures["sources"] == {"iom": 2, "pwa": 1}
    assert figures["match_rate"] == pytest.approx(2 / 3)
    assert figures["raw_mean_iou"] == pytest.approx(0.5)
    assert figures["refined_mean_iou"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert figures["refined_overall_iou"] == pytest.approx((2 + 0 + 1) / (2 + 3 + 2))
    assert figures["mean_weight"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert figures["correction_precision"] == 0.5
    assert figures["best_candidate_mean_iou"] == 1.0
    assert figures["area_ratio"] == pytest.approx((2 + 1 + 1) / 3)


def test_nothing_counted_gives_nothing_known():
    figures = report({})
    assert figures["labels"] == 0
    assert figures["match_rate"] is None
    assert figures["refined_mean_iou"] is None


@given(st.integers(0, 6), st.integers(0, 2**32 - 1))
@settings(max_examples=200)
def test_the_best_candidate_equals_a_plain_loop(count, seed):
    rng = np.random.default_rng(seed)
    masks, truth = rng.random((count, 4, 5)) < 0.4, rng.random((4, 5)) < 0.5
    best = max((mask_iou(mask, truth)[2] for mask in masks), default=0.0)
    single, union = oracles(gather_image(build_cells(masks)), truth)
    assert single == pytest.approx(best)
    unions = [
        mask_iou(np.any(masks[list(rows)], axis=0), truth)[2]
        for size in range(1, count + 1)
        for rows in itertools.combinations(range(count), size)
    ]
    assert single - 1e-9 <= union <= max(unions, default=0.0) + 1e-9
