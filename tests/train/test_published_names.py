"""The maps as data: templates, and the document that is written from them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.published.layouts import LAYOUTS
from train.published.names import CHANGES, fill, match
from train.published.tables import all_tables, write_tables

DOCUMENT = Path(__file__).parents[2] / "docs" / "weights.md"
RULES = [rule for layout in LAYOUTS.values() for part in layout.sections for rule in part.rules]


@given(stage=st.integers(0, 99), block=st.integers(0, 99), kind=st.sampled_from(["weight", "bias"]))
def test_fields_read_out_of_a_name_fill_it_again(stage, block, kind):
    template = "layers.{stage}.blocks.{block}.norm1.{kind}"
    values = {"stage": str(stage), "block": str(block), "kind": kind}
    name = f"layers.{stage}.blocks.{block}.norm1.{kind}"
    assert match(template, name) == values
    assert fill(template, values) == name


@pytest.mark.parametrize(
    "name",
    [
        "layers.0.blocks.1.norm1.scale",
        "layers.x.blocks.1.norm1.bias",
        "backbone.layers.0.blocks.1.norm1.bias",
        "layers.0.blocks.1.norm1.bias.0",
        "layers.0.blocks.1.norm1xbias",
        "",
    ],
)
def test_another_name_is_not_of_the_template(name):
    assert match("layers.{stage}.blocks.{block}.norm1.{kind}", name) is None


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_tensor_fits_two_rules_of_a_layout(layout):
    samples = {"stage": "1", "block": "2", "layer": "3", "place": "0", "kind": "bias",
               "stat": "running_var", "rest": "x"}  # fmt: skip
    for section in LAYOUTS[layout].sections:
        for rule in section.rules:
            name = fill(rule.source, samples)
            assert [r for r in section.rules if match(r.source, name) is not None] == [rule]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.source)
def test_a_rule_is_complete(rule):
    assert rule.change in CHANGES
    assert len(rule.targets) == (3 if rule.change == "split" else 1)
    fields = dict.fromkeys(("stage", "block", "layer", "place", "kind", "stat"), "0")
    used = {name for name in fields if f"{{{name}}}" in rule.source}
    for target in rule.targets:
        assert {name for name in fields if f"{{{name}}}" in target} == used


def test_the_document_holds_the_tables_of_the_code():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert write_tables(text) == text, "run: python -m train.published.tables docs/weights.md"
    for table in all_tables().values():
        assert table in text


def test_a_document_without_a_mark_is_refused():
    with pytest.raises(ValueError, match="has no table 'lavt'"):
        write_tables("nothing")
