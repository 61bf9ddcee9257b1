"""Context and fit of the probability, against plain statements."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refine.probability import ProbabilityConfig, fit_probability, with_context


def plain_rivals(margin_Ehw, object_E):
    """Softmax over background 0 and the objects' mean margins, in double precision."""
    names = sorted(set(object_E.tolist()))
    means = np.stack([margin_Ehw[object_E == name].mean(axis=0) for name in names]).astype(float)
    odds = np.exp(np.concatenate([np.zeros_like(means[:1]), means]))
    prob = odds[1:] / odds.sum(axis=0)
    return np.stack([prob[names.index(name)] for name in object_E.tolist()])


@given(st.lists(st.integers(0, 3), min_size=1, max_size=7), st.integers(0, 2**31))
@settings(max_examples=300)
def test_rivals_are_a_softmax_over_objects_and_background(objects, seed):
    object_E = np.array(objects)
    margin = np.random.default_rng(seed).normal(0, 4, (len(objects), 2, 3)).astype(np.float32)
    found = 1 / (1 + np.exp(-with_context(margin, object_E, "rivals").astype(float)))
    assert np.allclose(found, plain_rivals(margin, object_E), atol=1e-5)
    if len(set(objects)) > 1:
        first = [objects.index(name) for name in set(objects)]
        assert (found[first].sum(axis=0) <= 1 + 1e-5).all()


@given(st.lists(st.integers(0, 2), min_size=1, max_size=6), st.integers(0, 2**31))
@settings(max_examples=200)
def test_siblings_are_the_mean_over_an_object(objects, seed):
    object_E = np.array(objects)
    margin = np.random.default_rng(seed).normal(0, 4, (len(objects), 2, 2)).astype(np.float32)
    found = with_context(margin, object_E, "siblings")
    for row, name in enumerate(objects):
        assert np.allclose(found[row], margin[object_E == name].mean(axis=0), atol=1e-5)
    assert with_context(margin, object_E, "none") is margin


def test_rivals_stay_finite_at_the_ends():
    margin = np.array([[[6e4, -6e4]], [[6e4, -6e4]], [[-6e4, 6e4]]], np.float32)
    found = with_context(margin, np.array([0, 1, 2]), "rivals")
    assert np.isfinite(found).all()
    assert found[0, 0, 0] == pytest.approx(0, abs=1e-3)  # two equal rivals share the pixel
    assert found[2, 0, 1] > 700  # all there is: the odds of the others are below float64


def test_the_fit_finds_what_made_the_truth():
    rng = np.random.default_rng(0)
    margin = rng.normal(-1, 3, 200_000)
    truth = rng.random(200_000) < 1 / (1 + np.exp(-(0.4 * margin + 0.7)))
    slope, bias = fit_probability(margin, truth)
    assert slope == pytest.approx(0.4, abs=0.02)
    assert bias == pytest.approx(0.7, abs=0.03)


def test_the_fit_stays_usable_where_truth_says_little():
    margin = np.linspace(-3, 3, 100)
    for truth in (np.zeros(100, bool), np.ones(100, bool), margin > 0, margin < 0):
        slope, bias = fit_probability(margin, truth)
        assert np.isfinite([slope, bias]).all()
        assert slope >= 0.05
        ProbabilityConfig(slope=slope, bias=bias)
    with pytest.raises(ValueError, match="slope: expected more than 0"):
        ProbabilityConfig(slope=0.0)
