"""Rows of a column of strings, taken in another order."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.columns import StringColumn

TEXTS = st.lists(st.text(st.characters(codec="utf-8"), max_size=4))


def same(one, other):
    assert one.data.tobytes() == other.data.tobytes()
    assert one.offsets.tolist() == other.offsets.tolist()


@given(TEXTS, st.data())
def test_taken_rows_are_those_of_a_list(rows, data):
    positions = st.integers(0, max(len(rows) - 1, 0))
    chosen = data.draw(st.lists(positions, max_size=0 if not rows else 12))
    column = StringColumn.from_strings(rows)
    taken = column.take(np.array(chosen, np.int64))
    same(taken, StringColumn.from_strings([rows[row] for row in chosen]))


def test_pieces_of_rows_are_put_together():
    column = StringColumn.from_strings(["a", "bb", "", "ccc", "d"])
    taken = column.take(np.array([3, 4, 0, 1, 2, 3, 3]))
    assert list(taken) == ["ccc", "d", "a", "bb", "", "ccc", "ccc"]


def test_all_rows_in_their_order_are_not_copied():
    column = StringColumn.from_strings(["a", "bb"])
    assert column.take(np.arange(2)) is column
    assert column.take(np.array([1, 0])) is not column
    assert list(column.take(np.array([0]))) == ["a"]
