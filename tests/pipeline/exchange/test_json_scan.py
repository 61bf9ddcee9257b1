"""A JSON file is walked through piece by piece, with what json.loads would give."""

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.exchange import json_scan
from pipeline.exchange.json_scan import scan_sections

plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
values = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A file that hypothesis' examples share."""
    return tmp_path_factory.mktemp("scan") / "file.json"


@given(
    st.dictionaries(st.text(max_size=4), values, max_size=3),
    st.lists(values, max_size=6),
    st.lists(values, max_size=6),
    st.integers(1, 40),
    st.sampled_from([None, 1, "\t"]),
    st.booleans(),
)
def test_elements_are_those_of_json(path, others, images, annotations, chunk, indent, ascii_only):
    document = {"annotations": annotations, **others, "images": images}
    content = json.dumps(document, indent=indent, ensure_ascii=ascii_only).encode()
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_scan, "_CHUNK_BYTES", chunk)  # so that everything meets a border
        found = list(scan_sections(path, ("images", "annotations")))
    document = json.loads(content)
    for section in ("images", "annotations"):
        own = [element for element in found if element.section == section]
        assert [element.value for element in own] == document[section]
        assert [element.number for element in own] == list(range(len(own)))
        for element in own:
            assert json.loads(content[element.start : element.stop]) == element.value


@given(st.lists(values, min_size=1, max_size=3), st.integers(1, 20), st.data())
def test_a_file_cut_anywhere_is_refused(path, images, chunk, data):
    content = json.dumps({"images": images}).encode()
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_scan, "_CHUNK_BYTES", chunk)
        with pytest.raises(ConfigError, match="is the file JSON, and whole"):
            list(scan_sections(path, ("images",)))


@given(st.binary(max_size=80), st.integers(1, 20))
def test_any_bytes_are_refused_or_json(path, content, chunk):
    path.write_bytes(b'{"images": [' + content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_scan, "_CHUNK_BYTES", chunk)
        try:
            found = [element.value for element in scan_sections(path, ("images",))]
        except ConfigError:
            return
    assert found == json.loads(path.read_bytes())["images"]


def test_an_element_beyond_the_limit_is_refused(path, monkeypatch):
    monkeypatch.setattr(json_scan, "_CHUNK_BYTES", 1 << 4)
    monkeypatch.setattr(json_scan, "_MAX_VALUE_BYTES", 1 << 10)
    path.write_text(json.dumps({"images": ["x" * 500, "x" * 5000]}))
    with pytest.raises(ConfigError, match="expected a value at byte 516"):
        list(scan_sections(path, ("images",)))


def test_a_file_is_not_held_in_memory(path):
    entry = {"image_id": 1, "segmentation": {"counts": "1" * 30_000, "size": [640, 480]}}
    path.write_text(json.dumps({"annotations": [entry] * 300, "images": []}))
    tracemalloc.start()
    try:
        count = sum(1 for _ in scan_sections(path, ("annotations",)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 300
    assert path.stat().st_size > 8_000_000
    assert peak < 5_000_000
