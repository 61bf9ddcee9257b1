"""A folder of .npz files becomes masks; what it must not hold is never unpacked."""

import io
import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ItemError
from pipeline.exchange import npz
from tests.pipeline.exchange.small_masks import SIZE, manifest_of, mask_sets, opened, two_masks


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that hypothesis' examples share."""
    return tmp_path_factory.mktemp("npz")


def read(folder, size=SIZE):
    return opened("npz", folder, manifest_of(["1.jpg"], [size])).masks_of(0, size)


@given(
    mask_sets(),
    st.sampled_from(["bool", "uint8", "255", "fortran", "packed", "dirty"]),
    st.sampled_from([np.savez, np.savez_compressed]),
)
def test_masks_come_back(folder, masks, form, save):
    size = masks.shape[1:]
    packed = np.packbits(masks, axis=2)
    dirty = packed | (np.packbits(np.ones(size[1], np.bool_)) ^ 255)  # set bits beyond the width
    arrays = {
        "bool": {"masks": masks},
        "uint8": {"masks": masks.astype(np.uint8)},
        "255": {"masks": masks.astype(np.uint8) * 255},
        "fortran": {"masks": np.asfortranarray(masks)},
        "packed": {"packed": packed, "size": np.array(size)},
        "dirty": {"packed": dirty, "size": np.array(size, np.uint16)},
    }[form]
    iou = np.linspace(0, 1, len(masks), dtype=np.float32)
    point = np.tile([size[1], 0.25], (len(masks), 1))
    save(folder / "1.npz", **arrays, predicted_iou=iou, stability_score=iou / 2, point=point)
    found = read(folder, size)
    kept = masks.any((1, 2))
    np.testing.assert_array_equal(found.masks, masks[kept])
    np.testing.assert_array_equal(found.predicted_iou, iou[kept])
    np.testing.assert_array_equal(found.stability_score, (iou / 2)[kept])
    np.testing.assert_array_equal(found.point, point[kept])


def test_masks_alone_suffice(tmp_path):
    np.savez(tmp_path / "1.npz", masks=two_masks())
    found = read(tmp_path)
    np.testing.assert_array_equal(found.masks, two_masks())
    assert found.predicted_iou.tolist() == found.stability_score.tolist() == [1, 1]


@pytest.mark.parametrize("shape", [(0,), (0, 10, 12), (0, 0, 0)])
def test_no_masks_are_a_valid_result(tmp_path, shape):
    np.savez(tmp_path / "1.npz", masks=np.zeros(shape, np.bool_))
    assert read(tmp_path).masks.shape == (0, *SIZE)


MASKS = {"masks": two_masks()}


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({}, "either masks or packed, found neither"),
        ({"arr_0": two_masks()}, "found neither"),
        ({**MASKS, "packed": two_masks()}, "either masks or packed, found masks, packed"),
        ({"masks": two_masks()[0]}, r"expected masks as \(N, H, W\), found \(10, 12\) bool"),
        ({"masks": np.zeros((2, 0, 0), np.bool_)}, "found 0x0"),
        ({"masks": np.bool_(True)}, r"found \(\) bool"),
        ({"masks": two_masks().astype(float)}, "bool or uint8, found .* float64"),
        ({"masks": two_masks().astype(object)}, "plain numbers, found object|pickle"),
        ({"masks": np.array(["1", "2"])}, "plain numbers, found <U1"),
        ({"masks": two_masks().transpose(0, 2, 1)}, "found 12x10"),
        ({"packed": np.zeros((1, 10, 2), np.uint8)}, "expected size as two integers"),
        ({"packed": np.zeros((1, 10, 2), np.uint8), "size": np.array([10.0, 12])}, "two integers"),
        ({"packed": np.zeros((1, 10, 2), np.uint8), "size": np.array([12, 10])}, "found 12x10"),
        ({"packed": np.zeros((1, 10, 3), np.uint8), "size": np.array([10, 12])}, r"\(N, 10, 2\)"),
        ({"packed": np.uint8(1), "size": np.array([10, 12])}, r"\(N, 10, 2\) uint8, found \(\)"),
        ({**MASKS, "predicted_iou": np.ones(3)}, r"predicted_iou as \(2,\) numbers, found \(3,\)"),
        ({**MASKS, "predicted_iou": np.array([1, np.nan])}, "expected predicted_iou from -0.5 to"),
        ({**MASKS, "predicted_iou": np.array([1, 88.0])}, "expected predicted_iou from -0.5 to"),
        ({**MASKS, "predicted_iou": np.array([True, True])}, "numbers, found .* bool"),
        ({**MASKS, "stability_score": np.array([1, -1])}, "expected stability_score from 0"),
        ({**MASKS, "stability_score": np.array([1, np.inf])}, "expected stability_score from 0"),
        ({**MASKS, "point": np.ones(2)}, r"point as \(2, 2\) numbers"),
        ({**MASKS, "point": np.array([[0, 0], [0, 11]])}, "expected point from 0"),
    ],
)
def test_bad_arrays_say_what_is_wrong(tmp_path, arrays, reason):
    np.savez(tmp_path / "1.npz", **arrays)
    with pytest.raises(ItemError, match=reason) as caught:
        read(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "1.npz"))
    assert "\n" not in str(caught.value)


