"""Core: which samples a step sees: a pure function of seed, round and step."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

LABELLED, UNLABELLED = 0, 1
"""The two streams of samples; each is shuffled on its own."""


@dataclass(frozen=True, slots=True)
class Draw:
    """One sample of one step: its stream, its position in the stream's list, its pass."""

    stream: int
    index: int
    epoch: int


@lru_cache(maxsize=8)
def permutation(
    seed: int, number: int, stream: int, epoch: int, count: int
) -> npt.NDArray[np.int64]:
    """Shuffle `count` samples for one pass of one stream in one round."""
    return np.random.default_rng([seed, number, stream, epoch]).permutation(count)


def draws_at(
    seed: int, number: int, step: int, counts: tuple[int, int], batch: tuple[int, int]
) -> list[Draw]:
    """List the samples of a step, labelled first.

    Independent of processes and loader workers: a rank takes its part of this list, and a resumed
    run computes it anew.

    Args:
        seed: The run's seed.
        number: The round.
        step: The step, from 0.
        counts: Samples in the labelled and the unlabelled stream.
        batch: Samples per step of each; 0 leaves a stream out.

    Raises:
        ValueError: If a stream that is asked for has no samples.
    """
    draws: list[Draw] = []
    for stream, (count, size) in enumerate(zip(counts, batch, strict=True)):
        if size and not count:
            raise ValueError(f"stream {stream} has no samples, {size} per step are asked for")
        for position in range(step * size, (step + 1) * size):
            epoch, at = divmod(position, count)
            order = permutation(seed, number, stream, epoch, count)
            draws.append(Draw(stream=stream, index=int(order[at]), epoch=epoch))
    return draws


def deal(draws: list[Draw], accumulate: int, rank: int, processes: int) -> list[list[Draw]]:
    """Deal a step's samples: micro-batch by micro-batch, the part of one process.

    Like cards: every `accumulate`-th sample goes to the same micro-batch, and of those every
    `processes`-th to the same process. So a micro-batch holds the same samples however many
    processes share it, and labelled samples stay first in every part.

    Args:
        draws: All samples of the step.
        accumulate: Micro-batches.
        rank: The process, from 0.
        processes: How many there are.

    Returns:
        `accumulate` lists, none of them empty if there is a sample for each list of each process.
    """
    return [draws[micro::accumulate][rank::processes] for micro in range(accumulate)]
