"""The reference of the config, docs/config.md: read off the dataclasses and the words below fields.

python -m train.config_reference > docs/config.md    writes that document anew

What no dataclass can say (an example, keys that depend on each other) stands in `config_rules`.
"""

import dataclasses
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, get_type_hints

from pipeline.candidate_config import IMPORTED, CandidatesConfig
from pipeline.exchange import MASK_FORMATS, ImportConfig
from pipeline.manifest import SPLITS
from pipeline.sam.entries import SAM_ENTRIES
from pipeline.sam.options import FAST, REFERENCE, GeneratorOptions
from refine.calibrate_config import CalibrateConfig
from refine.strategies import STRATEGIES, ChainLink
from refine.sweep import DEFAULT_GRID
from refine.weighting import WEIGHTINGS
from train.config import EvaluateConfig, NetworkConfig
from train.config_fields import (
    as_yaml,
    default_in_words,
    defaults_of,
    field_docs,
    inner_classes,
    kind_in_words,
    summary_of,
    values_of,
)
from train.config_rules import ABOUT, EXAMPLE, INTRODUCTION, RULES
from train.job import JobConfig
from train.network_sizes import SIZES
from train.presets import PRESETS

SECTION_CLASSES: dict[str, type[Any]] = get_type_hints(JobConfig)
"""The dataclass of every section, in the order of `pipeline.config.SECTIONS`."""

CHOICES: dict[tuple[type[Any], str], Sequence[str]] = {
    (CandidatesConfig, "model"): (*SAM_ENTRIES, IMPORTED),
    (ImportConfig, "format"): tuple(MASK_FORMATS),
    (ChainLink, "strategy"): tuple(STRATEGIES),
    (ChainLink, "weight"): tuple(WEIGHTINGS),
    (NetworkConfig, "name"): tuple(SIZES),
    (NetworkConfig, "size"): tuple(dict.fromkeys(itertools.chain(*SIZES.values()))),
    (EvaluateConfig, "splits"): SPLITS,
    (EvaluateConfig, "final_splits"): SPLITS,
}
"""The texts that a field takes, where its type does not say them."""

_PRESET = (
    "`preset`",
    ", ".join(f"`{name}`" for name in (*PRESETS, "null")),
    "`null`",
    "Fills in what the section does not say: [every value and its source](training.md#presets).",
)
"""The row of the one key that is no field."""


def page() -> str:
    """Give the whole document."""
    lines = [INTRODUCTION.strip(), "", "```yaml", EXAMPLE.strip(), "```", ""]
    for name, cls in SECTION_CLASSES.items():
        lines += [f"## {name}", "", ABOUT[name], "", *_tables((name,), cls)]
    return "\n".join(lines).rstrip() + "\n"


def _tables(path: tuple[str, ...], cls: type[Any]) -> list[str]:
    """Write the keys of a dataclass, then, under headings of their own, those of its values."""
    inner = inner_classes(path, cls)
    titles = {kind: ", ".join(".".join(one) for one in paths) for kind, paths in inner.items()}
    anchors = {one[-1]: _anchor(titles[kind]) for kind, paths in inner.items() for one in paths}
    lines = _INSTEAD[cls]() if cls in _INSTEAD else _keys(cls, anchors, preset=path == ("train",))
    lines += _rules(".".join(path))
    for kind, paths in inner.items():
        lines += [f"### {titles[kind]}", "", _text(summary_of(kind)), "", *_tables(paths[0], kind)]
    return lines + (_BEHIND[cls]() if cls in _BEHIND else [])


def _keys(cls: type[Any], anchors: Mapping[str, str], *, preset: bool) -> list[str]:
    rows = _rows(cls, {"default": defaults_of(cls)}, anchors)
    if preset:
        rows.insert(0, _PRESET)
    return _table(("key", "value", "default", "meaning"), rows)


def _rules(section: str) -> list[str]:
    if not RULES.get(section):
        return []
    rows = [(rule.words, f"`{rule.refused}`", f"`{rule.accepted}`") for rule in RULES[section]]
    return ["Keys that depend on each other:", "", *_table(("rule", "refused", "accepted"), rows)]


def _rows(
    cls: type[Any],
    columns: Mapping[str, Mapping[str, Any]],
    anchors: Mapping[str, str] | None = None,
) -> list[Sequence[str]]:
    """Give a row per field of a dataclass.

    Args:
        cls: The dataclass.
        columns: Heading of a column of defaults to the default of every field there.
        anchors: Where the fields of a field's value are explained.

    Returns:
        Key, value, a default per column, meaning.
    """
    docs, hints = field_docs(cls), get_type_hints(cls)
    rows: list[Sequence[str]] = []
    for name in next(iter(columns.values())):
        link = (anchors or {}).get(name)
        key = f"[`{name}`](#{link})" if link else f"`{name}`"
        words = kind_in_words(hints[name])
        if (cls, name) in CHOICES:
            words = re.sub("texts?", ", ".join(f"`{one}`" for one in CHOICES[cls, name]), words)
        defaults = [default_in_words(values[name]) for values in columns.values()]
        rows.append((key, words, *defaults, _text(docs.get(name, ""))))
    return rows


