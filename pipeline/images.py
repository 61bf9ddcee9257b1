"""Read image files as upright 8-bit RGB, or their upright size alone.

What a data set may hold beside plain RGB is converted: grey, palette, alpha (dropped, as in
`Image.convert`), CMYK, 16 bits a channel (scaled, not clipped) and EXIF orientation (applied).
Everything else is one `ItemError` that names the file.
"""

import io
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from pipeline.columns import file_sha256
from pipeline.errors import ItemError
from pipeline.places import Place, is_local, is_on_the_way, read_bytes

MAX_PIXELS = 1 << 27
"""Larger images are refused as decompression bombs: at 4 bytes a pixel, as Pillow keeps colours,
and once more while they are converted, 134 million pixels are 1 GiB. A file of 20 kB can ask for
it; the largest cameras of phones and backs of 100 megapixels are below."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Pillow would also open EPS, which it hands to Ghostscript; a closed list leaves that out."""

# EXIF orientation -> what turns the stored pixels upright; 5 to 8 swap height and width.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPPED = (5, 6, 7, 8)
_GREY = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "I;16N")
# Decode at no less than this many times the target before the fine filter, as Pillow's thumbnail.
_REDUCING_GAP = 2.0
_BAND_ROWS = 64
_warnings_lock = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """What the header of an image file says."""

    size: tuple[int, int]
    """Upright (H, W) in pixels, EXIF orientation applied."""
    raw_size: tuple[int, int]
    """(H, W) as stored, before EXIF orientation."""
    notes: tuple[str, ...]
    """What gets converted: "grayscale", "palette", "alpha", "cmyk", "16-bit", "exif-rotated"."""


