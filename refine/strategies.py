"""Core: all strategies by name, and chains of them.

A strategy answers with a label or with None, in which case the next of the chain is asked. To add
one: a function in a module of its kind, and one line here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config import parse_config
from refine.evidence import Evidence, expected_iou
from refine.matching import (
    CpiConfig,
    CpiOConfig,
    CpiUConfig,
    IomConfig,
    SeplConfig,
    SoftIouConfig,
    cpi,
    iom,
    soft_iou,
)
from refine.refined import Refined
from refine.voting import BestUnionConfig, VoteConfig, best_union, vote
from refine.weighting import NoneConfig, PwaConfig, keep, pwa


@dataclass(frozen=True, slots=True)
class Strategy:
    """A strategy: its function, and the config that it takes."""

    function: Callable[[Evidence, Any], Refined | None]
    config: type[Any]


STRATEGIES: dict[str, Strategy] = {
    "none": Strategy(keep, NoneConfig),
    "iom": Strategy(iom, IomConfig),
    "cpi": Strategy(cpi, CpiConfig),
    "cpi-u": Strategy(cpi, CpiUConfig),
    "cpi-o": Strategy(cpi, CpiOConfig),
    "pwa": Strategy(pwa, PwaConfig),
    "sepl": Strategy(cpi, SeplConfig),
    "soft-iou": Strategy(soft_iou, SoftIouConfig),
    "vote": Strategy(vote, VoteConfig),
    "best-union": Strategy(best_union, BestUnionConfig),
}
"""All strategies. The position of a name is its code in label shards: append, never reorder."""

ALWAYS_ANSWER = ("pwa", "none")
"""Strategies that a chain may end with; they leave the teacher's mask as it is."""

ParameterValue = int | float | bool | str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One strategy of a chain, ready to be asked."""

    name: str
    config: Any
    min_gain: float | None = None
    """Accept the answer only if its expected IoU exceeds that of the teacher's own mask by more
    than this (negative allows a loss); None accepts every answer."""


Chain = Sequence[Link]


def parse_chain(
    links: Sequence[tuple[str, Mapping[str, ParameterValue], float | None]], where: str
) -> list[Link]:
    """Build a chain from names, plain parameters and gates.

    Raises:
        ConfigError: For an unknown parameter or a value out of range.
        ValueError: For an unknown strategy, or a chain that may end without an answer.
    """
    chain: list[Link] = []
    for position, (name, parameters, min_gain) in enumerate(links):
        if name not in STRATEGIES:
            known = ", ".join(STRATEGIES)
            raise ValueError(f"{where}[{position}]: unknown strategy {name!r}; known are {known}")
        config = parse_config(STRATEGIES[name].config, parameters, f"{where}[{position}] ({name})")
        chain.append(Link(name=name, config=config, min_gain=min_gain))
    if not chain or chain[-1].name not in ALWAYS_ANSWER or chain[-1].min_gain is not None:
        raise ValueError(f"{where}: the last strategy must always answer; end with pwa or none")
    return chain


def refine(evidence: Evidence, chain: Chain) -> Refined:
    """Ask the strategies in turn and give the first answer that is accepted.

    Raises:
        ValueError: If none answers, which `parse_chain` rules out.
    """
    for link in chain:
        refined = STRATEGIES[link.name].function(evidence, link.config)
        if refined is not None and _accepted(evidence, refined, link.min_gain):
            return refined
    raise ValueError("no strategy of the chain answered; end it with pwa or none")


def _accepted(evidence: Evidence, refined: Refined, min_gain: float | None) -> bool:
    if min_gain is None:
        return True
    own = expected_iou(evidence.prob_HW, evidence.label_HW)
    return expected_iou(evidence.prob_HW, refined.mask_HW) > own + min_gain