class Mark:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickles_are_not_executed(tmp_path):
    mark = tmp_path / "executed"
    np.savez(tmp_path / "1.npz", masks=np.array([Mark(mark)], dtype=object))
    with pytest.raises(ItemError, match="plain numbers, found object"):
        read(tmp_path)
    with zipfile.ZipFile(tmp_path / "1.npz", "w") as archive:
        archive.writestr("masks.npy", pickle.dumps(Mark(mark)))
    with pytest.raises(ItemError, match="plain arrays"):
        read(tmp_path)
    (tmp_path / "1.npz").write_bytes(pickle.dumps(Mark(mark)))
    with pytest.raises(ItemError, match="plain arrays"):
        read(tmp_path)
    assert not mark.exists()


def header(shape, dtype="|b1"):
    """Give the header of an .npy file that claims a shape."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (header((10**6, 10**6, 10**6)), "at most 1073741824 bytes .* found 1000000000000000000"),
        (header((2**40, 2**40)), "bytes in masks.npy, found 1208925819614629174706176 declared"),
        (header((0, 2**70)), "plain arrays|masks"),
        (header((-5, -5)), "plain arrays"),
        (header((-5, 5)), "found -25 declared"),
        (header((10**9,)), "at most 983040 values in masks.npy, found 1000000000 declared"),
        (header((2, 10, 12)), "plain arrays"),  # nothing behind it
        (header((2, 10, 12), "V8"), "plain numbers"),
        (header((2, 10, 12), [("a", "|O")]), "plain numbers"),
        (b"", "plain arrays"),
        (b"\x93NUMPY\x09\x00", "plain arrays"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, "plain arrays"),
    ],
)
def test_headers_that_lie_are_refused(tmp_path, content, reason):
    with zipfile.ZipFile(tmp_path / "1.npz", "w") as archive:
        archive.writestr("masks.npy", content)
    with pytest.raises(ItemError, match=reason):
        read(tmp_path)


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    """A few KiB of zip hold four MiB; the limit is lowered so that the test is quick."""
    monkeypatch.setattr(npz, "MAX_ARRAY_BYTES", 1 << 20)
    np.savez_compressed(tmp_path / "1.npz", masks=np.zeros((4, 1024, 1024), np.bool_))
    assert (tmp_path / "1.npz").stat().st_size < 1 << 14
    with pytest.raises(ItemError, match=r"at most 1048576 bytes in masks\.npy, found 4194304"):
        read(tmp_path, (1024, 1024))


@pytest.mark.parametrize("content", [b"", b"PK", b"\x93NUMPY", b"PK\x05\x06" + b"\0" * 18])
def test_files_that_are_no_npz_are_refused(tmp_path, content):
    (tmp_path / "1.npz").write_bytes(content)
    with pytest.raises(ItemError, match=r"plain arrays|found neither"):
        read(tmp_path)
