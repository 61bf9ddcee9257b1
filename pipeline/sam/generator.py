"""Automatic mask generation: a grid of points over one image, a network on each, filters, NMS.

The semantics are those of `SamAutomaticMaskGenerator` (Segment Anything, Kirillov et al., ICCV
2023, arXiv:2304.02643), the order of work is not: masks are filtered by predicted IoU before they
are drawn, and counted as packed bits.

Shape legend: K points, M masks of a point (3), N masks, H and W rows and columns of the image,
P packed bytes of a row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.errors import ConfigError
from pipeline.sam.crops import Crop, crops_of, cut_by_crop, uncrop
from pipeline.sam.masks import Masks, masks_from_bits
from pipeline.sam.networks import Network, require_finite
from pipeline.sam.options import REFERENCE, GeneratorOptions
from pipeline.sam.packed import count_pixels, greedy_nms, inclusive_boxes
from pipeline.sam.small_regions import tidy_masks

__all__ = [
    "REFERENCE",
    "GeneratorOptions",
    "Masks",
    "Views",
    "generate_masks",
    "masks_of_views",
    "point_grid",
    "prepare_views",
]

# Bytes of logits at full size that are thresholded at once: more outgrow the caches of a CPU, a
# GPU wants few launches.
_CPU_BYTES, _CUDA_BYTES = 48 << 20, 1 << 30


@dataclass(frozen=True, slots=True)
class Views:
    """One image, ready to be encoded: itself and its crops."""

    size: tuple[int, int]
    """(H, W) of the image, pixels."""
    crops: list[Crop]
    """The whole image first."""
    prepared: list[torch.Tensor]
    """What the network's `prepare` gave for each crop."""


@dataclass(frozen=True, slots=True)
class _Rows:
    """Masks on their way to `Masks`."""

    bits: npt.NDArray[np.uint8]  # (N, H, P)
    box: npt.NDArray[np.float32]  # (N, 4) XYXY, inclusive
    predicted_iou: npt.NDArray[np.float32]
    stability_score: npt.NDArray[np.float32]
    point: npt.NDArray[np.float64]  # (N, 2)
    crop_area: npt.NDArray[np.float32]

    def select(self, rows: npt.NDArray[Any]) -> "_Rows":
        """Give the rows of a mask or an index array."""
        return _Rows(*(column[rows] for column in self.columns()))

    def columns(self) -> tuple[npt.NDArray[Any], ...]:
        """Give all columns in the order of the fields."""
        return (
            self.bits,
            self.box,
            self.predicted_iou,
            self.stability_score,
            self.point,
            self.crop_area,
        )


def point_grid(points_per_side: int, height: int, width: int) -> npt.NDArray[np.float64]:
    """Spread points evenly over an image.

    Args:
        points_per_side: Points along each side.
        height: Rows of the image.
        width: Columns of the image.

    Returns:
        (x, y) in pixels, x fastest, shape (points_per_side ** 2, 2), float64.
    """
    half = 1 / (2 * points_per_side)
    along = np.linspace(half, 1 - half, points_per_side)
    grid = np.stack(np.meshgrid(along, along), axis=-1).reshape(-1, 2)
    return grid * np.asarray([width, height], np.float64)