def canvas_size(size: tuple[int, int], canvas: int | None) -> tuple[int, int]:
    """Give the size at which an image of `size` is kept.

    Args:
        size: Upright original (H, W) in pixels, each at least 1.
        canvas: Upper bound of the longest side in pixels, at least 1; None keeps every size.

    Returns:
        (h, w): `size` itself if it fits, else scaled so that the longest side is `canvas`, the
        other rounded half up and at least 1.
    """
    longest = max(size)
    if canvas is None or longest <= canvas:
        return size
    height, width = (max(1, (2 * side * canvas + longest) // (2 * longest)) for side in size)
    return height, width


def read_size(path: Path) -> ImageFacts:
    """Read the upright size and the oddities of an image from its header.

    Args:
        path: Image file.

    Returns:
        Size and notes; no pixel is decoded, so a truncated file passes.

    Raises:
        ItemError: If the file is missing, empty, not an image, or beyond `MAX_PIXELS`.
    """
    with _opened(path) as image:
        return _facts(image)


def read_image(
    path: Place,
    *,
    canvas: int | None,
    size: tuple[int, int] | None = None,
    sha256: str | None = None,
) -> npt.NDArray[np.uint8]:
    """Read an image, upright, RGB, no larger than the canvas.

    Args:
        path: Image file.
        canvas: Longest side of the result in pixels; smaller images are not enlarged. None
            keeps the original size.
        size: Upright original (H, W) that the manifest states; None does not check.
        sha256: Of the file, as the manifest states it; None does not check.

    Returns:
        RGB, shape (*canvas_size((H, W), canvas), 3), uint8, C-contiguous, writable.

    Raises:
        ItemError: If the file is missing, empty, truncated, not an image, beyond `MAX_PIXELS`,
            of an unusable kind (32 bits a channel), or not of `size` or `sha256`.
    """
    with _opened(path) as image:
        facts = _facts(image)
        if size is not None and facts.size != size:
            raise ItemError(
                f"expected an image of {size[0]}x{size[1]} (HxW) as in the manifest, found "
                f"{facts.size[0]}x{facts.size[1]} in {path}; restore the file or prepare again"
            )
        if sha256 is not None and file_sha256(path) != sha256:
            raise ItemError(
                f"expected the file that the data were prepared with (sha256 {sha256[:16]}), found "
                f"another at {path}; restore it or prepare again with --force"
            )
        orientation = _orientation(image)
        height, width = canvas_size(facts.raw_size, canvas)
        # Pillow's shortest way: let the JPEG decoder halve, then filter once over `box`.
        box = None
        if (height, width) != facts.raw_size:
            gap = (int(width * _REDUCING_GAP), int(height * _REDUCING_GAP))
            drafted = image.draft(None, gap)
            box = None if drafted is None else drafted[1]
        rgb = _as_rgb(image, path)
        if rgb.size != (width, height) or box is not None:
            rgb = rgb.resize(
                (width, height), Image.Resampling.LANCZOS, box=box, reducing_gap=_REDUCING_GAP
            )
        if orientation in _UPRIGHT:
            rgb = rgb.transpose(_UPRIGHT[orientation])
        return np.array(rgb, dtype=np.uint8)


@contextmanager
def _pillow_does_not_warn() -> Iterator[None]:
    """Leave it to the limits here what becomes of large or slightly damaged files."""
    with _warnings_lock, warnings.catch_warnings():
        for category in (Image.DecompressionBombWarning, UserWarning):
            warnings.filterwarnings("ignore", category=category, module=r"PIL\.")
        yield


@contextmanager
def _opened(path: Place) -> Iterator[Image.Image]:
    """Open an image file; whatever goes wrong inside becomes one ItemError."""
    file = _file_of(path)
    try:
        with _pillow_does_not_warn():
            image = Image.open(file, formats=FORMATS)
        with image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{image.width * image.height} pixels")
            yield image
    except ItemError:
        raise
    except Image.DecompressionBombError as error:
        raise ItemError(
            f"expected at most {MAX_PIXELS} pixels, found more in {path}; scale the image down"
        ) from error
    except UnidentifiedImageError as error:
        raise ItemError(
            f"expected an image ({', '.join(FORMATS)}), found something else in {path}; "
            "convert or remove the file"
        ) from error
    # Decoders fed with damaged bytes raise anything from OSError to struct.error and IndexError.
    except Exception as error:
        raise ItemError(
            f"expected a whole image, found a damaged or truncated one in {path} "
            f"({' '.join(str(error).split()) or type(error).__name__}); replace or remove the file"
        ) from error


def _file_of(path: Place) -> Path | io.BytesIO:
    """Give what Pillow opens; an object is fetched whole.

    Raises:
        ItemError: If there is no such file, or it is empty.
        OSError: If the object store cannot be reached: that is no fault of the image.
    """
    try:
        content = b"" if is_local(path) else read_bytes(path)
        status = path.stat() if is_local(path) else None
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and not is_local(path) and is_on_the_way(path, error):
            raise  # on a disk, an image that may not be read is one bad item
        raise ItemError(
            f"expected an image file, found none that can be read at {path}; "
            "check the image root and the file name"
        ) from error
    if status is not None and not stat.S_ISREG(status.st_mode):
        raise ItemError(f"expected an image file, found a folder or device at {path}")
    if (len(content) if status is None else status.st_size) == 0:
        raise ItemError(f"expected an image, found 0 bytes in {path}; fetch the file again")
    return path if is_local(path) else io.BytesIO(content)


def _orientation(image: Image.Image) -> int:
    """Give the EXIF orientation still to be applied, 1 to 8 (1 = none)."""
    if image.format == "TIFF":  # Pillow turns TIFF upright by itself, size included.
        return 1
    # Not image.getexif(): for PNG that decodes every pixel in search of a late chunk.
    with _pillow_does_not_warn():
        try:
            value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
        except Exception:  # a damaged EXIF block says nothing; the pixels may still be fine
            return 1
    return value if isinstance(value, int) and value in _UPRIGHT else 1


def _facts(image: Image.Image) -> ImageFacts:
    orientation = _orientation(image)
    raw = (image.height, image.width)
    notes = []
    if image.mode in _GREY:
        notes.append("grayscale")
    if image.mode in ("P", "PA"):
        notes.append("palette")
    if image.mode in ("LA", "PA", "RGBA", "RGBa", "La") or "transparency" in image.info:
        notes.append("alpha")
    if image.mode == "CMYK":
        notes.append("cmyk")
    if image.mode.startswith("I") or _raw_mode_is_16_bit(image):
        notes.append("16-bit")
    if orientation != 1:
        notes.append("exif-rotated")
    upright = (raw[1], raw[0]) if orientation in _SWAPPED else raw
    return ImageFacts(size=upright, raw_size=raw, notes=tuple(notes))


def _raw_mode_is_16_bit(image: Image.Image) -> bool:
    """Tell whether the file stores 16 bits a channel that Pillow reads as 8 (RGB PNG, TIFF)."""
    tiles = getattr(image, "tile", None) or [None]
    arguments = getattr(tiles[0], "args", None)
    raw_mode = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return isinstance(raw_mode, str) and ";16" in raw_mode


def _as_rgb(image: Image.Image, path: Place) -> Image.Image:
    """Convert any supported mode to RGB of 8 bits, with as few copies of the whole as can be."""
    if image.mode == "F":
        raise ItemError(f"expected 8 or 16 bits a channel, found 32-bit float in {path}; convert")
    if image.mode.startswith("I"):
        return _from_16_bit(image, path)
    if image.mode == "PA":
        return image.convert("RGBA").convert("RGB")
    image.load()  # a GIF says only now that some of its palette is transparent
    image.info.pop("transparency", None)  # alpha is dropped, and told of as bytes it is warned of
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_16_bit(image: Image.Image, path: Place) -> Image.Image:
    """Scale 0..65535 to 0..255, rounding to nearest."""
    low, high = cast("tuple[float, float]", image.getextrema())
    if low < 0 or high > 65535:
        raise ItemError(
            f"expected 8 or 16 bits a channel, found values from {low} to "
            f"{high} in {path}; convert the image to 8 or 16 bits"
        )
    grey = np.empty((image.height, image.width), np.uint8)
    for top in range(0, image.height, _BAND_ROWS):  # 64-bit copies of a band only
        bottom = min(top + _BAND_ROWS, image.height)
        values = np.asarray(image.crop((0, top, image.width, bottom)), dtype=np.int64)
        grey[top:bottom] = (values * 255 + 32767) // 65535
    return Image.fromarray(grey).convert("RGB")
