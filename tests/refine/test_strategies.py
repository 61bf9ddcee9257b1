"""Every strategy equals the paper's equation, stated per pixel, on random and awkward cases."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cells import build_cells
from pipeline.config import parse_config
from pipeline.errors import ConfigError
from refine.choice import Refined, count_truth, draw, expected_iou_of, overlap_with
from refine.evidence import expected_iou, gather, gather_image
from refine.keeping import DropConfig, PwaConfig
from refine.matching import CpiConfig, CpiOConfig, CpiUConfig, IomConfig, SeplConfig, SoftIouConfig
from refine.strategies import STRATEGIES, ChainLink, parse_chain, refine
from refine.voting import BestUnionConfig, VoteConfig
from refine.weighting import WEIGHTINGS, PsiConfig, psi_of

SHARES = st.sampled_from([0.0, 0.25, 0.5, 0.7, 0.75, 1.0])


@st.composite
def cases(draw):
    """Few pixels, so that equal, nested, empty and full masks and exact ties come up often."""
    height, width = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    bits = st.lists(st.booleans(), min_size=height * width, max_size=height * width)
    masks = [draw(bits) for _ in range(draw(st.integers(0, 5)))]
    masks += [masks[0]] if masks and draw(st.booleans()) else []
    levels = st.sampled_from([0.0, 0.2, 0.5, 0.5000001, 0.9, 1.0])
    prob = draw(st.lists(levels, min_size=height * width, max_size=height * width))
    shape = (height, width)
    masks_NHW = np.array(masks, np.bool_).reshape(-1, *shape)
    return masks_NHW, np.array(prob, np.float32).reshape(shape)


def look(masks_NHW, prob_HW):
    return gather(gather_image(build_cells(masks_NHW)), prob_HW, prob_HW > 0.5)


def ask(name, evidence, config):
    """Ask one strategy and draw its answer."""
    choice = STRATEGIES[name].function(evidence, config)
    if choice is None:
        return None
    return Refined(
        mask_HW=draw(evidence, choice),
        weight_HW=None,
        source=choice.source,
        score=choice.score,
        num_chosen=choice.num_chosen,
    )


def links(*specs):
    return [ChainLink(strategy=name, params=params, min_gain=gain) for name, params, gain in specs]


def plain_iom(masks_NHW, label_HW, limit):
    best, best_iou = None, -1.0
    for mask in masks_NHW:
        union = int((label_HW | mask).sum())
        iou = int((label_HW & mask).sum()) / union if union else 0.0
        if iou > best_iou:
            best, best_iou = mask, iou
    return best if best_iou > limit else None


def plain_cpi(masks_NHW, label_HW, inter1, inter2):
    merged = None
    for mask in masks_NHW:
        both = int((label_HW & mask).sum())
        first = inter1 is not None and both / (int(label_HW.sum()) + 1e-9) > inter1
        second = inter2 is not None and mask.any() and both / int(mask.sum()) > inter2
        if first or second:
            merged = mask.copy() if merged is None else merged | mask
    return merged


def same(refined, expected):
    if expected is None:
        assert refined is None
    else:
        assert refined is not None
        assert np.array_equal(refined.mask_HW, expected)
        assert refined.weight_HW is None


@given(cases(), SHARES)
@settings(max_examples=1000)
def test_iom_is_equation_6(case, limit):
    masks, prob = case
    found = ask("iom", look(masks, prob), IomConfig(min_iou=limit))
    same(found, plain_iom(masks, prob > 0.5, limit))


@given(cases(), SHARES, SHARES)
@settings(max_examples=1000)
def test_cpi_is_equations_7_or_8(case, inter1, inter2):
    masks, prob = case
    config = CpiConfig(min_label_coverage=inter1, min_mask_coverage=inter2)
    found = ask("cpi", look(masks, prob), config)
    same(found, plain_cpi(masks, prob > 0.5, inter1, inter2))


@given(cases(), SHARES)
@settings(max_examples=500)
def test_cpi_u_is_equation_7_alone(case, inter1):
    masks, prob = case
    found = ask("cpi-u", look(masks, prob), CpiUConfig(min_label_coverage=inter1))
    same(found, plain_cpi(masks, prob > 0.5, inter1, None))


@given(cases(), SHARES)
@settings(max_examples=500)
def test_cpi_o_is_equation_8_alone(case, inter2):
    masks, prob = case
    found = ask("cpi-o", look(masks, prob), CpiOConfig(min_mask_coverage=inter2))
    same(found, plain_cpi(masks, prob > 0.5, None, inter2))


@given(cases(), SHARES, SHARES)
@settings(max_examples=500)
def test_sepl_keeps_what_no_candidate_covers(case, inter1, inter2):
    masks, prob = case
    config = SeplConfig(min_label_coverage=inter1, min_mask_coverage=inter2)
    expected = plain_cpi(masks, prob > 0.5, inter1, inter2)
    if expected is not None:
        expected = expected | ((prob > 0.5) & ~masks.any(axis=0))
    same(ask("sepl", look(masks, prob), config), expected)


@given(cases(), SHARES, SHARES, st.sampled_from([0.5, 1.0, 2.0]))
@settings(max_examples=500)
def test_cpi_with_both_tests_and_a_cap(case, inter1, inter2, cap):
    masks, prob = case
    label = prob > 0.5
    both = [
        mask
        for mask in masks
        if plain_cpi(mask[None], label, inter1, None) is not None
        and plain_cpi(mask[None], label, None, inter2) is not None
        and mask.sum() <= cap * label.sum()
    ]
    config = CpiConfig(
        min_label_coverage=inter1, min_mask_coverage=inter2, combine="and", max_area_ratio=cap
    )
    expected = np.any(both, axis=0) if both else None
    same(ask("cpi", look(masks, prob), config), expected)


def plain_expected_iou(mask, prob):
    inside = prob[mask].sum(dtype=np.float64)
    union = mask.sum() + prob[~mask].sum(dtype=np.float64)
    return inside / union if union else 0.0


@given(cases(), SHARES)
@settings(max_examples=500)
def test_soft_iou_takes_the_best_expected_iou(case, limit):
    masks, prob = case
    scores = [plain_expected_iou(mask, prob) for mask in masks]
    found = ask("soft-iou", look(masks, prob), SoftIouConfig(min_iou=limit))
    best = max(scores, default=0.0)
    if abs(best - limit) < 1e-9:  # sums in another order may fall on either side
        return
    assert (found is not None) == (best > limit)
    if found is not None:
        assert plain_expected_iou(found.mask_HW, prob) == pytest.approx(best)
        assert any(np.array_equal(found.mask_HW, mask) for mask in masks)


@given(cases())
@settings(max_examples=500)
def test_voting_decides_cell_by_cell(case):
    masks, prob = case
    found = ask("vote", look(masks, prob), VoteConfig())
    cells = build_cells(masks).cells
    if found is None:
        voted = [cells == number for number in np.unique(cells) if number]
        means = [prob[inside].mean(dtype=np.float64) for inside in voted]
        assert not len(masks) or not ((prob > 0.5) & (cells == 0)).any()
        assert all(mean <= 0.5 + 1e-6 for mean in means)
        return
    for number in np.unique(cells):
        inside = cells == number
        mean = prob[inside].mean(dtype=np.float64)
        if number == 0:
            assert np.array_equal(found.mask_HW[inside], prob[inside] > 0.5)
        elif abs(mean - 0.5) > 1e-6:
            assert (found.mask_HW[inside] == (mean > 0.5)).all()


@given(cases(), st.integers(1, 3))
@settings(max_examples=500)
def test_best_union_grows_only_by_what_helps(case, parts):
    masks, prob = case
    config = BestUnionConfig(min_expected_iou=0.0, max_parts=parts, min_step=0.0)
    found = ask("best-union", look(masks, prob), config)
    best = max((plain_expected_iou(mask, prob) for mask in masks), default=0.0)
    if found is None:
        assert best == pytest.approx(0.0)
        return
    assert found.num_chosen <= parts
    assert found.score == pytest.approx(plain_expected_iou(found.mask_HW, prob))
    assert found.score >= best - 1e-6  # p is summed in float32 along rows


def test_a_gate_passes_over_answers_that_lose_expected_iou():
    mask = np.zeros((1, 4, 4), np.bool_)
    mask[0, :3] = True
    prob = np.where(np.arange(4)[:, None] < 2, 0.9, 0.05).repeat(4, axis=1).astype(np.float32)
    for gain, source in [(-0.01, "pwa"), (-0.5, "iom")]:
        chain = parse_chain(links(("iom", {}, gain), ("pwa", {}, None)), "chain")
        assert refine(look(mask, prob), chain).source == source


@given(cases())
@settings(max_examples=200)
def test_pwa_keeps_the_label_and_weighs_by_equation_9(case):
    masks, prob = case
    found = refine(look(masks, prob), parse_chain(links(("pwa", {}, None)), "chain"))
    gauss = np.exp(-((prob.astype(np.float64) - 0.5) ** 2) / (2 * 0.1)) / np.sqrt(2 * np.pi * 0.1)
    assert np.array_equal(found.mask_HW, prob > 0.5)
    assert np.allclose(found.weight_HW, 1.3 - gauss, atol=1e-6)


def test_pwa_weights_are_those_of_the_paper():
    prob = np.array([0, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0], np.float32)
    expected = [0.9386, 0.7331, 0.4956, 0.2671, 0.1000, 0.0384, 0.9386]
    assert np.allclose(psi_of(prob, PsiConfig()), expected, atol=5e-5)


@pytest.mark.parametrize("name", list(STRATEGIES))
@given(case=cases())
@settings(max_examples=100)
def test_every_strategy_answers_well_formed_or_not_at_all(name, case):
    """Conformance: whatever joins the dict inherits this."""
    masks, prob = case
    strategy = STRATEGIES[name]
    evidence = look(masks, prob)
    found = ask(name, evidence, strategy.config())
    again = ask(name, look(masks, prob), strategy.config())
    if found is None:
        assert again is None
        return
    assert found.source == name
    assert found.mask_HW.shape == prob.shape
    assert found.mask_HW.dtype == np.bool_
    assert 0 <= found.score <= 1
    assert np.array_equal(found.mask_HW, again.mask_HW)
    assert found.score == pytest.approx(again.score)


@pytest.mark.parametrize("name", ["iom", "cpi", "cpi-u", "cpi-o", "sepl", "vote"])
def test_the_order_of_candidates_does_not_matter(name):
    rng = np.random.default_rng(3)
    masks = rng.random((9, 8, 9)) < 0.4
    prob = rng.random((8, 9)).astype(np.float32)
    low = {"iom": IomConfig(min_iou=0.1), "cpi": CpiConfig(min_mask_coverage=0.5)}
    config = low.get(name, STRATEGIES[name].config())
    found = ask(name, look(masks, prob), config)
    turned = ask(name, look(masks[::-1], prob), config)
    assert (found is None) == (turned is None)
    assert found is None or np.array_equal(found.mask_HW, turned.mask_HW)


def test_a_chain_falls_back_to_pwa():
    chain = parse_chain(links(("iom", {}, None), ("pwa", {"ceiling": 1.2}, None)), "chain")
    mask = np.zeros((1, 4, 4), np.bool_)
    mask[0, :2] = True
    near = np.where(mask[0], 0.9, 0.1).astype(np.float32)
    assert refine(look(mask, near), chain).source == "iom"
    assert refine(look(~mask, near), chain).source == "pwa"
    assert refine(look(mask[:0], near), chain).source == "pwa"
    assert chain[1].config == PwaConfig(ceiling=1.2)


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([], "must always answer; end with pwa or none"),
        ([("pwa", {}, 0.1)], "must always answer"),
        ([("cpi", {}, None)], "must always answer"),
        (
            [("cip", {}, None), ("pwa", {}, None)],
            r"chain\[0\]: unknown strategy 'cip'; known are none, iom",
        ),
        (
            [("drop", {"share": 1.0}, None), ("pwa", {}, None)],
            r"share: expected a number in \[0, 1\)",
        ),
        ([("pwa", {"sigma": 1}, None)], r"chain\[0\] \(pwa\): unknown key 'sigma'"),
        (
            [("iom", {"min_iou": 2.0}, None), ("pwa", {}, None)],
            r"min_iou: expected a number in \[0, 1\]",
        ),
    ],
)
def test_a_chain_that_cannot_work_is_refused(specs, message):
    with pytest.raises(ValueError, match=message):
        parse_chain(links(*specs), "chain")


def test_cpi_needs_a_test():
    with pytest.raises(ConfigError, match="at least one of min_label_coverage"):
        parse_config(CpiUConfig, {"min_label_coverage": None}, "here")


def test_expected_iou_by_hand():
    prob = np.array([[1.0, 0.5], [0.0, 0.5]], np.float32)
    mask = np.array([[True, True], [False, False]])
    none = np.zeros((0, 2, 2), np.bool_)
    assert expected_iou(look(none, prob), mask) == pytest.approx(1.5 / (2 + 0.5))
    empty = np.zeros((2, 2))
    assert expected_iou(look(none, empty.astype(np.float32)), empty > 0) == 0


def test_bad_evidence_is_refused():
    image = gather_image(build_cells(np.ones((1, 2, 3), np.bool_)))
    with pytest.raises(ValueError, match=r"size \(2, 3\), probability \(3, 2\)"):
        gather(image, np.zeros((3, 2), np.float32), np.zeros((3, 2), np.bool_))
    nan = np.full((2, 3), np.nan, np.float32)
    with pytest.raises(ValueError, match="not finite"):
        assert gather(image, nan, nan > 0.5).prob_total


@pytest.mark.parametrize("name", list(STRATEGIES))
@given(case=cases(), bits=st.integers(0, 2**20 - 1))
@settings(max_examples=200)
def test_what_is_counted_in_cells_is_what_is_drawn(name, case, bits):
    """Law: area, expected IoU and overlap with a truth need no pixels."""
    masks, prob = case
    evidence = look(masks, prob)
    truth = np.array([bits >> k & 1 for k in range(prob.size)], np.bool_).reshape(prob.shape)
    choice = STRATEGIES[name].function(evidence, STRATEGIES[name].config())
    if choice is None:
        return
    mask = draw(evidence, choice)
    assert expected_iou_of(evidence, choice) == pytest.approx(plain_expected_iou(mask, prob))
    inside, union = overlap_with(evidence, choice, count_truth(evidence, truth))
    assert (inside, union) == ((mask & truth).sum(), (mask | truth).sum())


@pytest.mark.parametrize("weight", list(WEIGHTINGS))
@given(case=cases())
@settings(max_examples=100)
def test_every_weight_is_a_share_per_pixel(weight, case):
    masks, prob = case
    chain = parse_chain([ChainLink(strategy="none", weight=weight)], "chain")
    found = refine(look(masks, prob), chain).weight_HW
    assert (found is None) == (weight == "one")
    if found is not None:
        assert found.shape == prob.shape
        assert found.dtype == np.float32
        assert found.min() >= 0
        assert found.max() <= 1


def test_weights_of_ours_by_hand():
    mask = np.zeros((1, 5, 9), np.bool_)
    mask[0, :, :4] = True
    prob = np.where(mask[0], 0.9, 0.2).astype(np.float32)
    weighed = {}
    for name in ("certainty", "edge", "agreement"):
        params = {"radius": 1} if name == "edge" else {}
        link = ChainLink(strategy="none", weight=name, weight_params=params)
        weighed[name] = refine(look(mask, prob), parse_chain([link], "chain")).weight_HW
    assert np.allclose(weighed["certainty"], np.where(mask[0], 0.9, 0.8))
    # Across a straight edge a 3 x 3 square is two thirds on the one side.
    assert np.allclose(weighed["edge"][2], [1, 1, 1, 1 / 3, 1 / 3, 1, 1, 1, 1])
    assert (weighed["agreement"] == 1).all()  # P and all four strategies give the same mask


def test_the_least_confident_labels_are_dropped():
    mask, prob = np.ones((1, 2, 2), np.bool_), np.full((2, 2), 0.9, np.float32)
    drop = STRATEGIES["drop"].function
    for rank, dropped in [(0.0, True), (0.049, True), (0.05, False), (1.0, False)]:
        evidence = replace(look(mask, prob), confidence_rank=rank)
        assert (drop(evidence, DropConfig(share=0.05)) is not None) == dropped


def test_a_weight_that_would_be_ignored_is_refused():
    link = ChainLink(strategy="pwa", weight_params={"ceiling": 1.2})
    with pytest.raises(ValueError, match="give pwa's weight by params, not weight_params"):
        parse_chain([link], "chain")
    chain = parse_chain([ChainLink(strategy="pwa", params={"ceiling": 1.2}, weight="psi")], "chain")
    assert chain[0].weight_config.ceiling == 1.2
