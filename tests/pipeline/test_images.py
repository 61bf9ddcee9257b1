"""Images of every kind come back as upright RGB of the promised size, or as one clear line."""

import contextlib
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pipeline.errors import ItemError
from pipeline.images import MAX_PIXELS, canvas_size, read_image, read_size
from tests.pipeline.small_data import PHOTOS, needs_photos, write_image

sides = st.integers(1, 20_000)


def test_canvas_size_by_hand():
    assert canvas_size((480, 640), 640) == (480, 640)
    assert canvas_size((3000, 4000), 640) == (480, 640)
    assert canvas_size((4000, 3000), 640) == (640, 480)
    assert canvas_size((3, 1000), 100) == (1, 100)
    assert canvas_size((1, 100_000), 640) == (1, 640)
    assert canvas_size((5, 10), 5) == (3, 5)  # 2.5 rounds up
    assert canvas_size((5, 10), None) == (5, 10)


@given(sides, sides, st.integers(1, 4096))
def test_canvas_size_law(height, width, canvas):
    h, w = canvas_size((height, width), canvas)
    assert 1 <= h <= height
    assert 1 <= w <= width
    assert max(h, w) == min(canvas, max(height, width))
    assert canvas_size((width, height), canvas) == (w, h)
    assert canvas_size((h, w), canvas) == (h, w)
    scale = max(h, w) / max(height, width)
    assert abs(h - max(1, height * scale)) <= 0.5 + 1e-9
    assert abs(w - max(1, width * scale)) <= 0.5 + 1e-9


def test_read_image_returns_the_pixels_of_a_png(tmp_path):
    path = write_image(tmp_path / "a.png", (12, 20), seed=3)
    image = read_image(path, canvas=None)
    expected = np.random.default_rng(3).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    np.testing.assert_array_equal(image, expected)
    assert image.flags.c_contiguous
    assert image.flags.writeable


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "bmp", "gif"])
def test_read_image_scales_down_and_never_up(tmp_path, suffix):
    path = write_image(tmp_path / f"a.{suffix}", (300, 401))
    assert read_image(path, canvas=100).shape == (75, 100, 3)
    assert read_image(path, canvas=4000).shape == (300, 401, 3)


def test_read_image_scales_every_jpeg_to_the_promised_size(tmp_path):
    for height, width in [(1, 999), (999, 1), (641, 479), (1283, 1281), (640, 641)]:
        path = write_image(tmp_path / "a.jpg", (height, width))
        for canvas in (1, 64, 100, 640):
            expected = (*canvas_size((height, width), canvas), 3)
            assert read_image(path, canvas=canvas).shape == expected


