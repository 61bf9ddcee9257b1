"""The order of samples is a function of seed, round and step alone."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.order import deal, draws_at


@given(
    st.integers(0, 5), st.integers(0, 2), st.integers(1, 17), st.integers(1, 23),
    st.integers(1, 6), st.integers(0, 6),
)  # fmt: skip
@settings(max_examples=100)
def test_every_pass_sees_every_sample_once(seed, number, labelled, refined, batch_x, batch_u):
    steps = 2 * max(labelled, refined)
    draws = [
        draw
        for step in range(steps)
        for draw in draws_at(seed, number, step, (labelled, refined), (batch_x, batch_u))
    ]
    for stream, count, size in ((0, labelled, batch_x), (1, refined, batch_u)):
        own = [draw for draw in draws if draw.stream == stream]
        assert len(own) == steps * size
        seen = Counter((draw.epoch, draw.index) for draw in own)
        assert all(times == 1 for times in seen.values())
        passes = steps * size // count
        assert all((0, index) in seen for index in range(count)) or passes == 0


def test_seed_round_and_pass_shuffle_differently():
    def order(seed, number, first):
        return [
            d.index
            for s in range(first, first + 10)
            for d in draws_at(seed, number, s, (40, 0), (4, 0))
        ]

    assert order(0, 0, 0) == order(0, 0, 0)
    assert len({tuple(order(*key)) for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 10)]}) == 4


def test_an_empty_stream_is_refused():
    with pytest.raises(ValueError, match="stream 1 has no samples, 2 per step"):
        draws_at(0, 1, 0, (5, 0), (1, 2))


@given(
    samples=st.integers(1, 40), accumulate=st.integers(1, 4), processes=st.integers(1, 5),
    data=st.data(),
)  # fmt: skip
def test_dealing_gives_every_sample_to_one_place_whoever_shares_it(
    samples, accumulate, processes, data
):
    labelled = data.draw(st.integers(0, samples))
    draws = draws_at(0, 1, 3, (50, 60), (labelled, samples - labelled))
    hands = [deal(draws, accumulate, rank, processes) for rank in range(processes)]
    alone = deal(draws, accumulate, 0, 1)
    for micro in range(accumulate):
        shares = [hand[micro] for hand in hands]
        together = [draw for share in shares for draw in share]
        key = lambda d: (d.stream, d.epoch, d.index)  # noqa: E731
        assert sorted(together, key=key) == sorted(alone[micro], key=key)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        if samples >= accumulate * processes:
            assert min(map(len, shares)) >= 1
        for share in shares:
            streams = [draw.stream for draw in share]
            assert streams == sorted(streams)  # labelled first
    assert sum(len(part) for part in alone) == samples
