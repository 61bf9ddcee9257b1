"""COCO-style JSON, as pycocotools and inspect-shards write it, becomes masks."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from pipeline.errors import ConfigError, ItemError
from pipeline.exchange.source import MAX_MASKS
from pipeline.segmentation import decode_rle, rescale_mask
from tests.pipeline.exchange.small_masks import (
    SIZE,
    coco_document,
    manifest_of,
    mask_sets,
    opened,
    plain_rle,
    record,
    rle,
    two_masks,
    write_json,
)

SQUARE = [[2, 2, 8, 2, 8, 6, 2, 6]]


def one_image(tmp_path, annotations, size=SIZE):
    """Give the source of one image with these annotations."""
    path = write_json(
        tmp_path / "masks.json", coco_document({7: "1.jpg"}, [(7, a) for a in annotations])
    )
    return opened("coco", path, manifest_of(["1.jpg"], [size]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that hypothesis' examples share."""
    return tmp_path_factory.mktemp("coco")


@given(mask_sets(), st.sampled_from([rle, plain_rle]))
def test_masks_come_back(folder, masks, encode):
    source = one_image(folder, [{"segmentation": encode(mask)} for mask in masks], masks.shape[1:])
    found = source.masks_of(0, masks.shape[1:])
    kept = masks[masks.any((1, 2))]
    np.testing.assert_array_equal(found.masks, kept)
    assert (found.predicted_iou == 1).all()
    assert (found.stability_score == 1).all()
    # A prompt that is missing is a pixel of the mask.
    for mask, (x, y) in zip(kept, found.point.astype(int), strict=True):
        assert mask[y, x]


@given(mask_sets(), st.integers(1, 24), st.integers(1, 24))
def test_masks_of_the_image_are_scaled_to_the_canvas(folder, masks, height, width):
    source = one_image(folder, [{"segmentation": rle(mask)} for mask in masks], masks.shape[1:])
    found = source.masks_of(0, (height, width))
    scaled = [rescale_mask(mask, (height, width)) for mask in masks]
    expected = [mask for mask in scaled if mask.any()]
    np.testing.assert_array_equal(found.masks, np.array(expected).reshape(-1, height, width))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_polygons_are_painted_as_by_pycocotools(tmp_path):
    polygons = [[1, 1, 9, 1, 9, 8, 1, 8], [2.5, 0, 4, 9.5, 0.5, 9], [8.2, 3, 14, 3, 14, 5]]
    document = coco_document({7: "1.jpg"}, [(7, {"segmentation": polygons})])
    document["images"][0] |= {"height": SIZE[0], "width": SIZE[1]}
    path = write_json(tmp_path / "masks.json", document)
    found = opened("coco", path, manifest_of(["1.jpg"])).masks_of(0, SIZE)
    coco = COCO(path)
    np.testing.assert_array_equal(found.masks[0], coco.annToMask(coco.anns[0]))


