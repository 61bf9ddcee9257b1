"""A folder of JSON files, as segment-anything's scripts/amg.py writes them, becomes masks."""

import json

import numpy as np
import pytest
from hypothesis import given

from pipeline.errors import ConfigError, ItemError
from pipeline.sam.tiny import load_vit_tiny_demo
from pipeline.torchvision_ops import ensure_importable
from tests.pipeline.exchange.small_masks import (
    SIZE,
    manifest_of,
    mask_sets,
    opened,
    plain_rle,
    record,
    two_masks,
    write_json,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that hypothesis' examples share."""
    return tmp_path_factory.mktemp("amg")


@given(mask_sets())
def test_masks_and_scores_come_back(folder, masks):
    size = masks.shape[1:]
    records = [
        record(mask, predicted_iou=0.5 + number / 16, point_coords=[[number / 8, 0.5]])
        for number, mask in enumerate(masks)
    ]
    write_json(folder / "1.json", records)
    found = opened("amg", folder, manifest_of(["1.jpg"], [size])).masks_of(0, size)
    kept = np.flatnonzero(masks.any((1, 2)))
    np.testing.assert_array_equal(found.masks, masks[kept])
    np.testing.assert_array_equal(found.predicted_iou, 0.5 + kept / 16)
    np.testing.assert_array_equal(found.point, np.stack([kept / 8, kept * 0 + 0.5], 1))
    assert (found.stability_score == 0.5).all()


def test_what_segment_anything_writes_is_read(tmp_path, monkeypatch):
    """Its own generator writes as amg.py does; its other output mode says what the masks are."""
    ensure_importable()
    from segment_anything import SamAutomaticMaskGenerator, automatic_mask_generator

    # Needs torchvision's compiled operators; which masks are kept does not matter here.
    monkeypatch.setattr(
        automatic_mask_generator, "batched_nms", lambda _boxes, scores, *_, **__: scores.argsort()
    )
    image = np.zeros((40, 60, 3), np.uint8)
    image[8:30, 10:35] = [200, 40, 40]
    image[20:36, 30:55] = [40, 40, 220]
    options = {"points_per_side": 3, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    sam, size = load_vit_tiny_demo(), (40, 60)
    written, plain = (
        SamAutomaticMaskGenerator(sam, output_mode=mode, **options).generate(image)
        for mode in ("coco_rle", "binary_mask")
    )
    assert len(written) > 2
    write_json(tmp_path / "1.json", written)
    found = opened("amg", tmp_path, manifest_of(["1.jpg"], [size])).masks_of(0, size)
    np.testing.assert_array_equal(found.masks, [entry["segmentation"] for entry in plain])
    for name in ("predicted_iou", "stability_score"):
        expected = np.float32([entry[name] for entry in plain])
        np.testing.assert_array_equal(getattr(found, name), expected)
    points = [entry["point_coords"][0] for entry in plain]
    np.testing.assert_array_equal(found.point, np.float32(points))


def test_an_empty_mask_may_have_any_score(tmp_path):
    """segment-anything gives one that it kept a stability of 0 / 0."""
    empty = record(np.zeros(SIZE, np.bool_), stability_score=float("nan"))
    write_json(tmp_path / "1.json", [empty, record(two_masks()[0])])
    found = opened("amg", tmp_path, manifest_of(["1.jpg"])).read(0, SIZE)
    np.testing.assert_array_equal(found.masks.masks, two_masks()[:1])
    assert len(found.notes) == 1


def test_uncompressed_runs_are_read_too(tmp_path):
    records = [record(mask, segmentation=plain_rle(mask)) for mask in two_masks()]
    write_json(tmp_path / "1.json", records)
    found = opened("amg", tmp_path, manifest_of(["1.jpg"])).masks_of(0, SIZE)
    np.testing.assert_array_equal(found.masks, two_masks())


def test_the_envelope_of_sa_1b_is_opened(tmp_path):
    image = {"image_id": 1, "width": 12, "height": 10, "file_name": "sa_1.jpg"}
    document = {"image": image, "annotations": [record(mask) for mask in two_masks()]}
    path = write_json(tmp_path / "sa_1.json", document)
    source = opened("amg", tmp_path, manifest_of(["sa_1.jpg"]))
    np.testing.assert_array_equal(source.masks_of(0, SIZE).masks, two_masks())
    write_json(path, {**document, "image": {**image, "width": 11}})
    with pytest.raises(ItemError, match="found 10x11; do the masks belong"):
        source.masks_of(0, SIZE)


def found_for(tmp_path, paths):
    """Give, for every image, the x of the one pixel in its file, None where there is none."""
    source = opened("amg", tmp_path, manifest_of(paths))
    got = []
    for row in range(len(paths)):
        try:
            got.append(int(source.masks_of(row, SIZE).box[0, 0]))
        except ItemError:
            got.append(None)
    return got


def write_pixel(path, x):
    """Write a file whose mask is the pixel (x, 0)."""
    mask = np.zeros(SIZE, np.bool_)
    mask[0, x] = True
    write_json(path, [record(mask)])


def test_files_lie_beside_the_path_or_under_the_base_name(tmp_path):
    write_pixel(tmp_path / "a" / "1.json", 1)
    write_pixel(tmp_path / "1.json", 9)  # of a/1.jpg or b/1.jpg: nobody knows
    write_pixel(tmp_path / "2.json", 2)
    write_pixel(tmp_path / "3.tar.json", 3)
    write_pixel(tmp_path / "4.json", 4)  # of 4.jpg or 4.png
    paths = ["a/1.jpg", "b/1.jpg", "c/2.jpg", "3.tar.jpg", "4.jpg", "4.png", "5.jpg"]
    assert found_for(tmp_path, paths) == [1, None, 2, 3, None, None, None]


def test_no_name_leads_out_of_the_folder(tmp_path):
    inside = tmp_path / "masks"
    for name in ("out", "etc"):
        write_pixel(tmp_path / f"{name}.json", 1)
    write_pixel(inside / "in.json", 2)
    paths = [
        "../out.jpg",
        "a/../../etc.jpg",
        f"{tmp_path}/out2.jpg",
        "../in.jpg",
        "x" * 300 + ".jpg",
    ]
    assert found_for(inside, paths) == [None, None, None, 2, None]


def test_names_that_two_images_share_say_so(tmp_path):
    write_pixel(tmp_path / "4.json", 4)
    write_pixel(tmp_path / "5.json", 5)
    source = opened("amg", tmp_path, manifest_of(["4.jpg", "4.png", "5.jpg", "6.jpg"]))
    with pytest.raises(ItemError, match=r"masks of 4\.png, found 2 images that share '4\.json'"):
        source.masks_of(1, SIZE)
    with pytest.raises(ItemError, match=r"expected masks in 6\.json of .* found no such file"):
        source.masks_of(3, SIZE)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "damaged or truncated"),
        (b"[", "damaged or truncated"),
        (b"\xff\xfe\x00", "damaged or truncated"),
        (b"[" * 100_000, "damaged or truncated"),
        (b"[" + b"9" * 5000 + b"]", "damaged or truncated"),
        (b"null", "another structure"),
        (b"3", "another structure"),
        (b"{}", "another structure"),
        (b'{"annotations": {}}', "another structure"),
        (b"[7]", "mask 0: expected an object with segmentation, found 7"),
        (b"[{}]", "mask 0: expected an RLE or polygons as segmentation, found none"),
    ],
)
def test_files_that_cannot_be_used_say_why(tmp_path, content, reason):
    (tmp_path / "1.json").write_bytes(content)
    with pytest.raises(ItemError, match=reason) as caught:
        opened("amg", tmp_path, manifest_of(["1.jpg"])).masks_of(0, SIZE)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "1.json") in str(caught.value)


