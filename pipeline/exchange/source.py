"""What every format gives: the masks of one image, checked, in the geometry that is asked for."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pipeline.errors import ItemError
from pipeline.exchange.runs import Size
from pipeline.manifest import Manifest
from pipeline.sam.masks import Masks, masks_from_bits
from pipeline.segmentation import rescale_mask

MAX_MASKS = 4096
"""Masks of one image; SAM's densest usual grid proposes 3,072 before it drops any."""

PREDICTED_IOU = (-0.5, 1.5)
"""SAM's estimate has no sigmoid and may leave [0, 1] by a little; percentages are refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundMask:
    """One mask as its file has it."""

    mask: npt.NDArray[np.bool_]
    """Shape (H, W), of one of the sizes admitted; it may cover no pixel."""
    predicted_iou: float = 1.0
    """Within `PREDICTED_IOU`; 1 where the file has none."""
    stability_score: float = 1.0
    """In [0, 1]; 1 where the file has none."""
    point: tuple[float, float] | None = None
    """The prompt, (x, y) in pixels of `mask`; None where the file has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a file says of one image, decoded mask by mask."""

    where: str
    """File and, if it holds several images, the image; begins the message of an error."""
    count: int
    """Masks, empty ones included."""
    mask_at: Callable[[int], FoundMask]
    """Gives mask 0 to `count` - 1, or raises ItemError."""
    notes: tuple[str, ...] = ()
    """What had to be left out or made good, one line each."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The two sizes, (H, W) in pixels, at which the masks of an image may be stored."""

    original: Size
    target: Size

    def checked(self, height: object, width: object) -> Size:
        """Give a size that a file states, if it is one of the two.

        Raises:
            ItemError: If it is not.
        """
        for size in (self.original, self.target):
            if type(height) is int and type(width) is int and (height, width) == size:
                return size
        known = f"{self.original[0]}x{self.original[1]} (HxW) as the image"
        if self.target != self.original:
            known += f" or {self.target[0]}x{self.target[1]} as in the store"
        raise ItemError(f"expected a mask of {known}, found {height!r:.20}x{width!r:.20}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedMasks:
    """The masks of one image and what became of the others."""

    masks: Masks
    notes: tuple[str, ...]
    """What was left out or made good, one line each; empty where all went well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskSource:
    """An opened source of masks; it holds no open file and may be read from many threads."""

    manifest: Manifest
    find: Callable[[int, Sizes], Found]
    """Gives what is known of a manifest image row, or raises ItemError."""

    def masks_of(self, row: int, size: Size) -> Masks:
        """Give the masks of an image, as `read` does, without the notes."""
        return self.read(row, size).masks

    def read(self, row: int, size: Size) -> ImportedMasks:
        """Read the masks of an image.

        Masks stored at the image's own size are scaled to the nearest pixel; prompts go along.
        A score that is missing is 1, a prompt that is missing the middle one of the mask's pixels
        in raster order. Masks without a pixel, before or after scaling, are left out.

        Args:
            row: Manifest row of the image.
            size: (h, w) of the masks in canvas geometry, see `pipeline.images.canvas_size`.

        Returns:
            Masks in the order of the file, none if the source lists the image without any.

        Raises:
            ItemError: If the source has no entry for the image, or one that cannot be used.
        """
        found = self.find(row, Sizes(self.manifest.size_of(row), size))
        if found.count > MAX_MASKS:
            raise ItemError(
                f"{found.where}: expected at most {MAX_MASKS} masks, found {found.count}; "
                "keep the best of them"
            )
        kept = [mask for n in range(found.count) if (mask := _scaled_mask(found, n, size))]
        notes = found.notes
        if empty := found.count - len(kept):
            notes += (f"{found.where}: {empty} of {found.count} masks cover no pixel; left out",)
        return ImportedMasks(masks=_columns(kept, size), notes=notes)


def best_masks(masks: Masks, max_masks: int) -> Masks:
    """Keep the masks of the highest predicted IoU, ties in favour of the earlier.

    Args:
        masks: Masks of an image.
        max_masks: How many to keep, at least 1.

    Returns:
        The kept ones in their order; those left out are counted in `num_dropped`.
    """
    order = np.argsort(-masks.predicted_iou, kind="stable")[:max_masks]
    dropped = masks.num_dropped + len(masks) - len(order)
    return replace(masks.select(np.sort(order)), num_dropped=dropped)


@dataclass(frozen=True, slots=True)
class _Kept:
    """A mask that is kept: packed rows, scores, prompt in canvas geometry."""

    bits: npt.NDArray[np.uint8]
    scores: tuple[float, float]
    point: tuple[float, float]


def _scaled_mask(found: Found, number: int, size: Size) -> _Kept | None:
    """Give a mask in the geometry that is asked for; None if it covers no pixel there."""
    try:
        entry = found.mask_at(number)
    except ItemError as error:
        raise ItemError(f"{found.where}: mask {number}: {error}") from error
    mask = rescale_mask(entry.mask, size)
    pixels = np.flatnonzero(mask)
    if not len(pixels):
        return None
    if entry.point is None:
        y, x = divmod(int(pixels[len(pixels) // 2]), size[1])
        point = float(x), float(y)
    else:
        height, width = entry.mask.shape
        point = entry.point[0] * size[1] / width, entry.point[1] * size[0] / height
    scores = entry.predicted_iou, entry.stability_score
    return _Kept(np.packbits(mask, axis=1), scores, point)


def _columns(kept: list[_Kept], size: Size) -> Masks:
    bits = np.zeros((len(kept), size[0], (size[1] + 7) // 8), np.uint8)
    for number, mask in enumerate(kept):
        bits[number] = mask.bits
    scores = np.array([mask.scores for mask in kept], np.float32).reshape(-1, 2)
    return masks_from_bits(
        bits=bits,
        width=size[1],
        predicted_iou=scores[:, 0].copy(),
        stability_score=scores[:, 1].copy(),
        point=np.array([mask.point for mask in kept], np.float32).reshape(-1, 2),
    )
