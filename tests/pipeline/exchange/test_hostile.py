"""Whatever a file holds, a reader gives sound masks or one line of ConfigError or ItemError."""

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pipeline.exchange.small_masks import (
    SIZE,
    coco_document,
    manifest_of,
    opened,
    plain_rle,
    read_or_refuse,
    record,
    semires_rle,
    two_masks,
    write_json,
)

FIRST, SECOND = two_masks()
SHAPES = [{"segmentation": plain_rle(SECOND)}, {"segmentation": [[2, 2, 8, 2, 8, 6, 2, 6]]}]
DOCUMENTS = {
    "coco": coco_document(
        {1: "1.jpg", 2: "2.jpg"},
        [(1, record(FIRST)), (1, SHAPES[0]), (2, SHAPES[1]), (2, record(SECOND, score=0.5))],
    ),
    "amg": {"image": {"height": 10, "width": 12}, "annotations": [record(FIRST), *SHAPES]},
    "semires": [semires_rle(FIRST), semires_rle(SECOND)],
}
MANIFEST = manifest_of(["1.jpg", "2.jpg"])
OTHERS = [
    None, True, False, 0, 1, -1, 3, 1.5, -0.0, float("nan"), float("inf"), float("-inf"), 10**400,
    2**31, 2**63, 2**64, "", "0", "1", "1.jpg", "\ud800", "../../etc/passwd", "\0", "o" * 40, [],
    {}, [[]], [None], [0], [1, 2], [0, 120], [10**9] * 3, {"size": [10, 12]},
    {"counts": "0", "size": []},
]  # fmt: skip


def place(format_name, folder):
    """Give the file of a source and the path to open it by."""
    names = {"coco": "m.json", "amg": "1.json", "semires": "ref-0.json", "npz": "1.npz"}
    file = folder / names[format_name]
    return file, file if format_name == "coco" else folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that hypothesis' examples share."""
    return tmp_path_factory.mktemp("hostile")


def nodes(value, way=()):
    """Give the way to every value in a document."""
    yield way
    inner = value if isinstance(value, dict) else {}
    if isinstance(value, list):
        inner = dict(enumerate(value))
    for key in inner:
        yield from nodes(inner[key], (*way, key))


def changed(value, way, other):
    """Give a document with another value at the end of the way."""
    if not way:
        return other
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[way[0]] = changed(value[way[0]], way[1:], other)
    return copy


@pytest.mark.parametrize("format_name", DOCUMENTS)
def test_every_value_replaced_by_every_other(format_name, tmp_path):
    file, path = place(format_name, tmp_path)
    document = DOCUMENTS[format_name]
    ways = list(nodes(document))
    for number, way in enumerate(ways):
        for other in OTHERS[number % 3 :: 3]:
            write_json(file, changed(document, way, other))
            read_or_refuse(format_name, path, MANIFEST)


@pytest.mark.parametrize("format_name", DOCUMENTS)
@settings(max_examples=150)
@given(data=st.data())
def test_several_values_replaced_at_once(format_name, folder, data):
    file, path = place(format_name, folder)
    document = DOCUMENTS[format_name]
    for _ in range(data.draw(st.integers(1, 4))):
        way = data.draw(st.sampled_from(list(nodes(document))))
        document = changed(document, way, data.draw(st.sampled_from(OTHERS)))
    write_json(file, document)
    read_or_refuse(format_name, path, MANIFEST)


def valid_bytes(format_name):
    """Give the content of a valid file."""
    if format_name != "npz":
        return json.dumps(DOCUMENTS[format_name]).encode()
    buffer = io.BytesIO()
    np.savez(buffer, masks=two_masks(), predicted_iou=np.float32([0.5, 0.75]))
    return buffer.getvalue()


@st.composite
def damage(draw, content):
    """Cut, overwrite, insert or repeat bytes."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        length = draw(st.sampled_from([0, 1, 2, 8, 100]))
        new = draw(st.binary(max_size=4) | st.sampled_from([b"9" * 30, b"[[", b'"', b"-", b"\xff"]))
        content[at : at + length] = new
        if draw(st.booleans()):
            content = content[: draw(st.integers(0, len(content)))] or content
    return bytes(content)


@pytest.mark.parametrize("format_name", [*DOCUMENTS, "npz"])
@settings(max_examples=150)
@given(data=st.data())
def test_damaged_bytes(format_name, folder, data):
    file, path = place(format_name, folder)
    file.write_bytes(data.draw(damage(valid_bytes(format_name))))
    read_or_refuse(format_name, path, MANIFEST)


@pytest.mark.parametrize("format_name", [*DOCUMENTS, "npz"])
@given(content=st.binary(max_size=200))
def test_any_bytes(format_name, folder, content):
    file, path = place(format_name, folder)
    file.write_bytes(content)
    read_or_refuse(format_name, path, MANIFEST)


@pytest.mark.parametrize("format_name", [*DOCUMENTS, "npz"])
def test_the_undamaged_file_is_read(format_name, tmp_path):
    """Without this the tests above would pass if everything was refused."""
    file, path = place(format_name, tmp_path)
    file.write_bytes(valid_bytes(format_name))
    assert len(opened(format_name, path, MANIFEST).masks_of(0, SIZE)) >= 2
