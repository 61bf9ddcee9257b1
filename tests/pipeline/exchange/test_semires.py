"""The released SemiRES files, one per ref, become the masks of images."""

import json

import numpy as np
import pytest
from hypothesis import given

from pipeline.errors import ItemError
from tests.pipeline.exchange.small_masks import (
    SIZE,
    manifest_of,
    mask_sets,
    opened,
    semires_rle,
    two_masks,
    write_json,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that hypothesis' examples share."""
    return tmp_path_factory.mktemp("sam_rle_mask")


def write_refs(folder, **masks):
    """Write r3745=masks as 3745.json."""
    for name, own in masks.items():
        write_json(folder / f"{name[1:]}.json", [semires_rle(mask) for mask in own])


def one_image(folder, refs):
    return opened("semires", folder, manifest_of(["1.jpg"], refs=[refs]))


def distinct(masks):
    """Give the masks that are not empty, each once, in their order."""
    seen = {mask.tobytes(): mask for mask in masks if mask.any()}
    return np.array(list(seen.values())).reshape(-1, *masks.shape[1:])


def test_the_structure_of_the_file_by_hand(tmp_path):
    write_json(tmp_path / "3745.json", [{"counts": [2, 1, 5, 2], "size": [2, 3]}])
    source = opened("semires", tmp_path, manifest_of(["1.jpg"], [(2, 3)], refs=[["3745"]]))
    found = source.masks_of(0, (2, 3))
    np.testing.assert_array_equal(found.masks, [[[0, 0, 1], [1, 0, 1]]])
    assert found.predicted_iou.tolist() == found.stability_score.tolist() == [1.0]


@given(mask_sets())
def test_masks_come_back(folder, masks):
    write_refs(folder, r1=masks, r2=masks)
    size = masks.shape[1:]
    source = opened("semires", folder, manifest_of(["1.jpg"], [size], refs=[["1", "2"]]))
    found = source.read(0, size)
    np.testing.assert_array_equal(found.masks.masks, distinct(masks))
    assert not [note for note in found.notes if "cover no pixel" not in note]


@given(mask_sets(max_side=3), mask_sets(max_side=3))
def test_files_that_differ_are_united(folder, first, second):
    size = (4, 4)
    first, second = (
        np.pad(m, ((0, 0), (0, 4 - m.shape[1]), (0, 4 - m.shape[2]))) for m in (first, second)
    )
    write_refs(folder, r1=first, r2=second)
    found = opened("semires", folder, manifest_of(["1.jpg"], [size], refs=[["1", "2"]])).read(
        0, size
    )
    both = np.concatenate([first, second])
    np.testing.assert_array_equal(found.masks.masks, distinct(both))
    differ = {mask.tobytes() for mask in first} != {mask.tobytes() for mask in second}
    assert any("1.json, 2.json hold different masks" in note for note in found.notes) == differ


@pytest.mark.parametrize("length", [0, 1, 40, -1])
def test_a_truncated_file_is_replaced_by_that_of_another_ref(tmp_path, length):
    write_refs(tmp_path, r11=two_masks(), r12=two_masks())
    cut = tmp_path / "11.json"
    cut.write_bytes(cut.read_bytes()[:length])
    found = one_image(tmp_path, ["10", "11", "12"]).read(0, SIZE)
    np.testing.assert_array_equal(found.masks.masks, two_masks())
    (note,) = found.notes
    assert str(cut) in note
    assert note.endswith("; 12.json stands in for it")
    assert "\n" not in note


def test_images_whose_files_are_all_damaged_say_so(tmp_path):
    (tmp_path / "11.json").write_text('[{"counts": [1,')
    (tmp_path / "12.json").write_text('[{"cou')
    source = one_image(tmp_path, ["11", "12"])
    with pytest.raises(ItemError, match=r"11\.json.*nor 1 more .* no other file of 1\.jpg"):
        source.masks_of(0, SIZE)


def test_images_get_the_files_of_their_own_refs(tmp_path):
    first, second = two_masks()
    write_refs(tmp_path, r1=[first], r3=[second])
    manifest = manifest_of(["1.jpg", "2.jpg", "3.jpg"], refs=[["1", "2"], ["3", "3"], ["4"]])
    source = opened("semires", tmp_path, manifest)
    np.testing.assert_array_equal(source.masks_of(0, SIZE).masks, [first])
    np.testing.assert_array_equal(source.masks_of(1, SIZE).masks, [second])
    assert source.read(0, SIZE).notes == ()
    with pytest.raises(ItemError, match=r"masks of 3\.jpg in .*, found no file of its refs \(4\)"):
        source.masks_of(2, SIZE)


def test_an_id_leads_nowhere_else(tmp_path):
    inside = tmp_path / "masks"
    write_refs(inside, r1=two_masks()[:1])
    write_refs(tmp_path, r7=two_masks())
    refs = ["../7", f"{tmp_path}/7", "..", "", "nul\0", "x" * 300, "1"]
    found = one_image(inside, refs).read(0, SIZE)
    np.testing.assert_array_equal(found.masks.masks, two_masks()[:1])


def test_an_empty_list_is_a_valid_result(tmp_path):
    write_refs(tmp_path, r1=[])
    assert len(one_image(tmp_path, ["1"]).masks_of(0, SIZE)) == 0


GOOD = semires_rle(two_masks()[0])


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({}, "expected a list of masks in .* found dict"),
        (None, "found NoneType"),
        ([GOOD, 7], "mask 1: expected an object with counts and size, found 7"),
        ([{**GOOD, "size": [12, 10]}], "mask 0: expected a mask of 10x12"),
        ([{**GOOD, "size": "10x12"}], "mask 0: expected an object with counts and size"),
        ([{**GOOD, "counts": "1 2"}], "expected a list as counts, found '1 2'"),
        ([{**GOOD, "counts": [1]}], "pairs of start and length"),
        ([{**GOOD, "counts": [1, 121]}], "from 0 to 120, found 121"),
        ([{**GOOD, "counts": [120, 2]}], "ends at 121"),
        ([{**GOOD, "counts": [1, 10**400]}], "found 1000"),
        ([{**GOOD, "counts": [1, float("nan")]}], "found nan"),
        ([{**GOOD, "counts": [1, -5]}], "found -5"),
        ([{**GOOD, "counts": [1, True]}], "found True"),
    ],
)
def test_bad_files_say_what_is_wrong(tmp_path, document, reason):
    write_json(tmp_path / "1.json", document)
    with pytest.raises(ItemError, match=reason) as caught:
        one_image(tmp_path, ["1"]).masks_of(0, SIZE)
    assert str(tmp_path / "1.json") in str(caught.value)
    # Beside a good file it is a note.
    write_refs(tmp_path, r2=two_masks())
    found = one_image(tmp_path, ["1", "2"]).read(0, SIZE)
    np.testing.assert_array_equal(found.masks.masks, two_masks())
    assert json.dumps(found.notes).count("stands in") == 1
