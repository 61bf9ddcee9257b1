"""Strings that come one by one become columns; some are found again."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.columns import StringColumn
from pipeline.growing_strings import DistinctStrings, GrowingStrings

TEXTS = st.lists(st.text(st.characters(codec="utf-8"), max_size=4))


def same(one, other):
    assert one.data.tobytes() == other.data.tobytes()
    assert one.offsets.tolist() == other.offsets.tolist()


def grown(kind, rows):
    growing = kind()
    for row in rows:
        growing.append(row)
    return growing


@pytest.mark.parametrize("kind", [GrowingStrings, DistinctStrings])
@given(rows=TEXTS, data=st.data())
def test_runs_handed_over_are_those_of_a_list(kind, rows, data):
    rows = list(dict.fromkeys(rows))
    first = data.draw(st.lists(st.integers(0, len(rows)), max_size=8))
    runs = [(start, data.draw(st.integers(0, len(rows) - start))) for start in first]
    starts, lengths = np.array(runs, np.int64).reshape(-1, 2).T
    growing = grown(kind, rows)
    expected = [row for start, length in runs for row in rows[start : start + length]]
    same(growing.hand_over_runs(starts, lengths), StringColumn.from_strings(expected))
    assert len(growing) == 0


def test_what_is_handed_over_in_another_order_is_not_held_twice():
    row = bytes(1 << 16)
    tracemalloc.start()
    try:
        growing = grown(GrowingStrings, [row] * 64)
        column = growing.hand_over_runs(np.arange(64)[::-1], np.ones(64, np.int64))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert column.lengths().tolist() == [len(row)] * 64
    assert most < 1.5 * 64 * len(row)


@pytest.mark.parametrize("kind", [GrowingStrings, DistinctStrings])
@given(rows=TEXTS)
def test_what_grew_is_the_column_of_its_rows(kind, rows):
    rows = list(dict.fromkeys(rows))
    growing = grown(kind, rows)
    assert list(growing) == rows
    same(growing.hand_over(), StringColumn.from_strings(rows))


@pytest.mark.parametrize("kind", [GrowingStrings, DistinctStrings])
def test_what_was_handed_over_is_left_alone(kind):
    growing = kind()
    growing.append("one")
    growing.append(b"two")
    column = growing.hand_over()
    assert len(growing) == 0
    growing.append("one")
    assert (list(column), list(growing)) == (["one", "two"], ["one"])


@given(st.lists(st.text("ab", max_size=6), max_size=80))
def test_distinct_strings_find_their_rows_as_a_dict_does(texts):
    found, known = DistinctStrings(), {}
    for text in texts:
        assert found.row_of(text) == known.get(text)
        if text not in known:
            known[text] = len(known)
            found.append(text)
    assert {text: found.row_of(text) for text in known} == known
    assert list(found) == list(known)


def test_thousands_of_distinct_strings_are_found():
    found = DistinctStrings()
    for number in range(5000):
        found.append(f"images/{number}.jpg")
    assert all(found.row_of(f"images/{number}.jpg") == number for number in range(5000))
    assert found.row_of("images/5000.jpg") is None


def test_a_string_that_is_there_is_refused():
    found = DistinctStrings()
    found.append("one")
    with pytest.raises(ValueError, match="every string once, found 'one' again"):
        found.append("one")
    assert list(found) == ["one"]
