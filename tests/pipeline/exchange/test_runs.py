"""Run lengths of other tools, against painting them pixel by pixel."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.errors import ItemError
from pipeline.exchange.runs import mask_of_runs, runs_of_counts, runs_of_pairs
from tests.pipeline.exchange.small_masks import plain_rle, semires_rle

masks = hnp.arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12)))


def painted(pairs, size):
    """Paint (start, length) pairs as the released reader does."""
    flat = np.zeros(size[0] * size[1], np.bool_)
    for start, length in zip(pairs[0::2], pairs[1::2], strict=True):
        flat[start - 1 : start - 1 + length] = True
    return flat.reshape(size, order="F")


def test_pairs_by_hand():
    # Column-major 2x3: pixels 2 and 3 are the second of column 0 and the first of column 1.
    runs = runs_of_pairs([2, 2, 6, 1], (2, 3))
    assert runs.tolist() == [1, 2, 2, 1, 0]
    np.testing.assert_array_equal(mask_of_runs(runs, (2, 3)), [[0, 1, 0], [1, 0, 1]])


@given(masks)
def test_pairs_give_the_mask_back(mask):
    pairs = semires_rle(mask)["counts"]
    decoded = mask_of_runs(runs_of_pairs(pairs, mask.shape), mask.shape)
    np.testing.assert_array_equal(decoded, mask)
    np.testing.assert_array_equal(painted(pairs, mask.shape), mask)


@given(masks)
def test_counts_give_the_mask_back(mask):
    counts = plain_rle(mask)["counts"]
    decoded = mask_of_runs(runs_of_counts(counts, mask.shape), mask.shape)
    np.testing.assert_array_equal(decoded, mask)
    assert decoded.flags.c_contiguous


def test_runs_that_touch_are_one_run():
    assert runs_of_pairs([1, 2, 3, 1, 5, 2], (2, 3)).tolist() == [0, 3, 1, 2, 0]
    assert runs_of_pairs([1, 2, 3, 4], (2, 3)).tolist() == [0, 6, 0]
    assert runs_of_pairs([], (2, 3)).tolist() == [6]


@given(st.lists(st.integers(-2, 30), max_size=8))
def test_pairs_are_refused_or_painted_as_by_the_released_reader(pairs):
    try:
        runs = runs_of_pairs(pairs, (4, 6))
    except ItemError:
        return
    np.testing.assert_array_equal(mask_of_runs(runs, (4, 6)), painted(pairs, (4, 6)))


HOSTILE = [True, 1.0, "1", None, [1], float("nan"), float("inf"), 10**400, -1, 2**63]


@pytest.mark.parametrize("value", HOSTILE, ids=repr)
@pytest.mark.parametrize("read", [runs_of_counts, runs_of_pairs])
def test_what_is_no_integer_of_the_image_is_refused(read, value):
    with pytest.raises(ItemError, match="counts") as caught:
        read([value, 5], (2, 3))
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("pairs", "reason"),
    [
        ([1, 2, 3], "pairs of start and length"),
        ([0, 2], "starts from 1"),
        ([1, 0], "lengths from 1"),
        ([1, 3, 2, 1], "do not overlap"),
        ([4, 1, 1, 1], "rising"),
        ([5, 3], "ends at 7"),
    ],
)
def test_bad_pairs_say_what_is_wrong(pairs, reason):
    with pytest.raises(ItemError, match=reason):
        runs_of_pairs(pairs, (2, 3))


@pytest.mark.parametrize("counts", [[], [5], [3, 4], [6, 6]])
def test_counts_that_do_not_fill_the_image_are_refused(counts):
    with pytest.raises(ItemError, match=f"sum to {sum(counts)}"):
        runs_of_counts(counts, (2, 3))
