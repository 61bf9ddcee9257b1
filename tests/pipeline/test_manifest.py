"""Columns come back from disk as they went, and a damaged manifest says what is wrong."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.columns import portable_path
from pipeline.errors import ManifestError
from pipeline.manifest import (
    Manifest,
    StringColumn,
    load_manifest,
    manifest_fingerprint,
    read_description,
    write_manifest,
)
from pipeline.segmentation import encode_mask

texts = st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=20), max_size=20)
MASK = np.zeros((4, 8), np.bool_)
MASK[1:3, 2:6] = True


def columns():
    strings = StringColumn.from_strings
    return {
        "image_id": strings(["a", "b", "c"]),
        "image_path": strings(["a.jpg", "ünï/b.jpg", "c.jpg"]),
        "image_sha256": strings(["0" * 64, "1" * 64, "2" * 64]),
        "image_size": np.array([[4, 8], [5, 5], [6, 7]], np.int32),
        "image_labelled": np.array([True, False, False]),
        "object_id": strings(["1", "2", "3", "4"]),
        "object_image": np.array([0, 0, 1, 2], np.int32),
        "object_category": strings(["cat", "", "dog", ""]),
        "object_split": np.array([0, 0, 0, 1], np.uint8),
        "object_rle": strings([encode_mask(MASK), b"", b"", b""]),
        "expression_object": np.array([0, 0, 1, 2, 3], np.int32),
        "expression_text": strings(["left cat", "cat", "that", "dog", "猫"]),
    }


@pytest.fixture
def manifest(tmp_path):
    return Manifest(
        image_root=tmp_path / "images",
        fingerprint=manifest_fingerprint(columns()),
        **columns(),
    )


@given(texts)
def test_string_column_round_trip(rows):
    column = StringColumn.from_strings(rows)
    assert list(column) == rows
    assert len(column) == len(rows)
    assert [column[row] for row in range(len(rows))] == rows
    assert column.lengths().tolist() == [len(row.encode()) for row in rows]


@given(st.lists(st.binary(max_size=10), max_size=10))
def test_string_column_holds_any_bytes(rows):
    column = StringColumn.from_strings(rows)
    assert [column.bytes_at(row) for row in range(len(rows))] == rows
    assert [column.bytes_at(row - len(rows)) for row in range(len(rows))] == rows


def test_string_column_has_ends():
    column = StringColumn.from_strings(["a", "b"])
    assert column[-1] == "b"
    for row in (2, -3):
        with pytest.raises(IndexError, match=f"row {row} of a column of 2"):
            column[row]


def test_string_column_refuses_offsets_that_do_not_fit():
    with pytest.raises(ValueError, match="from 0 to 3, found 0 to 2"):
        StringColumn(np.zeros(3, np.uint8), np.array([0, 2]))


def test_rows_of_splits_and_labels_by_hand(manifest):
    assert (manifest.num_images, manifest.num_objects, manifest.num_expressions) == (3, 4, 5)
    assert manifest.expression_image.tolist() == [0, 0, 0, 1, 2]
    assert manifest.expressions_of("train").tolist() == [0, 1, 2, 3]
    assert manifest.expressions_of("train", labelled=True).tolist() == [0, 1, 2]
    assert manifest.expressions_of("train", labelled=False).tolist() == [3]
    assert manifest.expressions_of("val").tolist() == [4]
    assert manifest.expressions_of("test").tolist() == []
    assert manifest.images_of("train").tolist() == [0, 1]
    assert manifest.images_of("val").tolist() == [2]
    assert manifest.size_of(2) == (6, 7)
    with pytest.raises(ManifestError, match="'dev'"):
        manifest.expressions_of("dev")


def test_truth_at_the_canvas_and_none(manifest):
    np.testing.assert_array_equal(manifest.truth(0, None), MASK)
    np.testing.assert_array_equal(manifest.truth(0, 4), [[0, 1, 1, 0], [0, 0, 0, 0]])
    assert manifest.truth(1, None) is None


def test_manifest_comes_back_from_disk(manifest, tmp_path):
    folder = tmp_path / "manifest"
    write_manifest(folder, manifest, description={"note": 1}, extra={"more.txt": b"more"})
    back = load_manifest(folder, verify=True)
    for name, column in columns().items():
        found = getattr(back, name)
        if isinstance(column, StringColumn):
            assert [found.bytes_at(row) for row in range(len(found))] == [
                column.bytes_at(row) for row in range(len(column))
            ]
        else:
            np.testing.assert_array_equal(found, column)
            assert found.dtype == column.dtype
            assert not found.flags.writeable
    assert back.fingerprint == manifest.fingerprint
    assert back.image_file(1) == tmp_path / "images" / "ünï" / "b.jpg"
    assert (folder / "more.txt").read_bytes() == b"more"
    assert read_description(folder)["note"] == 1
    assert not list(tmp_path.glob("*.making"))


def test_an_empty_manifest_comes_back(tmp_path):
    empty = {
        name: StringColumn.from_strings([]) if isinstance(column, StringColumn) else column[:0]
        for name, column in columns().items()
    }
    manifest = Manifest(image_root=tmp_path, fingerprint=manifest_fingerprint(empty), **empty)
    write_manifest(tmp_path / "manifest", manifest, description={})
    back = load_manifest(tmp_path / "manifest", verify=True)
    assert back.num_images == 0
    assert back.expressions_of("train").tolist() == []


def test_the_same_manifest_gives_the_same_bytes(manifest, tmp_path):
    for name in ("one", "two"):
        root = tmp_path / name / "images"
        write_manifest(
            tmp_path / name / "manifest",
            dataclasses.replace(manifest, image_root=root),
            description={},
        )
    for path in (tmp_path / "one" / "manifest").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / "manifest" / path.name).read_bytes()


def test_a_run_directory_can_move(manifest, tmp_path):
    write_manifest(tmp_path / "run" / "manifest", dataclasses.replace(
        manifest, image_root=tmp_path / "run" / "images"), description={})  # fmt: skip
    (tmp_path / "run").rename(tmp_path / "moved")
    assert load_manifest(tmp_path / "moved" / "manifest").image_root == tmp_path / "moved/images"


def test_portable_path_is_relative_within_the_run_only(tmp_path):
    folder = tmp_path / "run" / "manifest"
    assert portable_path(tmp_path / "run" / "scenes", folder) == "../scenes"
    assert portable_path(tmp_path / "data", folder) == (tmp_path / "data").as_posix()


@pytest.mark.parametrize("name", sorted(columns()))
def test_the_fingerprint_covers_every_column(name):
    changed = columns()
    column = changed[name]
    if isinstance(column, StringColumn):
        rows = [column.bytes_at(row) for row in range(len(column))]
        changed[name] = StringColumn.from_strings([*rows[:-1], b"other"])
    else:
        changed[name] = column.copy()
        changed[name].flat[-1] ^= 1
    assert manifest_fingerprint(changed) != manifest_fingerprint(columns())


def test_the_fingerprint_knows_rows_from_joined_rows():
    one, other = columns(), columns()
    one["image_id"] = StringColumn.from_strings(["ab", "", "c"])
    other["image_id"] = StringColumn.from_strings(["a", "b", "c"])
    assert manifest_fingerprint(one) != manifest_fingerprint(other)


def test_write_manifest_never_overwrites(manifest, tmp_path):
    write_manifest(tmp_path / "manifest", manifest, description={})
    with pytest.raises(ManifestError, match="choose another run directory"):
        write_manifest(tmp_path / "manifest", manifest, description={})


def test_a_killed_run_leaves_no_manifest_and_is_no_obstacle(manifest, tmp_path):
    making = tmp_path / "manifest.making"
    making.mkdir()
    (making / "image_size.npy").write_bytes(b"half")
    with pytest.raises(ManifestError, match="run prepare-data first"):
        load_manifest(tmp_path / "manifest")
    write_manifest(tmp_path / "manifest", manifest, description={})
    assert load_manifest(tmp_path / "manifest", verify=True).num_images == 3


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("image_size", np.zeros((3, 2), np.int64), "column image_size as int32"),
        ("image_size", np.zeros((3, 3), np.int32), "column image_size as int32"),
        ("image_labelled", np.zeros(2, np.bool_), "image columns of one length"),
        ("object_image", np.array([0, 0, 1, 3], np.int32), "object_image to rise"),
        ("object_image", np.array([1, 0, 1, 2], np.int32), "object_image to rise"),
        ("expression_object", np.array([-1, 0, 1, 2, 3], np.int32), "expression_object to rise"),
        ("object_split", np.array([0, 0, 0, 5], np.uint8), "object_split below 5"),
    ],
)
def test_columns_that_do_not_fit_are_refused(name, value, reason, tmp_path):
    with pytest.raises(ManifestError, match=reason):
        Manifest(image_root=tmp_path, fingerprint="", **{**columns(), name: value})


def test_damage_on_disk_is_one_line(manifest, tmp_path):
    folder = tmp_path / "manifest"

    def fresh():
        for path in folder.iterdir() if folder.exists() else ():
            path.unlink()
        if folder.exists():
            folder.rmdir()
        write_manifest(folder, manifest, description={})

    def refused(reason, *, verify=False):
        with pytest.raises(ManifestError, match=reason) as caught:
            load_manifest(folder, verify=verify)
        assert "\n" not in str(caught.value)

    fresh()
    (folder / "object_image.npy").unlink()
    refused("missing or damaged")
    fresh()
    path = folder / "image_path.data.npy"
    path.write_bytes(path.read_bytes()[:-3])
    refused("missing or damaged")
    fresh()
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert load_manifest(folder).num_images == 3
    refused("image_path.data.npy is missing or damaged", verify=True)
    fresh()
    np.save(folder / "image_labelled.npy", np.array([None, 1, 2]), allow_pickle=True)
    refused("missing or damaged")
    fresh()
    document = json.loads((folder / "manifest.json").read_text())
    for key, value, reason in [
        ("format", "semires-manifest-0", "expected format"),
        ("counts", {"images": 4, "objects": 4, "expressions": 5}, "'images': 4"),
    ]:
        (folder / "manifest.json").write_text(json.dumps({**document, key: value}))
        refused(reason)
    del document["files"]
    (folder / "manifest.json").write_text(json.dumps(document))
    refused("lacks")
    (folder / "manifest.json").write_text("{")
    refused("damaged")