def test_a_file_cut_anywhere_is_refused(tmp_path):
    whole = json.dumps([record(mask) for mask in two_masks()]).encode()
    for length in range(len(whole)):
        (tmp_path / "1.json").write_bytes(whole[:length])
        with pytest.raises(ItemError, match="damaged or truncated"):
            opened("amg", tmp_path, manifest_of(["1.jpg"])).masks_of(0, SIZE)


def test_an_empty_list_is_a_valid_result(tmp_path):
    write_json(tmp_path / "1.json", [])
    assert len(opened("amg", tmp_path, manifest_of(["1.jpg"])).masks_of(0, SIZE)) == 0


@pytest.mark.parametrize("format_name", ["amg", "npz", "semires"])
def test_folders_that_hold_nothing_of_the_manifest_are_refused(tmp_path, format_name):
    (tmp_path / "other.json").write_text("[]")
    manifest = manifest_of(["1.jpg"], refs=[["33"]])
    with pytest.raises(ConfigError, match=r"such as (1\.json|1\.npz|33\.json), found none"):
        opened(format_name, tmp_path, manifest)
    for path in (
        tmp_path / "none",
        tmp_path / "other.json",
        tmp_path / "nul\0",
        tmp_path / ("x" * 300),
    ):
        with pytest.raises(ConfigError, match="expected a folder of masks, found none"):
            opened(format_name, path, manifest)
