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


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusing:
    inner: Inner = field(default_factory=Inner)
    only: bool = False

    def __post_init__(self):
        if self.only:
            raise ConfigError("expected either, found both")


def test_what_a_section_refuses_by_itself_is_named_with_its_place():
    with pytest.raises(ConfigError, match=r"^stages.yaml: data: expected either, found both$"):
        parse_config(Refusing, {"only": True}, "stages.yaml: data")


@pytest.mark.parametrize("url", ["s3://bucket/images", "S3://b/c", "file:///data/images"])
def test_a_url_is_no_path(url):
    with pytest.raises(ConfigError) as caught:
        parse_config(Outer, {"name": "x", "path": url}, "stages.yaml: data")
    assert str(caught.value) == (
        f"stages.yaml: data.path: expected a path on a disk, found the URL '{url}'; copy the "
        "files to a disk, or mount them there"
    )


def test_credentials_of_a_url_are_not_repeated():
    with pytest.raises(ConfigError, match=r"s3://\*\*\*@bucket") as caught:
        parse_config(Outer, {"name": "x", "path": "s3://user:word@bucket/a"}, "here")
    assert "word" not in str(caught.value)


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


def test_of_another_kind_nothing_but_its_name_is_told():
    old = {"chain": [{"name": "iom", "config": {"min_iou": 0.5}}, {"name": "pwa", "weight": "psi"}]}
    new = {"chain": [{"name": "cpi", "config": {"a": 1, "b": 2}}, {"name": "pwa", "weight": "one"}]}
    assert differences(old, new) == [
        'chain[0].name: "iom", now "cpi"',
        'chain[1].weight: "psi", now "one"',
    ]
    assert differences({"name": "a", "x": 1}, {"x": 2}) == ['name: "a", now null', "x: 1, now 2"]


NAMED = st.fixed_dictionaries({"name": st.sampled_from("ab")}, optional={"x": st.integers(0, 2)})


@given(NAMED, NAMED)
def test_differences_are_none_just_where_values_are_equal(old, new):
    assert (differences(old, new) == []) == (old == new)