def test_scaling_keeps_the_picture_in_place(tmp_path):
    pixels = np.zeros((400, 800, 3), np.uint8)
    pixels[:, 400:] = 255
    Image.fromarray(pixels).save(tmp_path / "half.jpg", quality=95)
    small = read_image(tmp_path / "half.jpg", canvas=80).astype(int)
    assert small[:, :38].max() < 20
    assert small[:, 42:].min() > 235


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).save(path, exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    facts = read_size(path)
    assert facts.size == expected.shape[:2]
    np.testing.assert_array_equal(read_image(path, canvas=None, size=facts.size), expected)
    assert read_image(path, canvas=30).shape == (*canvas_size(facts.size, 30), 3)
    if suffix != "tif":  # Pillow turns TIFF by itself
        assert ("exif-rotated" in facts.notes) == (orientation != 1)
        assert facts.raw_size == (40, 60)


def test_grayscale_palette_alpha_and_cmyk_become_rgb(tmp_path):
    grey = Image.fromarray(np.arange(200, dtype=np.uint8).reshape(10, 20))
    rgba = Image.new("RGBA", (20, 10), (200, 100, 50, 128))
    cases = {
        "grayscale": (grey, "a.png"),
        "palette": (rgba.convert("RGB").quantize(4), "b.png"),
        "alpha": (rgba, "c.png"),
        "cmyk": (Image.new("CMYK", (20, 10), (0, 255, 255, 0)), "d.jpg"),
    }
    for note, (image, name) in cases.items():
        image.save(tmp_path / name)
        assert note in read_size(tmp_path / name).notes
        rgb = read_image(tmp_path / name, canvas=None)
        assert rgb.shape == (10, 20, 3)
        assert rgb.dtype == np.uint8
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", canvas=None)[..., 1], grey)
    assert read_image(tmp_path / "c.png", canvas=None)[0, 0].tolist() == [200, 100, 50]
    red, green, blue = read_image(tmp_path / "d.jpg", canvas=None)[5, 5].tolist()
    assert red > 200
    assert max(green, blue) < 60


def test_palette_with_byte_transparency_gives_no_warning(tmp_path):
    image = Image.new("RGB", (8, 8), (10, 20, 30)).quantize(4)
    image.save(tmp_path / "a.png", transparency=bytes([0, 128, 255, 255]))
    assert read_image(tmp_path / "a.png", canvas=None).shape == (8, 8, 3)
    assert read_size(tmp_path / "a.png").notes == ("palette", "alpha")


def test_16_bit_is_scaled_and_not_clipped(tmp_path):
    values = np.array([[0, 128, 257, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert "16-bit" in read_size(tmp_path / "a.png").notes
    assert read_image(tmp_path / "a.png", canvas=None)[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_16_bit_rgb_png_is_read(tmp_path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    row = b"\x00" + struct.pack(">6H", 65535, 32768, 0, 257, 514, 771)
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    assert read_size(tmp_path / "a.png").notes == ("16-bit",)
    pixels = read_image(tmp_path / "a.png", canvas=None)
    assert pixels.tolist() == [[[255, 128, 0], [1, 2, 3]]]


def test_32_bit_float_is_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ItemError, match=r"32-bit float in .*a\.tif"):
        read_image(tmp_path / "a.tif", canvas=None)


def test_32_bit_integers_are_refused_beyond_16_bits(tmp_path):
    Image.fromarray(np.full((4, 4), 70_000, np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(ItemError, match="70000"):
        read_image(tmp_path / "a.tif", canvas=None)


@pytest.mark.parametrize("read", [read_size, lambda path: read_image(path, canvas=640)])
def test_unusable_files_are_one_line_that_names_them(tmp_path, read):
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("not an image at all, but long enough for a header")
    (tmp_path / "folder.jpg").mkdir()
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    (tmp_path / "script.eps").write_bytes(eps)
    for name, reason in {
        "missing.jpg": "found none",
        "empty.jpg": "0 bytes",
        "text.jpg": "found something else",
        "folder.jpg": "folder",
        "script.eps": "found something else",
        "nul\0.jpg": "found none",
    }.items():
        with pytest.raises(ItemError, match=reason) as caught:
            read(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "tif", "bmp"])
def test_truncated_files_are_item_errors(tmp_path, suffix):
    path = write_image(tmp_path / f"a.{suffix}", (64, 64))
    whole = path.read_bytes()
    for share in (0.02, 0.3, 0.6, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ItemError, match=path.name):
            read_image(path, canvas=None)


@given(st.integers(0, 10**9), st.sampled_from(["jpg", "png", "webp", "gif", "tif"]))
def test_damaged_bytes_never_raise_anything_else(tmp_path_factory, seed, suffix):
    folder = tmp_path_factory.getbasetemp() / "damaged"
    path = write_image(folder / f"a.{suffix}", (16, 16))
    content = bytearray(path.read_bytes())
    rng = np.random.default_rng(seed)
    for place in rng.integers(0, len(content), 8):
        content[place] = rng.integers(0, 256)
    path.write_bytes(content)
    with contextlib.suppress(ItemError):
        assert read_image(path, canvas=8).shape[2] == 3


def test_a_decompression_bomb_is_refused_from_its_header(tmp_path):
    side = 15_000
    assert side * side > MAX_PIXELS
    header = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 54, 0, 0, 54, 40, side, side, 1, 24, 0,
                         0, 0, 0, 0, 0)  # fmt: skip
    (tmp_path / "bomb.bmp").write_bytes(header)
    for read in (read_size, lambda path: read_image(path, canvas=64)):
        with pytest.raises(ItemError, match=r"134217728 pixels, found more in .*bomb\.bmp"):
            read(tmp_path / "bomb.bmp")


def test_a_large_image_below_the_limit_gives_no_warning(tmp_path):
    Image.new("1", (10_000, 9_000)).save(tmp_path / "a.png")
    assert read_size(tmp_path / "a.png").size == (9_000, 10_000)


def test_another_size_than_the_manifests_is_refused(tmp_path):
    path = write_image(tmp_path / "a.png", (12, 20))
    with pytest.raises(ItemError, match=r"20x12 .* found 12x20 in .*a\.png"):
        read_image(path, canvas=None, size=(20, 12))


@needs_photos
def test_scaled_photos_stay_close_to_a_plain_lanczos_filter():
    for path in sorted((PHOTOS / "images").iterdir())[:5]:
        with Image.open(path) as image:
            height, width = canvas_size((image.height, image.width), 128)
            plain = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
        ours = read_image(path, canvas=128).astype(int)
        assert np.abs(ours - np.asarray(plain)).mean() < 3
