"""Reading ahead keeps the order, the bound and the errors."""

import threading

import pytest

from pipeline.read_ahead import read_ahead


@pytest.mark.parametrize("depth", [1, 3, 100])
def test_order_is_kept(depth):
    assert list(read_ahead(lambda item: item * item, range(9), depth)) == [n * n for n in range(9)]
    assert list(read_ahead(str, [], depth)) == []


def test_no_more_than_depth_wait():
    begun = []
    results = read_ahead(begun.append, iter(range(100)), depth=3)
    next(results)
    assert len(begun) <= 4


def test_reading_happens_in_another_thread():
    assert set(read_ahead(lambda _: threading.get_ident(), range(3), 2)) != {threading.get_ident()}


def test_an_error_arrives_at_its_turn():
    results = read_ahead(lambda item: 1 // item, [2, 1, 0, 5], 4)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
