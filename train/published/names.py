"""Core: tensor names as templates, so that a map of names is data: run, printed and checked.

A template is a name with fields in braces; `FIELDS` says what each stands for.
"""

import re
from dataclasses import dataclass, replace
from functools import cache

FIELDS: dict[str, str] = {
    "stage": r"\d+",
    "block": r"\d+",
    "layer": r"\d+",
    "place": r"\d+",
    "kind": "weight|bias",
    "stat": "weight|bias|running_mean|running_var|num_batches_tracked",
    "rest": ".+",
}
"""Name of a field to the pattern of what it stands for."""
CHANGES: dict[str, str] = {
    "copy": "as it is",
    "split": "rows cut into three equal parts: query, key, value",
    "matrix": "a convolution of kernel 1 as a matrix: its last axis dropped; a bias as it is",
}
"""What happens to a tensor on its way, by the name that a `Rule` uses."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Tensors of a file that have a place in the network."""

    source: str
    """Template of the published name."""
    targets: tuple[str, ...]
    """Templates of our names, with the same fields; several where the tensor is cut."""
    change: str = "copy"
    """A key of `CHANGES`."""


@dataclass(frozen=True, slots=True)
class Ignored:
    """Tensors of a file that are left out, and why."""

    source: str
    """Template of the published name."""
    reason: str
    """For the user."""
    only_without_place: bool = False
    """Whether a rule goes first, so that only what has no place in this network is left out."""


def match(template: str, name: str) -> dict[str, str] | None:
    """Read the fields out of a name.

    Returns:
        Value by field, or None if the name is not of this template.
    """
    found = _pattern(template).fullmatch(name)
    return None if found is None else found.groupdict()


def fill(template: str, values: dict[str, str]) -> str:
    """Put values into a template's fields."""
    return template.format(**values)


def prefixed(rules: tuple[Rule, ...], prefix: str) -> tuple[Rule, ...]:
    """Give the rules for the same tensors inside a larger model."""
    return tuple(replace(rule, source=prefix + rule.source) for rule in rules)


@cache
def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", template)  # text, field, text, field, ..., text
    texts = [re.escape(text) for text in parts[::2]]
    fields = [f"(?P<{field}>{FIELDS[field]})" for field in parts[1::2]]
    return re.compile("".join(a + b for a, b in zip(texts, [*fields, ""], strict=True)))
