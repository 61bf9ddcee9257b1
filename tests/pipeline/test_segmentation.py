"""Shapes become compressed COCO RLE and come back; hostile ones become one clear line."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pycocotools import mask as coco_mask

from pipeline.errors import ItemError
from pipeline.segmentation import (
    decode_rle,
    encode_mask,
    encode_segmentation,
    rescale_mask,
    run_lengths,
)

masks = hnp.arrays(np.bool_, st.tuples(st.integers(1, 40), st.integers(1, 40)))
SIZE = (10, 12)


@pytest.fixture
def mask():
    mask = np.zeros(SIZE, np.bool_)
    mask[2:6, 3:9] = True
    mask[8, 11] = True
    return mask


def test_decode_by_hand():
    # Column-major 2x3: runs 1, 2, 3 are the characters "1", "2", "3".
    np.testing.assert_array_equal(decode_rle(b"123", (2, 3)), [[0, 1, 0], [1, 0, 0]])


@given(masks)
def test_decode_inverts_encode(mask):
    decoded = decode_rle(encode_mask(mask), mask.shape)
    np.testing.assert_array_equal(decoded, mask)
    assert decoded.flags.c_contiguous


@given(masks)
def test_run_lengths_sum_to_the_area(mask):
    runs = run_lengths(encode_mask(mask), mask.shape)
    assert runs.sum() == mask.size
    assert runs[1::2].sum() == mask.sum()


@given(st.binary(max_size=60), st.integers(1, 50), st.integers(1, 50))
def test_hostile_counts_are_item_errors_and_never_crash(counts, height, width):
    try:
        mask = decode_rle(counts, (height, width))
    except ItemError:
        return
    assert mask.shape == (height, width)


@given(st.text("0123OPQRSTUVWXYZ_`abcdefghijklmno", max_size=40))
def test_counts_that_look_right_are_checked_too(counts):
    try:
        mask = decode_rle(counts.encode(), (9, 9))
    except ItemError:
        return
    reference = run_lengths(counts.encode(), (9, 9))
    assert mask.sum() == reference[1::2].sum()


def test_huge_runs_do_not_overflow():
    for counts in (b"o" * 6 + b"O", (b"o" * 6 + b"O") * 5000, b"o" * 100_000 + b"0"):
        with pytest.raises(ItemError):
            decode_rle(counts, (100, 100))


def test_polygon_equals_pycocotools(tmp_path):
    polygons = [[1, 1, 9, 1, 9, 8, 1, 8], [2.5, 0, 4, 9.5, 0.5, 9]]
    rles = coco_mask.frPyObjects([[float(v) for v in part] for part in polygons], *SIZE)
    expected = coco_mask.merge(rles)["counts"]
    assert encode_segmentation(polygons, SIZE, tmp_path) == expected


def test_all_forms_of_one_mask_give_the_same_bytes(mask, tmp_path):
    counts = encode_mask(mask)
    runs = run_lengths(counts, SIZE).tolist()
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "grey.png")
    Image.fromarray(mask).save(tmp_path / "one.png")
    palette = Image.fromarray(mask.astype(np.uint8), mode=None).convert("P")
    palette.save(tmp_path / "palette.png")
    Image.fromarray(mask.astype(np.uint16) * 3).save(tmp_path / "sixteen.png")
    split = [runs[0], runs[1] - 1, 0, 1, *runs[2:]]  # an empty run in between means the same
    for segmentation in (
        {"size": list(SIZE), "counts": runs},
        {"size": list(SIZE), "counts": split},
        {"size": list(SIZE), "counts": counts.decode()},
        "grey.png",
        "one.png",
        "palette.png",
        "sixteen.png",
    ):
        assert encode_segmentation(segmentation, SIZE, tmp_path) == counts


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([], "empty segmentation"),
        ([[]], "found 0 numbers"),
        ([[1, 1, 5, 5]], "found 4 numbers"),
        ([[1, 1, 5, 5, 1, 5, 7]], "found 7 numbers"),
        ([[1, 1, 5, 1, float("nan"), 5]], "nan"),
        ([[1, 1, 5, 1, float("inf"), 5]], "infinity"),
        ([[1, 1, 5, 1, 10**400, 5]], "huge integers"),
        ([[1, 1, 5, 1, 1e9, 5]], "near the 10x12"),
        ([[1, 1, 5, 1, -50, 5]], "near the 10x12"),
        ([[0, 0, 12, 10] * 120_000], "outline of at most"),
        ([["1", 1, 5, 1, 4, 5]], "list of numbers"),
        ([[True, 1, 5, 1, 4, 5]], "list of numbers"),
        ([1, 1, 5, 1, 4, 5], "list of numbers"),
        ([[3, 3, 3, 3, 3, 3]], "covers no pixel"),
        ([[20, 2, 22, 2, 22, 8]], "covers no pixel"),
        (7, "found int"),
        (None, "found NoneType"),
        ({"counts": [120]}, "keys counts and size"),
        ({"size": [10, 12], "counts": [120]}, "covers no pixel"),
        ({"size": [12, 10], "counts": [0, 120]}, "size"),
        ({"size": "10x12", "counts": [0, 120]}, "size"),
        ({"size": [10, 12], "counts": [0, 121]}, "integers from 0 to 120"),
        ({"size": [10, 12], "counts": [10**400]}, "integers from 0 to 120"),
        ({"size": [10, 12], "counts": [0, 100]}, "sum to 100"),
        ({"size": [10, 12], "counts": [130, -10]}, "integers from 0"),
        ({"size": [10, 12], "counts": [60.0, 60.0]}, "as integers"),
        ({"size": [10, 12], "counts": None}, "as a string or as integers"),
        ({"size": [10, 12], "counts": ""}, "bytes that are not"),
        ({"size": [10, 12], "counts": "\ud800"}, "bytes that are not|RLE"),
        ({"size": [10, 12], "counts": "0"}, "sum"),
        ("missing.png", "found no file"),
        ("nul\0.png", "unreadable"),
        ("", "mask PNG"),
    ],
)
def test_bad_segmentations_say_what_is_wrong(segmentation, reason, tmp_path):
    with pytest.raises(ItemError, match=reason) as caught:
        encode_segmentation(segmentation, SIZE, tmp_path)
    assert "\n" not in str(caught.value)


def test_bad_mask_files_say_what_is_wrong(tmp_path):
    Image.new("L", (10, 12)).save(tmp_path / "turned.png")
    Image.new("RGB", (12, 10)).save(tmp_path / "colour.png")
    Image.new("L", (12, 10)).save(tmp_path / "black.png")
    Image.new("L", (12, 10)).save(tmp_path / "jpeg.jpg")
    (tmp_path / "broken.png").write_bytes((tmp_path / "black.png").read_bytes()[:40])
    for name, reason in {
        "turned.png": "10x12 .* found 12x10",
        "colour.png": "one channel, found RGB",
        "black.png": "covers no pixel",
        "jpeg.jpg": "unreadable",
        "broken.png": "unreadable",
    }.items():
        with pytest.raises(ItemError, match=reason):
            encode_segmentation(name, SIZE, tmp_path)


def test_rescale_by_hand():
    mask = np.array([[1, 0, 0, 1]], np.bool_)
    # Centres of two target pixels lie in source pixels 1 and 3, of eight in every one twice.
    np.testing.assert_array_equal(rescale_mask(mask, (1, 2)), [[0, 1]])
    np.testing.assert_array_equal(rescale_mask(mask, (1, 8)), [[1, 1, 0, 0, 0, 0, 1, 1]])
    np.testing.assert_array_equal(rescale_mask(mask, (3, 4)), np.repeat(mask, 3, axis=0))


@given(masks, st.integers(1, 50), st.integers(1, 50))
def test_rescale_takes_the_pixel_under_the_centre(mask, height, width):
    scaled = rescale_mask(mask, (height, width))
    assert scaled.flags.c_contiguous
    for row in range(height):
        for column in range(width):
            y = int((row + 0.5) * mask.shape[0] / height + 1e-9)
            x = int((column + 0.5) * mask.shape[1] / width + 1e-9)
            assert scaled[row, column] == mask[y, x]