@given(st.lists(st.lists(st.integers(-9, 22), min_size=6, max_size=12), min_size=1, max_size=3))
def test_any_polygons_are_painted_as_by_pycocotools(folder, polygons):
    polygons = [polygon[: len(polygon) // 2 * 2] for polygon in polygons]
    try:
        found = one_image(folder, [{"segmentation": polygons}]).masks_of(0, SIZE)
    except ItemError:
        beyond = [v for part in polygons for v in zip(part[0::2], part[1::2], strict=True)]
        assert (
            min(x for x, _ in beyond) < -SIZE[1]
            or min(y for _, y in beyond) < -SIZE[0]
            or (max(y for _, y in beyond) > 2 * SIZE[0])
        )
        return
    parts = coco_mask.frPyObjects([[float(v) for v in part] for part in polygons], *SIZE)
    expected = decode_rle(coco_mask.merge(parts)["counts"], SIZE)
    np.testing.assert_array_equal(found.masks.any(0), expected)


def test_polygons_drawn_on_the_canvas_stay_there(tmp_path):
    document = coco_document({7: "1.jpg"}, [(7, {"segmentation": SQUARE})])
    document["images"][0] |= {"height": 10, "width": 12}
    path = write_json(tmp_path / "masks.json", document)
    found = opened("coco", path, manifest_of(["1.jpg"], [(100, 120)])).masks_of(0, (10, 12))
    assert found.box.tolist() == [[2, 2, 8, 6]]


def test_scores_and_prompts_come_along(tmp_path):
    first, second = two_masks()
    annotations = [
        record(first, predicted_iou=1.01, stability_score=0.25, point_coords=[4.5, 3]),
        {"segmentation": rle(second), "score": 0.5, "predicted_iou": None},
        record(first, predicted_iou=0, point_coords=[[12, 10], [1, 1]], stability_score=None),
    ]
    found = one_image(tmp_path, annotations).masks_of(0, SIZE)
    np.testing.assert_array_equal(found.predicted_iou, np.float32([1.01, 0.5, 0]))
    np.testing.assert_array_equal(found.stability_score, np.float32([0.25, 1, 1]))
    np.testing.assert_array_equal(found.point[[0, 2]], np.float32([[4.5, 3], [12, 10]]))
    # Equal masks stay, in the order of the file.
    np.testing.assert_array_equal(found.masks, [first, second, first])
    half = one_image(tmp_path, annotations).masks_of(0, (5, 6))
    np.testing.assert_array_equal(half.point[[0, 2]], np.float32([[2.25, 1.5], [6, 5]]))


def test_empty_masks_are_left_out_and_told(tmp_path):
    empty = np.zeros(SIZE, np.bool_)
    annotations = [record(empty), record(two_masks()[0]), {"segmentation": [[20, 2, 22, 2, 22, 8]]}]
    found = one_image(tmp_path, annotations).read(0, SIZE)
    np.testing.assert_array_equal(found.masks.masks, two_masks()[:1])
    assert [note.split(": ")[-1] for note in found.notes] == [
        "2 of 3 masks cover no pixel; left out"
    ]


def test_an_image_that_is_listed_without_masks_has_none(tmp_path):
    path = write_json(
        tmp_path / "masks.json",
        coco_document({1: "1.jpg", 2: "2.jpg"}, [(2, record(two_masks()[0]))]),
    )
    source = opened("coco", path, manifest_of(["1.jpg", "2.jpg", "3.jpg"]))
    assert source.read(0, SIZE).notes == ()
    assert source.masks_of(0, SIZE).masks.shape == (0, *SIZE)
    assert len(source.masks_of(1, SIZE)) == 1
    with pytest.raises(ItemError, match=r"3\.jpg in .*masks\.json, found no entry"):
        source.masks_of(2, SIZE)


def matched(tmp_path, images, paths, image_ids=None):
    """Give, for every manifest image, the id of the entry that it got, None if it got none."""
    masks = {}
    for number, image in enumerate(images):
        masks[image] = np.zeros(SIZE, np.bool_)
        masks[image].flat[number] = True
    document = coco_document(images, [(image, record(mask)) for image, mask in masks.items()])
    for entry in document["images"]:
        if entry["file_name"] is None:
            del entry["file_name"]
    source = opened(
        "coco", write_json(tmp_path / "m.json", document), manifest_of(paths, image_ids=image_ids)
    )
    got = []
    for row in range(len(paths)):
        try:
            position = int(source.masks_of(row, SIZE).masks.argmax())
            got.append(list(images)[position])
        except ItemError:
            got.append(None)
    return got


def test_images_are_matched_by_path_then_base_name(tmp_path):
    images = {
        5: "a/1.jpg",
        6: "./b/1.jpg",
        7: "elsewhere/2.jpg",
        8: "3.jpg",
        9: "x/4.jpg",
        10: "y/4.jpg",
    }
    paths = ["b/1.jpg", "a/1.jpg", "c/2.jpg", "d/3.jpg", "e/3.jpg", "4.jpg", "5.jpg"]
    assert matched(tmp_path, images, paths) == [6, 5, 7, None, None, None, None]


def test_images_are_matched_by_id_where_the_name_agrees_or_is_missing(tmp_path):
    images = {
        581857: "000000581857.jpg",
        42: "scene-7.png",
        43: None,
        "44": "COCO_44.jpg",
        0: "000.jpg",
    }
    names = [f"COCO_train2014_{number:012d}.jpg" for number in (581857, 42, 43, 44, 0)]
    ids = ["581857", "42", "43", "44", "0"]
    assert matched(tmp_path, images, names, ids) == [581857, None, 43, "44", 0]


def test_what_is_matched_by_name_is_not_matched_by_id_again(tmp_path):
    images, ids = {9: None, 5: "5.jpg"}, ["9", "5", "1"]
    assert matched(tmp_path, images, ["5.jpg", "6.jpg", "7.jpg"], ids) == [5, None, None]


def test_masks_of_many_images_keep_their_order(tmp_path):
    masks = np.zeros((60, *SIZE), np.bool_)
    masks.reshape(60, -1)[np.arange(60), np.arange(60)] = True
    # Three images take turns; the second is not of the manifest.
    annotations = [(number % 3, record(mask)) for number, mask in enumerate(masks)]
    document = coco_document({0: "1.jpg", 1: "other.jpg", 2: "2.jpg"}, annotations)
    path = write_json(tmp_path / "m.json", document)
    source = opened("coco", path, manifest_of(["2.jpg", "1.jpg"]))
    np.testing.assert_array_equal(source.masks_of(0, SIZE).masks, masks[2::3])
    np.testing.assert_array_equal(source.masks_of(1, SIZE).masks, masks[0::3])


def test_names_in_any_script_are_matched(tmp_path):
    path = tmp_path / "m.json"
    document = coco_document({1: "Фото/é.jpg", 2: "中.jpg"}, [(1, record(two_masks()[0]))])
    manifest = manifest_of(["Фото/é.jpg", "中.jpg"])
    for ascii_only in (True, False):
        path.write_text(json.dumps(document, ensure_ascii=ascii_only), encoding="utf-8-sig")
        source = opened("coco", path, manifest)
        assert [len(source.masks_of(row, SIZE)) for row in (0, 1)] == [1, 0]


def test_annotations_of_images_that_are_not_wanted_are_passed_over(tmp_path):
    mask = two_masks()[0]
    annotations = [(99, {"segmentation": "whatever"}), (1, record(mask)), (2, {"no": "shape"})]
    path = write_json(tmp_path / "m.json", coco_document({1: "1.jpg", 2: "other.jpg"}, annotations))
    found = opened("coco", path, manifest_of(["1.jpg"])).masks_of(0, SIZE)
    np.testing.assert_array_equal(found.masks, [mask])


def test_one_bad_image_leaves_the_others_alone(tmp_path):
    annotations = [(1, record(two_masks()[0], predicted_iou="good")), (2, record(two_masks()[1]))]
    path = write_json(tmp_path / "m.json", coco_document({1: "1.jpg", 2: "2.jpg"}, annotations))
    source = opened("coco", path, manifest_of(["1.jpg", "2.jpg"]))
    with pytest.raises(
        ItemError, match=r"m\.json: 1\.jpg: mask 0: expected predicted_iou .*'good'"
    ):
        source.masks_of(0, SIZE)
    assert len(source.masks_of(1, SIZE)) == 1


TRUE_RLE = rle(two_masks()[0])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"segmentation": None}, "expected an RLE or polygons as segmentation, found none"),
        ({"segmentation": []}, "found none"),
        ({"segmentation": "mask.png"}, "found 'mask.png'"),
        ({"segmentation": True}, "found True"),
        ({"segmentation": [[1, 1, 5, 5]]}, "3 or more points"),
        ({"segmentation": [[1, 1, 5, 1, 4, float("nan")]]}, "finite"),
        ({"segmentation": [[1, 1, 5, 1, 4, 10**400]]}, "huge"),
        ({"segmentation": [[1, 1, 5, 1, 4, 1e9]]}, "near the"),
        ({"segmentation": {"counts": "0"}}, "as size of an RLE, found None"),
        ({"segmentation": {"size": [10], "counts": "0"}}, r"found \[10\]"),
        ({"segmentation": {**TRUE_RLE, "size": [12, 10]}}, "10x12 .HxW. as the image, found 12x10"),
        ({"segmentation": {**TRUE_RLE, "size": [True, 12]}}, "found Truex12"),
        ({"segmentation": {**TRUE_RLE, "size": [10.0, 12]}}, "found 10.0x12"),
        ({"segmentation": {**TRUE_RLE, "size": [10**400, 12]}}, "found 10000000000000000000x12"),
        ({"segmentation": {**TRUE_RLE, "size": [1 << 20, 1 << 20]}}, "found 1048576x1048576"),
        ({"segmentation": {**TRUE_RLE, "counts": "oooooooo0"}}, "digits"),
        ({"segmentation": {**TRUE_RLE, "counts": "\u00e9\ud800"}}, "text that is not"),
        ({"segmentation": {**TRUE_RLE, "counts": ""}}, "bytes that are not"),
        ({"segmentation": {**TRUE_RLE, "counts": None}}, "as text or list, found None"),
        ({"segmentation": {**TRUE_RLE, "counts": [100, 19]}}, "sum to 119"),
        ({"segmentation": {**TRUE_RLE, "counts": [121, 0]}}, "from 0 to 120, found 121"),
        (
            {"segmentation": {**TRUE_RLE, "counts": [60, True, 59]}},
            "integers from 0 to 120, found True",
        ),
        ({"segmentation": {**TRUE_RLE, "counts": [10**15] * 2}}, "found 1000"),
        ({"predicted_iou": float("nan")}, "predicted_iou as a number from -0.5 to 1.5, found nan"),
        ({"predicted_iou": float("inf")}, "found inf"),
        ({"predicted_iou": -0.6}, "found -0.6"),
        ({"predicted_iou": 88.0}, "found 88.0"),
        ({"predicted_iou": True}, "found True"),
        ({"predicted_iou": 10**400}, "found 1000"),
        ({"stability_score": 1.01}, "stability_score as a number from 0 to 1, found 1.01"),
        ({"stability_score": "1"}, "found '1'"),
        ({"point_coords": [1]}, "point_coords as"),
        ({"point_coords": []}, "point_coords as"),
        ({"point_coords": [[]]}, "point_coords as"),
        ({"point_coords": "ab"}, "point_coords as"),
        ({"point_coords": [[13, 1]]}, "within 10x12"),
        ({"point_coords": [[1, -1]]}, "within 10x12"),
        ({"point_coords": [[1, float("nan")]]}, "within 10x12"),
        ({"point_coords": [[True, 1]]}, "within 10x12"),
        ({"point_coords": [[10**400, 1]]}, "within 10x12"),
    ],
)
def test_bad_annotations_say_what_is_wrong(tmp_path, change, reason):
    source = one_image(tmp_path, [{**record(two_masks()[0]), **change}])
    with pytest.raises(ItemError, match=reason) as caught:
        source.masks_of(0, SIZE)
    assert str(caught.value).startswith(f"{tmp_path / 'masks.json'}: 1.jpg: mask 0: ")
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


