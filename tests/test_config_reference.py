"""docs/config.md is what the code says, and what it says of the config is true."""

import ast
import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import get_args, get_type_hints

import pytest

from pipeline.candidate_config import CandidatesConfig, generator_options
from pipeline.commands import Settings
from pipeline.config import SECTIONS, VERSION, canonical_json, parse_config
from pipeline.data_config import DataConfig
from pipeline.errors import ConfigError
from pipeline.exchange import ImportConfig
from pipeline.plain_yaml import parse_yaml
from pipeline.sam.entries import SAM_ENTRIES
from pipeline.sam.options import GeneratorOptions
from refine.strategies import STRATEGIES, ChainLink
from refine.weighting import WEIGHTINGS
from train.config import EvaluateConfig, NetworkConfig, PhaseConfig, TrainConfig
from train.config_fields import (
    REQUIRED,
    as_yaml,
    default_in_words,
    defaults_of,
    field_docs,
    inner_classes,
    kind_in_words,
)
from train.config_reference import CHOICES, SECTION_CLASSES, page
from train.config_rules import EXAMPLE, RULES
from train.job import parse_job
from train.network_sizes import SIZES

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "config.md"
NEEDS = {
    DataConfig: {"reader": "scenes"},
    ImportConfig: {"format": "coco", "path": "masks.json"},
    ChainLink: {"strategy": "pwa"},
}
"""What has no default."""
PAGE = page()
NO_SECTION = {"JobConfig", "TrainOptions"}
"""The sections together, and the options of a script (pipeline/sam/train_tiny.py)."""


def walk(path, cls):
    """Give every dataclass of the config with the path at which it stands."""
    yield path, cls
    for kind, paths in inner_classes(path, cls).items():
        for one in paths:
            yield from walk(one, kind)


BY_PATH = [pair for name, cls in SECTION_CLASSES.items() for pair in walk((name,), cls)]
BY_NAME = {
    **{f"strategy {name}": one.config for name, one in STRATEGIES.items()},
    **{f"weight {name}": one.config for name, one in WEIGHTINGS.items()},
}
OF_NETWORKS = {name: type(next(iter(sizes.values()))) for name, sizes in SIZES.items()}
CLASSES = list(dict.fromkeys([*dict(BY_PATH).values(), *BY_NAME.values(), *OF_NETWORKS.values()]))
FIELDS = [(cls, name) for cls in CLASSES for name in defaults_of(cls)]


def named(value):
    if isinstance(value, tuple):
        return ".".join(value)
    return value if isinstance(value, str) else value.__name__


def blocks(text):
    """Give the lines below every heading of a document."""
    found, title = {"": []}, ""
    for line in text.splitlines():
        if heading := re.match(r"#+ (.*)", line):
            title = heading[1]
            found[title] = []
        found[title].append(line)
    return found


def keys(lines, column=0):
    """Give what stands in a column of the tables among lines, without backticks and links."""
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("|")]
    cells = [row[column].strip() for row in rows if len(row) > column]
    return [re.sub(r"\[?`([^`]*)`(\]\(.*\))?", r"\1", cell) for cell in cells]


def job(tmp_path, text):
    """Parse all sections of a config; the data are the demo's if it says nothing of them."""
    document = {"version": VERSION, "data": {"reader": "scenes"}} | parse_yaml(text, "test")
    path = tmp_path / "stages.yaml"
    path.write_text(canonical_json(document))
    return parse_job(Settings(path, tmp_path, ()))


def test_the_document_is_what_the_code_says():
    assert DOCUMENT.read_text(encoding="utf-8") == PAGE, (
        "python -m train.config_reference > docs/config.md"
    )


def test_every_section_is_described_in_its_order():
    assert tuple(SECTION_CLASSES) == SECTIONS
    headings = re.findall(r"^## (.*)$", PAGE, flags=re.M)
    assert tuple(headings) == SECTIONS


def test_no_config_class_is_left_out():
    found = set()
    for package in ("pipeline", "refine", "train"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef) and node.name.endswith(("Config", "Options")):
                    found.add(node.name)
    assert found - NO_SECTION <= {cls.__name__ for cls in CLASSES}
    assert found >= NO_SECTION


@pytest.mark.parametrize("cls", CLASSES, ids=named)
def test_every_field_has_words(cls):
    words = field_docs(cls)
    for name in defaults_of(cls):
        assert words.get(name, "").endswith("."), name
        constants = set(re.findall(r"\b[A-Z]+_[A-Z_]+\b", words[name])) - {"WANDB_MODE"}
        assert not constants, f"{name}: the reader of a config knows no {constants}"


