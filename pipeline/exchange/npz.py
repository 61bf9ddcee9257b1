"""Masks as arrays: a folder with one .npz per image.

`masks` (N, H, W) bool or uint8, non-zero = mask; or `packed` (N, H, ceil(W / 8)) uint8, rows as by
`np.packbits`, with `size` (H, W). Perhaps `predicted_iou` (N,), `stability_score` (N,) and `point`
(N, 2), (x, y) in pixels.
"""

import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import ItemError
from pipeline.exchange.image_files import MAX_FILE_BYTES, open_image_files
from pipeline.exchange.runs import Size
from pipeline.exchange.source import (
    MAX_MASKS,
    PREDICTED_IOU,
    Found,
    FoundMask,
    MaskSource,
    Sizes,
)
from pipeline.manifest import Manifest

MAX_ARRAY_BYTES = 1 << 30
"""Larger arrays are refused before a byte of them is unpacked: a small zip can hold any of them."""

Column = npt.NDArray[np.float64]


def open_npz(path: Path, manifest: Manifest) -> MaskSource:
    """Open a folder of .npz files; each is read when its image is asked for.

    Args:
        path: The folder.
        manifest: Whose images the masks belong to.

    Raises:
        ConfigError: If there is no such folder, or nothing in it belongs to any image.
    """
    files = open_image_files(path, ".npz", manifest)

    def find(row: int, sizes: Sizes) -> Found:
        file = files.file_of(row)
        try:
            return _found(_read_arrays(file, sizes), sizes, file)
        except ItemError as error:
            raise ItemError(f"{file}: {error}") from error

    return MaskSource(manifest=manifest, find=find)


def _found(arrays: dict[str, npt.NDArray[Any]], sizes: Sizes, file: Path) -> Found:
    count, size, mask_at = _masks(arrays, sizes)
    iou = _column(arrays, "predicted_iou", (count,), PREDICTED_IOU)
    stability = _column(arrays, "stability_score", (count,), (0.0, 1.0))
    point = _column(arrays, "point", (count, 2), (0.0, (size[1], size[0])))

    def found_at(number: int) -> FoundMask:
        return FoundMask(
            mask=mask_at(number),
            predicted_iou=1.0 if iou is None else float(iou[number]),
            stability_score=1.0 if stability is None else float(stability[number]),
            point=None if point is None else (float(point[number, 0]), float(point[number, 1])),
        )

    return Found(where=str(file), count=count, mask_at=found_at)


def _masks(
    arrays: dict[str, npt.NDArray[Any]], sizes: Sizes
) -> tuple[int, Size, Callable[[int], npt.NDArray[np.bool_]]]:
    """Give the number of masks, their (H, W), and what gives one of them."""
    if ("masks" in arrays) == ("packed" in arrays):
        raise ItemError(f"expected either masks or packed, found {', '.join(arrays) or 'neither'}")
    if "masks" in arrays:
        masks = arrays["masks"]
        _require(masks, "masks", "(N, H, W) bool or uint8", masks.dtype in (np.bool_, np.uint8))
        if masks.shape[:1] == (0,):  # of whatever shape else, as an empty list becomes
            return 0, sizes.original, lambda number: masks[number]
        _require(masks, "masks", "(N, H, W)", masks.ndim == 3)
        size = sizes.checked(*masks.shape[1:])
        return len(masks), size, lambda number: np.asarray(masks[number] != 0, np.bool_)
    packed, stated = arrays["packed"], arrays.get("size")
    if stated is None or stated.shape != (2,) or stated.dtype.kind not in "iu":
        raise ItemError("expected size as two integers (H, W) beside packed, found another or none")
    size = sizes.checked(*stated.tolist())
    shape = (len(packed) if packed.ndim else 0, size[0], (size[1] + 7) // 8)
    fits = packed.dtype == np.uint8 and packed.shape == shape
    _require(packed, "packed", f"(N, {shape[1]}, {shape[2]}) uint8", fits)
    return shape[0], size, lambda number: _unpack(packed[number], size[1])


def _unpack(packed: npt.NDArray[np.uint8], width: int) -> npt.NDArray[np.bool_]:
    return np.unpackbits(packed, axis=1, count=width).view(np.bool_)


def _column(
    arrays: dict[str, npt.NDArray[Any]],
    name: str,
    shape: tuple[int, ...],
    limits: tuple[float, float | tuple[int, int]],
) -> Column | None:
    """Give an optional column of numbers within limits; the upper may be one for each of (x, y)."""
    if name not in arrays:
        return None
    array = arrays[name]
    _require(array, name, f"{shape} numbers", array.shape == shape and array.dtype.kind in "fiu")
    column = np.asarray(array, np.float64)
    if not ((column >= limits[0]) & (column <= np.array(limits[1]))).all():  # nan is neither
        raise ItemError(f"expected {name} from {limits[0]:g} to {limits[1]}, found other numbers")
    return column


def _require(array: npt.NDArray[Any], name: str, expected: str, fits: bool) -> None:
    if not fits:
        raise ItemError(f"expected {name} as {expected}, found {array.shape} {array.dtype}")


def _most_values(sizes: Sizes) -> dict[str, int]:
    """Give the arrays of known names and how many values each can have; a few more are let pass."""
    pixels = max(height * width for height, width in (sizes.original, sizes.target))
    rows = max(height * ((width + 7) // 8) for height, width in (sizes.original, sizes.target))
    masks = 2 * MAX_MASKS  # beyond MAX_MASKS it is `MaskSource.read` that says so
    return {
        "masks": masks * pixels,
        "packed": masks * rows,
        "size": 2,
        "predicted_iou": masks,
        "stability_score": masks,
        "point": 2 * masks,
    }


def _read_arrays(file: Path, sizes: Sizes) -> dict[str, npt.NDArray[Any]]:
    """Read the arrays of known names; nothing is unpickled, nothing large unpacked."""
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise ItemError(f"expected at most {MAX_FILE_BYTES} bytes, found more")
        with zipfile.ZipFile(file) as archive:
            members = set(archive.namelist())
            return {
                name: _read_array(archive, f"{name}.npy", most)
                for name, most in _most_values(sizes).items()
                if f"{name}.npy" in members
            }
    except ItemError:
        raise
    # As for images: damaged archives raise anything from BadZipFile to zlib's and struct's errors.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ItemError(
            f"expected an .npz of plain arrays, found a damaged one or another ({reason:.100}); "
            "save it again with np.savez_compressed"
        ) from error


def _read_array(archive: zipfile.ZipFile, member: str, most: int) -> npt.NDArray[Any]:
    """Read one array after its header was found to be harmless."""
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, _, dtype = read_header(stream)
        if dtype.hasobject or dtype.kind not in "biuf":
            raise ItemError(f"expected {member} as plain numbers, found {dtype}")
        count = math.prod(shape)  # Python's integers, so that no product overflows
        num_bytes = dtype.itemsize * count
        if not 0 <= num_bytes <= MAX_ARRAY_BYTES:
            raise ItemError(
                f"expected at most {MAX_ARRAY_BYTES} bytes in {member}, found {num_bytes} declared"
            )
        if count > most:
            raise ItemError(f"expected at most {most} values in {member}, found {count} declared")
    with archive.open(member) as stream:
        return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))
