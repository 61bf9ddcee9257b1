"""Filled polygons by hand, and against a slow reference."""

from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.scenes.outline import fill_polygon

POINTS = st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=3, max_size=7)


def fill_slowly(points):
    """Count crossings to the left of every centre, in exact fractions."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    inside = np.zeros((max(ys) - min(ys), max(xs) - min(xs)), bool)
    for row, column in np.ndindex(inside.shape):
        x, y = min(xs) + column + Fraction(1, 2), min(ys) + row + Fraction(1, 2)
        for (ax, ay), (bx, by) in zip(points, [*points[1:], points[0]], strict=True):
            if min(ay, by) < y < max(ay, by):
                crossing = ax + (y - ay) * Fraction(bx - ax, by - ay)
                inside[row, column] ^= crossing <= x
    return min(xs), min(ys), inside


def test_rectangle_has_exactly_its_samples():
    x, y, inside = fill_polygon([(2, 3), (6, 3), (6, 5), (2, 5)])
    assert (x, y) == (2, 3)
    assert inside.shape == (2, 4)
    assert inside.all()


def test_triangle_by_hand():
    _, _, inside = fill_polygon([(0, 0), (4, 4), (0, 4)])
    expected = ["....", "x...", "xx..", "xxx."]
    assert ["".join("x" if v else "." for v in row) for row in inside] == expected


def test_outline_that_comes_back_leaves_a_hole():
    outer = [(0, 0), (6, 0), (6, 6), (0, 6), (0, 0)]
    inner = [(2, 2), (2, 4), (4, 4), (4, 2), (2, 2)]
    _, _, inside = fill_polygon(outer + inner)
    assert inside.sum() == 36 - 4
    assert not inside[2:4, 2:4].any()


def test_line_has_no_samples():
    assert fill_polygon([(0, 0), (3, 3), (0, 0)])[2].sum() == 0
    assert fill_polygon([(0, 1), (3, 1), (5, 1)])[2].shape == (0, 5)


@settings(max_examples=60)
@given(POINTS)
def test_filling_equals_the_slow_reference(points):
    x, y, inside = fill_polygon(points)
    expected = fill_slowly(points)
    assert (x, y) == expected[:2]
    np.testing.assert_array_equal(inside, expected[2])