@pytest.mark.parametrize(("path", "cls"), BY_PATH, ids=named)
def test_every_field_of_a_section_has_a_row(path, cls):
    title = next(t for t in blocks(PAGE) if ".".join(path) in t.split(", "))
    rows = keys(blocks(PAGE)[title])
    missing = set(defaults_of(cls)) - set(rows)
    assert missing == ({"max_candidates"} if cls is GeneratorOptions else set())


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_parameter_of_a_strategy_has_a_row(name):
    lines = blocks(PAGE)["Strategies and their params"]
    assert name in keys(lines)
    own = [line for line in lines if line.startswith(f"| `{name}` |")]
    family = [line for line in lines if line.startswith("| `") and " | `or`, `and` |" in line]
    if "combine" in defaults_of(STRATEGIES[name].config):
        assert len(family) == 1
        assert set(defaults_of(STRATEGIES[name].config)) <= set(keys(lines))
    else:
        assert set(defaults_of(STRATEGIES[name].config)) <= set(keys(own, 1))


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_every_parameter_of_a_weight_has_a_row(name):
    lines = blocks(PAGE)["Weights and their weight_params"]
    own = [line for line in lines if line.startswith(f"| `{name}` |")]
    assert own
    assert set(defaults_of(WEIGHTINGS[name].config)) <= set(keys(own, 1))


@pytest.mark.parametrize("network", SIZES)
def test_every_option_of_a_network_has_its_value_for_every_size(network):
    lines = blocks(PAGE)[f"train.network.options of {network}"]
    rows = keys(lines)[2:]
    assert rows == [field.name for field in dataclasses.fields(OF_NETWORKS[network])]
    for column, (size, config) in enumerate(SIZES[network].items(), start=2):
        heading, _, *values = keys(lines, column)
        assert heading == size
        assert values == [as_yaml(getattr(config, name)) for name in rows]


def test_the_options_of_a_sam_are_those_it_takes():
    lines = blocks(PAGE)["candidates.options"]
    names = keys(lines)[2:]
    columns = {keys(lines, n)[0]: keys(lines, n)[2:] for n in range(2, 6)}
    found = {}
    for heading, values in columns.items():
        for model in re.findall(r"[a-z]\w+", heading):
            found[model] = dict(zip(names, values, strict=True))
    assert set(found) == {name for name, entry in SAM_ENTRIES.items() if entry.has_network}
    for model, shown in found.items():
        needs = {"checkpoint": "weights"} if SAM_ENTRIES[model].needs_checkpoint else {}
        taken = generator_options(parse_config(CandidatesConfig, {"model": model} | needs, ""))
        expected = {name: as_yaml(getattr(taken, name)) for name in names}
        assert shown | {"crop_overlap_ratio": ""} == expected | {"crop_overlap_ratio": ""}
        ratio = float(shown["crop_overlap_ratio"].strip("≈ `"))
        assert ratio == pytest.approx(taken.crop_overlap_ratio, abs=5e-5)


def test_what_the_fast_profile_brings():
    (line,) = [line for line in PAGE.splitlines() if line.startswith("Where the profile is")]
    profile, brought = (parse_yaml(text, "page") for text in re.findall(r"`(\{.*?\})`", line))
    given = {"model": "vit_b", "checkpoint": "weights"}
    plain = generator_options(parse_config(CandidatesConfig, given, ""))
    fast = generator_options(parse_config(CandidatesConfig, given | {"options": profile}, ""))
    assert fast == dataclasses.replace(plain, **profile, **brought)


@pytest.mark.parametrize("cls", CLASSES, ids=named)
def test_defaults_can_be_written_into_the_file(cls):
    required = [name for name, default in defaults_of(cls).items() if default is REQUIRED]
    assert required == list(NEEDS.get(cls, {}))
    for name, default in defaults_of(cls).items():
        if default is not REQUIRED:
            given = NEEDS.get(cls, {}) | {name: parse_yaml(as_yaml(default), name)}
            assert getattr(parse_config(cls, given, ""), name) == default, name


@pytest.mark.parametrize(("cls", "name"), CHOICES, ids=named)
def test_what_a_field_may_name_is_what_it_accepts(cls, name):
    given = NEEDS.get(cls, {}) | {name: ["nonsense"] if cls is EvaluateConfig else "nonsense"}
    if cls is ChainLink:  # the chain looks at its links
        cls, given = SECTION_CLASSES["refine"], {"chain": [given]}
    with pytest.raises(ConfigError) as refusal:
        parse_config(cls, given, "")
    known = re.sub(".*known (?:for lavt )?are ", "", str(refusal.value)).split(", ")
    shown = CHOICES[(ChainLink, name) if "chain" in given else (cls, name)]
    assert set(known) == (set(SIZES["lavt"]) if name == "size" else set(shown))


RANGES = (
    (r"\bat least (\d+)\b", lambda low: (float(low), True, None, False)),
    (r"\bmore than (\d+)\b", lambda low: (float(low), False, None, False)),
    (
        r"\bin ([\[(])(\d[\d.]*), (\d[\d.]*)([])])",
        lambda left, low, high, right: (float(low), left == "[", float(high), right == "]"),
    ),
)
"""How words give a range -> its least value, whether that may be taken, likewise the greatest."""
OTHERWISE = {
    (CandidatesConfig, "canvas"): "a multiple of 8",
    (PhaseConfig, "warmup_steps"): "fewer than `steps`",
    (NetworkConfig, "max_tokens"): "from 3 to the option `text_positions`",
}
"""Words for what depends on other keys; the rules of the page have examples."""