def _points_of(crop: Crop, options: GeneratorOptions) -> npt.NDArray[np.float64]:
    """Give a crop's points, (x, y) in pixels of the crop."""
    height, width = crop.size
    if options.point_grids is not None:
        grid = np.asarray(options.point_grids[crop.layer], np.float64)
        return grid * np.asarray([width, height], np.float64)
    assert options.points_per_side is not None
    assert options.crop_n_points_downscale_factor is not None
    fewer: int = options.crop_n_points_downscale_factor**crop.layer
    return point_grid(max(1, options.points_per_side // fewer), height, width)


def _pack_above(logits: torch.Tensor, cutoff: float) -> npt.NDArray[np.uint8]:
    """Threshold logits (N, H, W) and pack each row's bits, shape (N, H, P)."""
    if logits.device.type == "cpu":
        return np.packbits(logits.numpy() > np.float32(cutoff), axis=-1)
    return np.asarray(_pack_on_device(logits > cutoff).cpu().numpy())


def _pack_on_device(above: torch.Tensor) -> torch.Tensor:
    """Pack rows (…, W) of a bool tensor as `np.packbits` does, so that an eighth is copied."""
    padded = torch.nn.functional.pad(above.to(torch.uint8), (0, -above.shape[-1] % 8))
    places = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=above.device)
    packed: torch.Tensor = (padded.unflatten(-1, (-1, 8)) * places).sum(-1, dtype=torch.uint8)
    return packed


def _filter_drawn(
    network: Network, logits: torch.Tensor, size: tuple[int, int], options: GeneratorOptions
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Draw masks at full size; give bits and stability of those kept, and which they are."""
    thresh, offset = options.stability_score_thresh, options.stability_score_offset
    assert thresh is not None
    assert offset is not None
    full = network.draw(logits, size)
    inner = count_pixels(_pack_above(full, network.mask_threshold + offset))
    outer = count_pixels(_pack_above(full, network.mask_threshold - offset))
    with np.errstate(invalid="ignore"):
        score = inner.astype(np.float32) / outer.astype(np.float32)
    kept = score >= thresh if thresh > 0 else np.ones(len(score), np.bool_)  # NaN is not kept
    bits = _pack_above(full, network.mask_threshold)
    return bits[kept], np.nan_to_num(score[kept]), kept


def _decode_batch(
    network: Network,
    embedding: Any,
    points: npt.NDArray[np.float64],
    size: tuple[int, int],
    options: GeneratorOptions,
) -> tuple[npt.NDArray[Any], ...]:
    """Give bits, predicted IoU, stability and points of the masks that pass both filters."""
    thresh = options.pred_iou_thresh
    assert thresh is not None

    def select(iou: torch.Tensor) -> torch.Tensor:
        require_finite(iou, "predicted IoU")
        return iou > thresh if thresh > 0 else torch.ones_like(iou, dtype=torch.bool)

    decoded = network.decode(embedding, points, size, select)
    logits = require_finite(decoded.logits, "mask logits")
    budget = _CPU_BYTES if logits.device.type == "cpu" else _CUDA_BYTES
    step = max(1, budget // (4 * max(size[0] * size[1], network.side**2)))
    drawn = [
        _filter_drawn(network, logits[start : start + step], size, options)
        for start in range(0, len(logits), step)
    ]
    if not drawn:
        none = np.zeros(0, np.float32)
        packed = np.zeros((0, size[0], -(-size[1] // 8)), np.uint8)
        return packed, none, none, np.zeros((0, 2), np.float64)
    bits, score, kept = (np.concatenate(column) for column in zip(*drawn, strict=True))
    rows = decoded.wanted.cpu().numpy()[kept]
    predicted = decoded.predicted_iou.cpu().numpy()[rows[:, 0], rows[:, 1]]
    return bits, predicted, score, points[rows[:, 0]]


def _rows_of_crop(
    network: Network, embedding: Any, crop: Crop, image: tuple[int, int], options: GeneratorOptions
) -> _Rows:
    """Find the masks of a crop, drop duplicates, and lay them into the image."""
    step, thresh = options.points_per_batch, options.box_nms_thresh
    assert step is not None
    assert thresh is not None
    points = _points_of(crop, options)
    batches = [
        _decode_batch(network, embedding, points[start : start + step], crop.size, options)
        for start in range(0, len(points), step)
    ]
    bits, predicted, stability, point = map(np.concatenate, zip(*batches, strict=True))
    box = inclusive_boxes(bits, crop.size[1])
    whole = np.flatnonzero(~cut_by_crop(box + crop.offset, crop, image))
    kept = whole[greedy_nms(box[whole], predicted[whole], thresh)]
    return _Rows(
        bits=uncrop(bits[kept], crop, image),
        box=box[kept] + crop.offset,
        predicted_iou=predicted[kept],
        stability_score=stability[kept],
        point=point[kept] + crop.offset[:2],
        crop_area=np.full(len(kept), crop.size[0] * crop.size[1], np.float32),
    )


def _check_image(image: npt.NDArray[np.uint8]) -> None:
    """Refuse what is not an RGB image."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"expected an image (H, W, 3) of uint8, got {image.shape} {image.dtype}")


def prepare_views(
    network: Network, image: npt.NDArray[np.uint8], options: GeneratorOptions
) -> Views:
    """Crop and scale one image for `masks_of_views`; on the CPU alone, safe in a thread.

    Args:
        network: What will encode it.
        image: Shape (H, W, 3), RGB, of any size from 1 x 1.
        options: What is None takes the value of `REFERENCE`.

    Raises:
        ConfigError: If there are fewer point grids than crop layers.
        ValueError: If the image has another shape or dtype.
    """
    _check_image(image)
    options = options.filled(REFERENCE)
    layers, overlap = options.crop_n_layers, options.crop_overlap_ratio
    assert layers is not None
    assert overlap is not None
    grids = options.point_grids
    if grids is not None and len(grids) != layers + 1:
        raise ConfigError(
            f"point_grids must hold a grid per crop layer, {layers + 1}, got {len(grids)}"
        )
    size = (image.shape[0], image.shape[1])
    crops = crops_of(size, layers, overlap)
    parts = [image[crop.top : crop.bottom, crop.left : crop.right] for crop in crops]
    return Views(size, crops, [network.prepare(part) for part in parts])


@torch.inference_mode()
def masks_of_views(
    network: Network, images: Sequence[Views], options: GeneratorOptions = REFERENCE
) -> list[Masks]:
    """Find the masks of images, encoding `images_per_batch` of their crops at once.

    Raises:
        SemiresError: If the network's outputs are not finite.
    """
    options = options.filled(REFERENCE)
    embeddings = _encoded(network, [one for views in images for one in views.prepared], options)
    return [_masks_of_image(network, views, embeddings, options) for views in images]


def _encoded(
    network: Network, prepared: list[torch.Tensor], options: GeneratorOptions
) -> Iterator[Any]:
    """Give the embedding of each crop, no more of them ahead than are encoded at once."""
    step = options.images_per_batch
    assert step is not None
    for start in range(0, len(prepared), step):
        yield from network.encode(prepared[start : start + step])


def _masks_of_image(
    network: Network, views: Views, embeddings: Iterator[Any], options: GeneratorOptions
) -> Masks:
    """Gather the masks of an image's crops, drop duplicates between them, tidy, cap.

    Takes as many of the embeddings as the image has crops.
    """
    between, within = options.crop_nms_thresh, options.box_nms_thresh
    assert between is not None
    assert within is not None
    parts = [
        _rows_of_crop(network, next(embeddings), crop, views.size, options) for crop in views.crops
    ]
    rows = _Rows(*map(np.concatenate, zip(*(part.columns() for part in parts), strict=True)))
    if options.crop_n_layers:  # the masks of smaller crops are preferred
        rows = rows.select(greedy_nms(rows.box, np.float32(1) / rows.crop_area, between))
    if options.min_mask_region_area and len(rows.bits):
        bits, kept = tidy_masks(
            rows.bits, views.size[1], options.min_mask_region_area, max(within, between)
        )
        rows = replace(rows.select(kept), bits=bits)
    count = len(rows.bits)
    if options.max_candidates is not None and count > options.max_candidates:
        best = np.argsort(-rows.predicted_iou, kind="stable")[: options.max_candidates]
        rows = rows.select(np.sort(best))
    return masks_from_bits(
        rows.bits,
        views.size[1],
        rows.predicted_iou,
        rows.stability_score,
        rows.point.astype(np.float32),
        num_dropped=count - len(rows.bits),
    )


def generate_masks(
    network: Network, image: npt.NDArray[np.uint8], options: GeneratorOptions = REFERENCE
) -> Masks:
    """Find every mask of one image.

    Departs from `SamAutomaticMaskGenerator` in how a result is told: boxes are half-open, a score
    of 0 divided by 0 is 0, and there are results where the original raises: no mask in any crop,
    crops of tiny images and panoramas, and less than one point per side, which is one here.

    Args:
        network: In evaluation mode.
        image: Shape (H, W, 3), RGB, of any size from 1 x 1.
        options: What is None takes the value of `REFERENCE`; fill in the model entry's own
            defaults with `options.filled(SAM_MODELS[name].options)` first.

    Returns:
        The masks, in the order of the original: best predicted IoU first, with crops by crop, with
        `min_mask_region_area` those without a small region first. There may be none, and with the
        filters off there may be masks without a pixel.

    Raises:
        SemiresError: If the network's outputs are not finite.
        ValueError: If the image has another shape or dtype.
    """
    return masks_of_views(network, [prepare_views(network, image, options)], options)[0]
