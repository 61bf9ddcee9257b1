"""Turn annotated shapes into compressed COCO RLE and back.

Compressed COCO RLE: run lengths of the column-major mask, starting with background, each from
the third on as the difference to the run two before it, in base-32 digits of 6-bit characters
from "0" (48). The decoder here is numpy, because pycocotools' C code trusts its input.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pycocotools import mask as coco_mask

from pipeline.errors import ItemError

Segmentation = list[Any] | dict[str, Any] | str
"""COCO polygons [[x, y, x, y, ...], ...] | {"size": [H, W], "counts": list or str} | mask PNG."""

_MAX_DIGITS = 7
"""Base-32 digits of one run: 35 bits, far above any H * W that is admitted."""

_MAX_OUTLINE_PX = 2_000_000
"""pycocotools keeps 5 points a pixel of outline, counted in 32 bits; real ones are far shorter."""


def encode_segmentation(segmentation: Segmentation, size: tuple[int, int], base: Path) -> bytes:
    """Encode polygons, an RLE or a mask file as compressed COCO RLE.

    Args:
        segmentation: COCO polygons (their union), an uncompressed or compressed RLE, or the
            path of a one-channel PNG whose non-zero pixels are the object.
        size: Upright (H, W) of the image, pixels.
        base: Folder that a mask path is relative to.

    Returns:
        Canonical counts; the mask they encode covers at least one pixel.

    Raises:
        ItemError: If the shape is malformed, of another size, or covers no pixel.
    """
    if isinstance(segmentation, list):
        encoded = _encode_polygons(segmentation, size)
    elif isinstance(segmentation, dict):
        encoded = _encode(_mask_of_rle(segmentation, size))
    elif isinstance(segmentation, str):
        encoded = _encode(_mask_of_png(base / segmentation, size))
    else:
        raise ItemError(
            "expected polygons, an RLE or the path of a mask, found "
            f"{type(segmentation).__name__} as segmentation"
        )
    if not coco_mask.area(encoded):
        raise ItemError(
            f"expected an object, found a segmentation that covers no pixel of the "
            f"{size[0]}x{size[1]} image; redraw or remove it"
        )
    return bytes(encoded["counts"])


def encode_mask(mask: npt.NDArray[np.bool_]) -> bytes:
    """Encode a mask of shape (H, W), bool, as compressed COCO counts."""
    return bytes(_encode(mask)["counts"])


def decode_rle(counts: bytes, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Decode compressed COCO counts.

    Args:
        counts: Compressed counts; b"" is not a mask.
        size: (H, W) in pixels.

    Returns:
        Mask, shape (H, W), bool, C-contiguous.

    Raises:
        ItemError: If the counts are malformed or do not fill H * W pixels.
    """
    runs = run_lengths(counts, size)
    values = (np.arange(len(runs)) & 1).astype(np.bool_)
    return np.ascontiguousarray(np.repeat(values, runs).reshape(size[1], size[0]).T)


def run_lengths(counts: bytes, size: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Give the run lengths of compressed counts, background first, column-major.

    Args:
        counts: Compressed COCO counts.
        size: (H, W) in pixels.

    Returns:
        Shape (R,), int64, each in [0, H * W], together H * W.

    Raises:
        ItemError: If the counts are malformed or do not fill H * W pixels.
    """
    digits = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - 48
    if len(digits) == 0 or digits.min() < 0 or digits.max() > 63 or digits[-1] & 0x20:
        raise ItemError("expected compressed RLE counts, found bytes that are not; encode again")
    last = np.flatnonzero((digits & 0x20) == 0)
    first = np.concatenate(([0], last[:-1] + 1))
    length = last - first + 1
    if length.max() > _MAX_DIGITS:
        raise ItemError(f"expected RLE runs of at most {_MAX_DIGITS} digits, found {length.max()}")
    place = np.arange(len(digits)) - np.repeat(first, length)
    runs = np.add.reduceat((digits & 0x1F) << (5 * place), first)
    runs -= np.where(digits[last] & 0x10, np.left_shift(1, 5 * length), 0)
    # cumsum undoes the differences: odd runs from 1, even runs from 2, run 0 stands alone.
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    _check_runs(runs, size)
    return np.asarray(runs, dtype=np.int64)


def rescale_mask(mask: npt.NDArray[np.bool_], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Rescale a mask to the nearest pixel, pixel centre to pixel centre.

    Target pixel i takes source pixel floor((i + 0.5) * H / h), in integers, so that the result
    depends on no float rounding.

    Args:
        mask: Shape (H, W), bool.
        size: Target (h, w), pixels.

    Returns:
        Shape (h, w), bool, C-contiguous; `mask` itself where the size is the same.
    """
    if mask.shape == size:
        return np.ascontiguousarray(mask)
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new)
        for new, old in zip(size, mask.shape, strict=True)
    )
    return np.ascontiguousarray(mask[rows[:, None], columns[None, :]])