def kind_of_number(cls, name):
    hint = get_type_hints(cls)[name]
    arms = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return next((kind for kind in (int, float) if kind in arms), None)


NUMBERS = [
    (cls, name)
    for cls, name in FIELDS
    if cls not in OF_NETWORKS.values() and kind_of_number(cls, name)
]


@pytest.mark.parametrize(("cls", "name"), NUMBERS, ids=named)
def test_the_range_in_a_fields_words_is_the_one_enforced(cls, name):
    def accepted(value):
        beside = {"evaluate_every": 1} if (cls, name) == (TrainConfig, "patience") else {}
        value = kind_of_number(cls, name)(value)
        try:
            parse_config(cls, NEEDS.get(cls, {}) | beside | {name: value}, "")
        except ConfigError:
            return False
        return True

    words = field_docs(cls)[name]
    step = 1 if kind_of_number(cls, name) is int else 0.01
    found = [(make, match) for form, make in RANGES if (match := re.search(form, words))]
    if (cls, name) in OTHERWISE:
        assert OTHERWISE[cls, name] in words
        assert not accepted(-1)
        assert not accepted(10**6 + 1)
    elif not found:
        assert accepted(-1)
        assert accepted(10**6)
    else:
        ((make, match),) = found
        low, low_too, high, high_too = make(*match.groups())
        assert accepted(low) == low_too
        assert not accepted(low - step)
        assert accepted(low + step)
        assert accepted(10**6 if high is None else high - step)
        if high is not None:
            assert accepted(high) == high_too
            assert not accepted(high + step)


def test_the_example_is_a_config(tmp_path):
    config = job(tmp_path, EXAMPLE)
    assert config.train.student.steps == 4000
    assert config.train.labelled_view == "strong"  # of the preset
    assert EXAMPLE.strip() in PAGE


@pytest.mark.parametrize(
    "rule",
    [rule for rules in RULES.values() for rule in rules],
    ids=lambda rule: rule.refused,
)
def test_a_rule_refuses_and_accepts_as_its_examples_say(rule, tmp_path):
    job(tmp_path, rule.accepted)
    with pytest.raises(ConfigError):
        job(tmp_path, rule.refused)


def test_the_preset_is_described_as_it_is_read(tmp_path):
    (row,) = [line for line in PAGE.splitlines() if line.startswith("| `preset` |")]
    for name in re.findall("`([a-z]+)`", row.split("|")[2]):
        assert job(tmp_path, f"train: {{preset: {name}}}").train.seed == 0
    with pytest.raises(ConfigError, match="paper, released, ours, found 'nonsense'"):
        job(tmp_path, "train: {preset: nonsense}")


def test_all_rows_of_a_table_are_as_long_as_its_heading():
    width = 0
    for line in PAGE.splitlines():
        cells = len(re.split(r"(?<!\\)\|", line))
        assert not line.startswith("|") or width in (0, cells), line
        width = cells if line.startswith("|") else 0


def test_links_lead_to_headings():
    def anchors(text):
        slugs = (re.sub(r"[^\w\- ]", "", title.lower()) for title in blocks(text))
        return {slug.replace(" ", "-") for slug in slugs}

    for file, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", PAGE):
        text = (DOCUMENT.parent / file).read_text(encoding="utf-8") if file else PAGE
        assert not anchor or anchor in anchors(text), f"{file}#{anchor}"


@dataclass(frozen=True, kw_only=True)
class Base:
    """A dataclass."""

    plain: int = 1
    """On one
    line."""
    silent: int = 2
    loud: int = 3
    """Loud."""


@dataclass(frozen=True, kw_only=True)
class Changed(Base):
    plain: int = 4
    loud: int = 5
    """Louder."""


def test_words_belong_to_the_field_above_and_are_inherited():
    assert field_docs(Base) == {"plain": "On one line.", "loud": "Loud."}
    assert field_docs(Changed) == {"plain": "On one line.", "loud": "Louder."}


def test_kinds_and_defaults_in_words_by_hand():
    assert kind_in_words(tuple[float, float]) == "2 numbers"
    assert kind_in_words(tuple[tuple[int, ...], ...] | None) == "list of lists of integers, `null`"
    assert kind_in_words(tuple[float | None, ...]) == "list of numbers or `null`"
    assert kind_in_words(dict[str, int]) == "mapping"
    assert default_in_words(REQUIRED) == "required"
    assert default_in_words(1 / 3) == "≈ `0.3333`"
    assert default_in_words(5e-5) == "`5.0e-05`"
    assert default_in_words(Base()) == ""
    assert default_in_words((Base(silent=7),)) == "`[{silent: 7}]`"
