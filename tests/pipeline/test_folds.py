"""Folds part the labelled images: nothing twice, nothing lost."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.folds import Fold, held_out_images, parse_fold


@given(st.sets(st.integers(0, 10_000), min_size=2, max_size=60), st.integers(2, 9))
def test_folds_are_disjoint_cover_all_and_are_of_one_size(images, count):
    labelled = np.array(sorted(images), np.int64)
    if len(labelled) < count:
        with pytest.raises(ConfigError, match="take fewer folds"):
            held_out_images(labelled, Fold(1, count))
        return
    parts = [held_out_images(labelled, Fold(number, count)) for number in range(1, count + 1)]
    assert np.array_equal(np.sort(np.concatenate(parts)), labelled)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert all((np.diff(part) > 0).all() for part in parts)


def test_folds_are_read():
    assert parse_fold("2/4") == Fold(2, 4)
    for text in ("0/4", "5/4", "1/1", "1", "a/b", "1/4/2", "-1/4", ""):
        with pytest.raises(ConfigError, match="fold: expected"):
            parse_fold(text)