def _check_runs(runs: npt.NDArray[np.int64], size: tuple[int, int]) -> None:
    num_pixels = size[0] * size[1]
    if len(runs) and (runs.min() < 0 or runs.max() > num_pixels):
        raise ItemError(
            f"expected RLE runs of 0 to {num_pixels} pixels, found {runs.min()} to {runs.max()}"
        )
    if (total := int(runs.sum())) != num_pixels:
        raise ItemError(
            f"expected an RLE of {size[0]}x{size[1]} = {num_pixels} pixels, found runs that sum "
            f"to {total}"
        )


def _encode(mask: npt.NDArray[np.bool_]) -> Any:
    """Give pycocotools' RLE dict of a mask."""
    return coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))


def _encode_polygons(polygons: list[Any], size: tuple[int, int]) -> Any:
    """Give pycocotools' RLE dict of the union of polygons."""
    if not polygons:
        raise ItemError("expected at least one polygon, found an empty segmentation")
    points = [_checked_polygon(polygon, size) for polygon in polygons]
    parts = coco_mask.frPyObjects([part.tolist() for part in points], *size)
    return coco_mask.merge(parts)


def _checked_polygon(polygon: Any, size: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Give one polygon as (2 * points,) float64, or say what is wrong with it."""
    if not isinstance(polygon, list) or not set(map(type, polygon)) <= {int, float}:
        raise ItemError("expected a polygon as a list of numbers, found something else")
    if len(polygon) % 2 or len(polygon) < 6:
        raise ItemError(
            f"expected a polygon of 3 or more points as x, y, x, y, ..., found {len(polygon)} "
            "numbers; redraw or remove it"
        )
    try:
        points = np.array(polygon, dtype=np.float64)
    except OverflowError as error:
        raise ItemError("expected polygon coordinates in pixels, found huge integers") from error
    if not np.isfinite(points).all():
        raise ItemError("expected finite polygon coordinates, found nan or infinity")
    # Some annotations overshoot the border; pycocotools allocates by perimeter, so bound it.
    limit = np.array([size[1], size[0]])
    pairs = points.reshape(-1, 2)
    if (pairs < -limit).any() or (pairs > 2 * limit).any():
        raise ItemError(
            f"expected polygon coordinates near the {size[0]}x{size[1]} (HxW) image, found "
            f"{points.min():g} to {points.max():g}; are they in pixels of this image?"
        )
    edges = np.abs(pairs - np.roll(pairs, 1, axis=0)).max(axis=1)
    if edges.sum() > _MAX_OUTLINE_PX:
        raise ItemError(
            f"expected a polygon with an outline of at most {_MAX_OUTLINE_PX} pixels, found "
            f"{edges.sum():.0f}; simplify it"
        )
    return points


def _mask_of_rle(rle: dict[str, Any], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    if set(rle) != {"size", "counts"}:
        raise ItemError(f"expected an RLE with keys counts and size, found {sorted(rle)!r}")
    if rle["size"] != list(size):
        raise ItemError(
            f"expected an RLE of size {list(size)} (H, W), found {rle['size']!r}; "
            "annotations belong at the upright size of the image"
        )
    counts = rle["counts"]
    if isinstance(counts, str | bytes):
        if isinstance(counts, str):
            counts = counts.encode("utf-8", "replace")
        return decode_rle(counts, size)
    # Above H * W even one run is wrong; testing here keeps int64 safe from any JSON integer.
    limit = size[0] * size[1]
    if not isinstance(counts, list) or not all(
        type(run) is int and 0 <= run <= limit for run in counts
    ):
        raise ItemError(f"expected RLE counts as a string or as integers from 0 to {limit}")
    runs = np.array(counts, dtype=np.int64)
    _check_runs(runs, size)
    values = (np.arange(len(runs)) & 1).astype(np.bool_)
    return np.repeat(values, runs).reshape(size[1], size[0]).T


def _mask_of_png(path: Path, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Read a one-channel PNG: non-zero pixels (palette: non-zero indices) are the object."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            if (image.height, image.width) != size:
                raise ItemError(
                    f"expected a mask of {size[0]}x{size[1]} (HxW), found "
                    f"{image.height}x{image.width} in {path}"
                )
            if image.mode not in ("1", "L", "P", "I;16"):
                raise ItemError(f"expected a mask of one channel, found {image.mode} in {path}")
            return np.asarray(np.asarray(image) != 0, dtype=np.bool_)
    except ItemError:
        raise
    except FileNotFoundError as error:
        raise ItemError(f"expected a mask PNG, found no file {path}") from error
    # As for images: a damaged PNG may raise anything.
    except Exception as error:
        raise ItemError(f"expected a mask PNG, found an unreadable file {path}") from error
