"""Core: all strategies by name, and chains of them.

A strategy answers with a choice of cells or with None, in which case the next of the chain is
asked. To add one: a function in a module of its kind, and one line here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.config import parse_config
from refine.choice import Choice, Refined, draw, expected_iou_of
from refine.evidence import Evidence
from refine.keeping import DropConfig, NoneConfig, PwaConfig, drop, keep, pwa
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
from refine.voting import BestUnionConfig, VoteConfig, best_union, vote
from refine.weighting import WEIGHTINGS


@dataclass(frozen=True, slots=True)
class Strategy:
    """A strategy: its function, the config that it takes, and how its labels are weighted."""

    function: Callable[[Evidence, Any], Choice | None]
    config: type[Any]
    weight: str = "one"
    """Key of `WEIGHTINGS`, where a chain does not name another."""
    sees_prob: bool = False
    """Whether it looks at p; the others see P alone."""


STRATEGIES: dict[str, Strategy] = {
    "none": Strategy(keep, NoneConfig),
    "iom": Strategy(iom, IomConfig),
    "cpi": Strategy(cpi, CpiConfig),
    "cpi-u": Strategy(cpi, CpiUConfig),
    "cpi-o": Strategy(cpi, CpiOConfig),
    "pwa": Strategy(pwa, PwaConfig, "psi"),
    "sepl": Strategy(cpi, SeplConfig),
    "soft-iou": Strategy(soft_iou, SoftIouConfig, sees_prob=True),
    "vote": Strategy(vote, VoteConfig, sees_prob=True),
    "best-union": Strategy(best_union, BestUnionConfig, sees_prob=True),
    "drop": Strategy(drop, DropConfig, "zero"),
}
"""All strategies. The position of a name is its code in label shards: append, never reorder."""

ALWAYS_ANSWER = ("pwa", "none")
"""Strategies that a chain may end with; they leave the teacher's mask as it is."""
KEEP_LABEL = (*ALWAYS_ANSWER, "drop")
"""Sources whose mask is the teacher's: not counted as matched."""
UNTRAINED = ("drop",)
"""Sources whose labels are stored but never drawn in training."""

ParameterValue = int | float | bool | str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One strategy of a chain, ready to be asked."""

    name: str
    config: Any
    min_gain: float | None = None
    """Accept the answer only if its expected IoU exceeds that of the teacher's own mask by more
    than this (negative allows a loss); None accepts every answer."""
    weight: str = "one"
    """Key of `WEIGHTINGS`."""
    weight_config: Any = None


Chain = Sequence[Link]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainLink:
    """One strategy of a chain, as a config file gives it."""

    strategy: str
    """Which strategy is asked."""
    params: dict[str, ParameterValue] = field(default_factory=dict)
    """Its parameters; what is left out takes its default."""
    min_gain: float | None = None
    """Accept its answer only if the expected IoU exceeds that of the teacher's mask by more than
    this; None accepts every answer."""
    weight: str | None = None
    """How its labels' pixels are weighted; None takes the strategy's own weight."""
    weight_params: dict[str, ParameterValue] = field(default_factory=dict)
    """Parameters of the weighting; what is left out takes its default."""


def parse_chain(specs: Sequence[ChainLink], where: str) -> list[Link]:
    """Build a chain from names, plain parameters, gates and weightings.

    Raises:
        ConfigError: For an unknown parameter or a value out of range.
        ValueError: For an unknown name, or a chain that may end without an answer.
    """
    chain = [_parse_link(spec, f"{where}[{position}]") for position, spec in enumerate(specs)]
    if not chain or chain[-1].name not in ALWAYS_ANSWER or chain[-1].min_gain is not None:
        raise ValueError(f"{where}: the last strategy must always answer; end with pwa or none")
    return chain


def _parse_link(spec: ChainLink, where: str) -> Link:
    if spec.strategy not in STRATEGIES:
        known = ", ".join(STRATEGIES)
        raise ValueError(f"{where}: unknown strategy {spec.strategy!r}; known are {known}")
    strategy = STRATEGIES[spec.strategy]
    config = parse_config(strategy.config, spec.params, f"{where} ({spec.strategy})")
    weight = strategy.weight if spec.weight is None else spec.weight
    if weight not in WEIGHTINGS:
        known = ", ".join(WEIGHTINGS)
        raise ValueError(f"{where}: unknown weight {weight!r}; known are {known}")
    if isinstance(config, WEIGHTINGS[weight].config):  # pwa's parameters are those of its weight
        if spec.weight_params:
            raise ValueError(f"{where}: give {spec.strategy}'s weight by params, not weight_params")
        weight_config = config
    else:
        kind = WEIGHTINGS[weight].config
        weight_config = parse_config(kind, spec.weight_params, f"{where} ({weight})")
    return Link(
        name=spec.strategy,
        config=config,
        min_gain=spec.min_gain,
        weight=weight,
        weight_config=weight_config,
    )


def choose(evidence: Evidence, chain: Chain) -> tuple[Choice, Link]:
    """Ask the strategies in turn and give the first answer that is accepted, and who gave it.

    Raises:
        ValueError: If none answers, which `parse_chain` rules out.
    """
    for link in chain:
        choice = STRATEGIES[link.name].function(evidence, link.config)
        if choice is not None and _accepted(evidence, choice, link.min_gain):
            return choice, link
    raise ValueError("no strategy of the chain answered; end it with pwa or none")


def refine(evidence: Evidence, chain: Chain) -> Refined:
    """Choose and draw one label.

    Raises:
        ValueError: If no strategy answers, which `parse_chain` rules out.
    """
    choice, link = choose(evidence, chain)
    mask_HW = draw(evidence, choice)
    weight_HW = WEIGHTINGS[link.weight].function(evidence, mask_HW, link.weight_config)
    return Refined(
        mask_HW=mask_HW,
        weight_HW=weight_HW,
        source=choice.source,
        score=choice.score,
        num_chosen=choice.num_chosen,
    )


def _accepted(evidence: Evidence, choice: Choice, min_gain: float | None) -> bool:
    if min_gain is None or choice.source in KEEP_LABEL:
        return True
    return expected_iou_of(evidence, choice) > evidence.label_expected_iou + min_gain
