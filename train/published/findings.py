"""Core: what becomes of every tensor of a published file, and what is wrong with it."""

from collections import Counter
from dataclasses import dataclass, field

import torch

from train.published.names import Ignored, Rule

PROBLEMS: dict[str, str] = {
    "section": "dictionaries that do not fit",
    "unknown": "tensors that this layout does not have",
    "value": "entries that are no plain tensor",
    "place": "tensors without a place in the network",
    "twice": "tensors for a place that is taken",
    "shape": "tensors of another shape",
    "window": "position tables of another window",
    "missing": "tensors of the network that the file lacks",
    "number": "tensors with numbers that are not finite",
}
"""What can be wrong with a file, in the order in which it is told."""


@dataclass(frozen=True, slots=True)
class Placed:
    """One tensor of the network and where it comes from."""

    source: str
    """Full name in the file, with section and prefix."""
    target: str
    """Name in the network."""
    rule: Rule
    tensor: torch.Tensor
    """Of the network's shape, in the file's dtype."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that does not fit."""

    kind: str
    """A key of `PROBLEMS`."""
    text: str
    """Names the tensor, what was expected and what was found."""


@dataclass(slots=True)
class Survey:
    """What becomes of every tensor of a file, and of every tensor of the network."""

    placed: list[Placed] = field(default_factory=list)
    ignored: list[tuple[str, Ignored]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    spoilt: list[tuple[str, int, int]] = field(default_factory=list)
    """Position indices that are not their window's: name, wrong entries, entries."""
    notes: list[str] = field(default_factory=list)
    """What is worth knowing though nothing is wrong."""

    def find(self, kind: str, text: str) -> None:
        """Take down a problem."""
        self.problems.append(Problem(kind, text))


def refusal(result: Survey) -> str | None:
    """Say in one line what is wrong, by kind, with the first of each named; None if nothing is."""
    if not result.problems:
        return None
    counts = Counter(problem.kind for problem in result.problems)
    parts = []
    for kind, words in PROBLEMS.items():
        if counts[kind]:
            first = next(problem.text for problem in result.problems if problem.kind == kind)
            parts.append(f"{counts[kind]} {words} ({first}{', ...' if counts[kind] > 1 else ''})")
    return "; ".join(parts)
