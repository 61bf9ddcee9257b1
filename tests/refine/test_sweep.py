"""A sweep counts in cells and gates afterwards; it must equal refining and drawing each label."""

import numpy as np
import pytest

from pipeline.cells import build_cells
from refine.choice import count_truth
from refine.evidence import gather, gather_image
from refine.quality import mask_iou, size_of
from refine.strategies import ChainLink, parse_chain, refine
from refine.sweep import (
    DEFAULT_GRID,
    ask_all,
    collect,
    expand,
    figures,
    gain_of_choosing,
    interval,
)

GATES = (None, -0.1, 0.0, 0.05)


def make_cases(seed, count=40):
    rng = np.random.default_rng(seed)
    cases = []
    for number in range(count):
        yy, xx = np.mgrid[:16, :20]
        masks = np.zeros((number % 7, 16, 20), np.bool_)
        for mask in masks:
            y, x, r = rng.uniform(0, 16), rng.uniform(0, 20), rng.uniform(1, 9)
            mask[:] = (yy - y) ** 2 + (xx - x) ** 2 < r * r
        prob = rng.random((16, 20)).astype(np.float32)
        if len(masks):
            prob = np.clip(0.3 * masks[0] + 0.6 * prob, 0, 1).astype(np.float32)
        truth = masks[-1] if len(masks) and number % 2 else rng.random((16, 20)) < 0.3
        cases.append((masks, prob, truth))
    return cases


def test_every_setting_and_gate_equals_the_label_that_would_be_drawn():
    cases = make_cases(0)
    settings = expand(DEFAULT_GRID)
    evidence = [
        gather(gather_image(build_cells(masks)), prob, prob > 0.5) for masks, prob, _ in cases
    ]
    answers = []
    for number, (seen, (_, _, truth)) in enumerate(zip(evidence, cases, strict=True)):
        counted = count_truth(seen, truth)
        answers.append(ask_all(settings, seen, counted, size_of(truth), number // 3, number % 4))
    records = collect(answers)
    assert records.whole == pytest.approx([truth.mean() for _, _, truth in cases])
    for row in range(0, len(settings), 5):
        setting = settings[row]
        for gate in GATES:
            first = ChainLink(strategy=setting.strategy, params=setting.params, min_gain=gate)
            chain = (
                parse_chain([first, ChainLink(strategy="none")], "chain")
                if (setting.strategy != "none")
                else parse_chain([ChainLink(strategy="none")], "chain")
            )
            drawn = [refine(seen, chain) for seen in evidence]
            truths = [truth for _, _, truth in cases]
            ious = [mask_iou(d.mask_HW, t)[2] for d, t in zip(drawn, truths, strict=True)]
            raw = [mask_iou(p > 0.5, t)[2] for _, p, t in cases]
            found = figures(records, row, gate)
            assert found["mean_iou"] == pytest.approx(np.mean(ious))
            assert found["match_rate"] == np.mean([d.source != "none" for d in drawn])
            assert found["helped"] == sum(a > b for a, b in zip(ious, raw, strict=True))
            assert found["hurt"] == sum(a < b for a, b in zip(ious, raw, strict=True))
            total = [mask_iou(d.mask_HW, t)[:2] for d, t in zip(drawn, truths, strict=True)]
            inside, union = np.sum(total, axis=0)
            assert found["overall_iou"] == pytest.approx(inside / union)


def test_the_interval_holds_the_mean_and_narrows_with_more_images():
    rng = np.random.default_rng(0)
    widths = {}
    for count in (12, 240):
        value = rng.normal(0.1, 0.3, 3 * count)
        low, high = interval(value, np.repeat(np.arange(count), 3))
        assert low < value.mean() < high
        widths[count] = high - low
    assert widths[240] < widths[12] / 2


def test_labels_of_one_image_stand_or_fall_together():
    value = np.repeat(np.random.default_rng(0).normal(0, 1, 10), 50)
    low, high = interval(value, np.repeat(np.arange(10), 50))
    alone = interval(value, np.arange(500))
    assert high - low > 3 * (alone[1] - alone[0])


def test_choosing_among_noise_gains_nothing():
    """The best of many settings that do nothing looks good, until asked on other labels."""
    rng = np.random.default_rng(1)
    best, honest = [], []
    for _ in range(20):
        gains = rng.normal(0, 0.3, (1000, 120))
        best.append(gains.mean(axis=1).max())
        honest.append(gain_of_choosing(gains, gains, np.arange(120) % 4).mean())
    assert np.mean(best) > 0.06
    assert abs(np.mean(honest)) < 0.02


def test_choosing_what_is_better_gains_what_it_is_worth():
    rng = np.random.default_rng(2)
    gains = rng.normal(0, 0.1, (50, 400))
    gains[7] += 0.2
    assert gain_of_choosing(gains, gains, np.arange(400) % 4).mean() == pytest.approx(
        gains[7].mean()
    )


def test_a_grid_that_cannot_work_is_refused():
    with pytest.raises(ValueError, match="unknown strategy 'cip'; known are none, iom"):
        expand({"cip": {}})
    with pytest.raises(ValueError, match=r"grid \(iom\): unknown key 'iou'"):
        expand({"iom": {"iou": (0.5,)}})
    with pytest.raises(ValueError, match="expected values for min_iou, found none"):
        expand({"iom": {"min_iou": ()}})
