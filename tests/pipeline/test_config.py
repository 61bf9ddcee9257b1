"""stages.yaml is read strictly: whatever does not fit is named with its place."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import canonical_json, differences, fingerprint, load_document, parse_config
from pipeline.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    rate: float = 0.5

    def __post_init__(self):
        if self.rate > 1:
            raise ValueError(f"rate: expected at most 1, found {self.rate}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    name: str
    count: int = 1
    flag: bool = False
    path: Path | None = None
    mode: Literal["a", "b"] = "a"
    sizes: tuple[int, ...] = ()
    pair: tuple[float, float] = (0.0, 1.0)
    table: dict[str, int] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)


def test_values_land_in_their_types():
    mapping = {
        "name": "x", "path": "~/a", "mode": "b", "sizes": [1, 2], "pair": [1, 2.5],
        "table": {"train": 3}, "inner": {"rate": 1},
    }  # fmt: skip
    outer = parse_config(Outer, mapping, "here")
    assert outer.path == Path("~/a").expanduser()
    assert outer.sizes == (1, 2)
    assert outer.pair == (1.0, 2.5)
    assert outer.inner == Inner(rate=1.0)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({}, "here: key 'name' is missing"),
        ({"name": "x", "nmae": 1}, "here: unknown key 'nmae'; known are name, count"),
        ({"name": 3}, "here.name: expected str, found 3"),
        ({"name": "x", "count": True}, "here.count: expected int, found True"),
        ({"name": "x", "count": 1.0}, "here.count: expected int, found 1.0"),
        ({"name": "x", "flag": 1}, "here.flag: expected bool, found 1"),
        ({"name": "x", "mode": "c"}, "here.mode: expected one of 'a', 'b', found 'c'"),
        ({"name": "x", "sizes": [1, "2"]}, r"here.sizes\[1\]: expected int, found '2'"),
        ({"name": "x", "sizes": "12"}, "here.sizes: expected a list, found '12'"),
        ({"name": "x", "pair": [1]}, "here.pair: expected 2 values, found 1"),
        ({"name": "x", "table": {"a": "b"}}, "here.table.a: expected int, found 'b'"),
        ({"name": "x", "inner": {"rate": 2}}, "here.inner: rate: expected at most 1, found 2"),
        ({"name": "x", "inner": {"rate": float("nan")}}, "here.inner.rate: expected a finite"),
        ({"name": "x", "inner": 3}, "here.inner: expected a mapping, found 3"),
        ("text", "here: expected a mapping, found 'text'"),
    ],
)
def test_what_does_not_fit_is_named(mapping, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(Outer, mapping, "here")


def write(tmp_path, text):
    path = tmp_path / "stages.yaml"
    path.write_text(text)
    return path


def test_sections_overrides_and_numbers(tmp_path):
    path = write(tmp_path, "version: 1\ntrain: {lr: 5e-5}\n")
    sections = load_document(path, ["train.lr=1e-3", "refine.chain=[{strategy: iom}]"])
    assert sections["train"] == {"lr": 1e-3}
    assert sections["refine"] == {"chain": [{"strategy": "iom"}]}
    assert sections["data"] == {}


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("train: {}", [], "expected 'version: 1' at the top, found None"),
        ("version: 2", [], "found 2"),
        ("version: 1\ntrian: {}", [], "unknown section 'trian'; known are data,"),
        ("version: 1\ntrain: 3", [], "train: expected a mapping, found 3"),
        ("version: 1\ntrain: {a: 1, a: 2}", [], "line 2: key 'a' is given twice"),
        ("version: 1\ntrain: !!python/object/apply:os.system [ls]", [], "line 2: .*found the tag"),
        ("version: [1", [], "not YAML"),
        ("- 1", [], "expected a mapping of sections, found list"),
        ("version: 1", ["train"], "--set 'train': expected section.key=value"),
        ("version: 1", ["nope.a=1"], "unknown section 'nope'"),
    ],
)
def test_a_broken_file_gives_one_line(tmp_path, text, overrides, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_document(write(tmp_path, text), overrides)
    assert "\n" not in str(caught.value)


def test_a_missing_file_names_the_option(tmp_path):
    with pytest.raises(ConfigError, match="give --config"):
        load_document(tmp_path / "absent.yaml")


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.booleans() | st.none()))
def test_fingerprints_do_not_depend_on_the_order_of_keys(mapping):
    turned = dict(reversed(list(mapping.items())))
    assert canonical_json(mapping) == canonical_json(turned)
    assert fingerprint(mapping) == fingerprint(turned)
    assert differences(mapping, turned) == []


def test_differences_name_the_key_and_both_values():
    old, new = {"a": {"x": 1, "y": 2}}, {"a": {"x": 1, "y": 3}, "b": None}
    assert differences(old, new) == ["a.y: 2, now 3"]
    assert differences([["iom", {"x": 1}]], [["cpi", {"x": 1}]]) == ['[0][0]: "iom", now "cpi"']
    assert differences({"a": [1]}, {"a": [1, 2]}) == ["a: [1], now [1, 2]"]