def _text(docstring: str) -> str:
    """Put what is written for readers of Python into YAML's words."""
    return re.sub(r"\bNone\b", "`null`", docstring)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Write a table and the empty line behind it."""
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        cells = (cell.replace("|", r"\|").replace("<", "&lt;") for cell in row)
        lines.append("|" + "".join(f" {cell} |" if cell else " |" for cell in cells))
    return [*lines, ""]


def _anchor(title: str) -> str:
    """Give the name by which a heading is linked to, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _sam_options() -> list[str]:
    """Write the options of the mask generator; models whose values are equal share a column."""
    alike: dict[GeneratorOptions, list[str]] = {}
    for name, entry in SAM_ENTRIES.items():
        if entry.has_network:
            alike.setdefault(entry.options_with(GeneratorOptions()), []).append(f"`{name}`")
    columns = {", ".join(names): values_of(options) for options, names in alike.items()}
    for values in columns.values():
        del values["max_candidates"]  # refused here: it stands beside the options
    table = _table(("key", "value", *columns, "meaning"), _rows(GeneratorOptions, columns))
    reference, fast = values_of(REFERENCE), values_of(FAST)
    faster = {key: fast[key] for key in fast if key != "profile" and fast[key] != reference[key]}
    return [
        *table,
        f"Where the profile is `reference`, `{as_yaml({'profile': 'fast'})}` brings "
        f"`{as_yaml(faster)}`.",
        "",
    ]


def _network_options() -> list[str]:
    """Write the options of every network by its sizes."""
    lines = []
    for name, sizes in SIZES.items():
        cls = type(next(iter(sizes.values())))
        columns = {f"`{size}`": values_of(config) for size, config in sizes.items()}
        lines += [f"### train.network.options of {name}", "", _text(summary_of(cls)), ""]
        lines += _table(("key", "value", *columns, "meaning"), _rows(cls, columns))
    return lines


def _strategies() -> list[str]:
    """Write what a link of a chain may name: strategies and weights, each with its parameters."""
    lines = ["#### Strategies and their params", ""]
    lines += ["P is the teacher's mask, p its probability, S a candidate.", ""]
    named = [
        (f"`{k}`", _text(summary_of(v.config)), f"`{v.weight}`") for k, v in STRATEGIES.items()
    ]
    lines += _table(("strategy", "what", "weight"), named)
    lines += _parameters("strategy", {name: one.config for name, one in STRATEGIES.items()})
    lines += ["#### Weights and their weight_params", ""]
    weights = [(f"`{name}`", _text(summary_of(one.config))) for name, one in WEIGHTINGS.items()]
    lines += _table(("weight", "what"), weights)
    return lines + _parameters("weight", {name: one.config for name, one in WEIGHTINGS.items()})


def _parameters(column: str, configs: Mapping[str, type[Any]]) -> list[str]:
    """Write one table for what stands alone, and one per family that differs by defaults only."""
    families: dict[type[Any], dict[str, type[Any]]] = {}
    for name, cls in configs.items():
        root = [base for base in cls.__mro__ if dataclasses.is_dataclass(base)][-1]
        families.setdefault(root, {})[name] = cls
    alone = [members for members in families.values() if len(members) == 1]
    rows = [
        (f"`{name}`", *row)
        for members in alone
        for name, cls in members.items()
        if defaults_of(cls)
        for row in _rows(cls, {"default": defaults_of(cls)})
    ]
    lines = _table((column, "key", "value", "default", "meaning"), rows)
    for root, members in families.items():
        if members not in alone:
            columns = {f"`{name}`": defaults_of(cls) for name, cls in members.items()}
            lines += _table(("key", "value", *columns, "meaning"), _rows(root, columns))
    return lines


def _grid() -> list[str]:
    return ["The default grid:", "", "```yaml", as_yaml(DEFAULT_GRID, flow=None), "```", ""]


_INSTEAD: dict[type[Any], Callable[[], list[str]]] = {GeneratorOptions: _sam_options}
"""What stands in place of a dataclass's own table."""

_BEHIND: dict[type[Any], Callable[[], list[str]]] = {
    NetworkConfig: _network_options,
    ChainLink: _strategies,
    CalibrateConfig: _grid,
}
"""What is said behind a dataclass's table, of what its keys name."""


if __name__ == "__main__":
    sys.stdout.write(page())