def test_infinity_by_exponent_is_refused(tmp_path):
    path = write_json(
        tmp_path / "m.json", coco_document({1: "1.jpg"}, [(1, record(two_masks()[0]))])
    )
    path.write_text(path.read_text().replace("0.75", "1e400"))
    with pytest.raises(ItemError, match="found inf"):
        opened("coco", path, manifest_of(["1.jpg"])).masks_of(0, SIZE)


def test_too_many_masks_of_one_image_are_refused(tmp_path):
    source = one_image(tmp_path, [{"segmentation": TRUE_RLE}] * (MAX_MASKS + 1))
    with pytest.raises(ItemError, match=f"at most {MAX_MASKS} masks, found {MAX_MASKS + 1}"):
        source.masks_of(0, SIZE)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", r"expected \{ at byte 0 of .*, found its end"),
        ("[]", r"expected \{ at byte 0 of .*, found '\[\]'"),
        ("null", r"expected \{"),
        ("{}", "expected key 'images' before at byte 2"),
        ('{"images": []}', "expected key 'annotations'"),
        ('{"images": {}, "annotations": []}', r"expected \[ at byte 11"),
        ('{"images": [], "annotations": []', "expected , or } at byte 32 .* found its end"),
        ('{"images": [], "annotations": []} x', "expected nothing more at byte 34"),
        ('{"images": [], "images": []}', "expected key 'images' once"),
        ('{images: []}', "expected a key at byte 1"),
        ('{"images" []}', "expected : at byte 10"),
        ('{"images": [{"id": 1},]}', "expected a value"),
        ('{"images": [{"id": 1} {"id": 2}]}', "expected , or ]"),
        ('{"images": [1]}', r"integer or text as id in images\[0\]"),
        ('{"images": [{"id": true}]}', r"images\[0\] .* found True"),
        ('{"images": [{"id": 1.0}]}', r"images\[0\] .* found 1.0"),
        ('{"images": [{"id": 1}, {"id": 1}]}', "id 1 twice"),
        ('{"images": [{"id": 1, "file_name": 5}]}', "expected text as file_name"),
        ('{"annotations": [[]]}', r"as image_id in annotations\[0\]"),
        ('{"annotations": [{"id": 1}]}', r"as image_id in annotations\[0\] .* found None"),
        ('{"images": [{"id": "1"}], "annotations": [{"image_id": 1}]}', "images does not list"),
        ('{"images": [{"id": 1, "file_name": "x.jpg"}], "annotations": []}', "found none among 1"),
        ('{"images": [], "annotations": []}', "such as 1.jpg, found none among 0"),
        ('{"images": [{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": "./1.jpg"}], '
         '"annotations": []}', "found '1.jpg' twice"),
        ('{"images": [{"id": ' + "9" * 5000 + "}]}", "expected a plain value"),
        ('{"info": ' + "[" * 100_000 + "}", "expected a plain value"),
    ],
)  # fmt: skip
def test_files_of_another_structure_say_what_is_wrong(tmp_path, text, reason):
    path = tmp_path / "masks.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=reason) as caught:
        opened("coco", path, manifest_of(["1.jpg"]))
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_files_that_cannot_be_read_say_so(tmp_path):
    for path in (tmp_path / "none.json", tmp_path, tmp_path / "nul\0.json"):
        with pytest.raises(ConfigError, match="cannot be read"):
            opened("coco", path, manifest_of(["1.jpg"]))
    path = tmp_path / "latin.json"
    path.write_bytes('{"images": [{"id": 1, "file_name": "é"}]}'.encode("latin-1"))
    with pytest.raises(ConfigError, match="expected text in UTF-8"):
        opened("coco", path, manifest_of(["1.jpg"]))


def test_a_file_that_changed_after_it_was_opened_is_an_item_error(tmp_path):
    source = one_image(tmp_path, [record(two_masks()[0])])
    path = tmp_path / "masks.json"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ItemError, match="damaged or truncated"):
        source.masks_of(0, SIZE)
    path.unlink()
    with pytest.raises(ItemError, match="cannot be read"):
        source.masks_of(0, SIZE)
