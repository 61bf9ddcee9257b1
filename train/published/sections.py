"""Core: the dictionaries inside a published file, and which kind of file it is."""

from collections.abc import Mapping
from typing import Any

import torch

from train.published.layouts import LAYOUTS, Section
from train.published.names import match


def find_section(content: Mapping[str, Any], section: Section) -> tuple[str, dict[str, Any] | None]:
    """Give a section's path in the file, wrappers' prefixes included, and its entries by name.

    DistributedDataParallel puts `module.` and torch.compile `_orig_mod.` before every name; what
    all names begin with is taken off.
    """
    found: Mapping[str, Any] | None = None
    where = ""
    for key in section.keys:
        if isinstance(content.get(key), Mapping):
            found, where = content[key], f"{key}: "
            break
    if found is None and section.may_be_bare and _is_bare(content):
        found = content
    if found is None or not found or not all(isinstance(name, str) for name in found):
        return where, None
    names = dict(found)
    for prefix in ("module.", "_orig_mod.", "module."):
        if all(name.startswith(prefix) for name in names):
            names = {name.removeprefix(prefix): value for name, value in names.items()}
            where += prefix
    return where, names


def recognise(content: Mapping[str, Any]) -> str | None:
    """Guess the layout of a file from its names alone.

    Returns:
        The layout that knows the largest share of the names, if that is more than half.
    """
    shares: dict[str, float] = {}
    for key, layout in LAYOUTS.items():
        known = total = 0
        for section in layout.sections:
            _, tensors = find_section(content, section)
            for name in tensors or {}:
                total += 1
                known += _knows(section, name.removeprefix(section.optional_prefix))
            if tensors is None:
                total, known = 1, 0
                break
        shares[key] = known / max(total, 1)
    best = max(shares, key=lambda key: shares[key])
    return best if shares[best] > 0.5 else None


def _is_bare(content: Mapping[str, Any]) -> bool:
    return any(isinstance(value, torch.Tensor) for value in content.values())


def _knows(section: Section, name: str) -> bool:
    sources = [*(rule.source for rule in section.rules), *(e.source for e in section.ignored)]
    return any(match(source, name) is not None for source in sources)
