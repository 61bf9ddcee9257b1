"""segment-anything's own mask generator, run as it is, with its results as our columns.

Where torchvision has no compiled operators, its `batched_nms` is given a plain torch statement.
"""

from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from pipeline.sam.masks import Masks, masks_from_bits
from pipeline.sam.options import REFERENCE, GeneratorOptions
from pipeline.torchvision_ops import compiled_ops_load, ensure_importable

ensure_importable()

import segment_anything.automatic_mask_generator as original  # noqa: E402 - imports torchvision

_OURS_ALONE = ("images_per_batch", "max_candidates", "profile", "compile_encoder")


def plain_nms(
    box: torch.Tensor, score: torch.Tensor, _category: torch.Tensor, iou_threshold: float
) -> torch.Tensor:
    """Greedy non-maximum suppression of one category, as torchvision defines it."""
    order = torch.argsort(score, descending=True, stable=True)
    area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
    kept = []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(best)
        low = torch.maximum(box[best, :2], box[rest, :2])
        high = torch.minimum(box[best, 2:], box[rest, 2:])
        both = (high - low).clamp(min=0).prod(1)
        iou = both / (area[best] + area[rest] - both)
        order = rest[~(iou.double() > iou_threshold)]
    return torch.stack(kept) if kept else torch.zeros(0, dtype=torch.int64)


def meta_generator(sam: Any, options: GeneratorOptions, output_mode: str) -> Any:
    """Build `SamAutomaticMaskGenerator` with the same options."""
    if not compiled_ops_load():
        original.batched_nms = plain_nms
    given = asdict(options.filled(REFERENCE))
    if options.point_grids is not None:
        given["point_grids"] = [np.asarray(grid) for grid in options.point_grids]
    wanted = {key: value for key, value in given.items() if key not in _OURS_ALONE}
    return original.SamAutomaticMaskGenerator(sam, **wanted, output_mode=output_mode)


def meta_masks(sam: Any, image: np.ndarray, options: GeneratorOptions) -> Masks:
    """Run it on one image (H, W, 3) uint8 RGB; boxes and areas are taken from the masks.

    With crops and no mask in any of them it ends with an IndexError, which counts as no masks.
    """
    try:
        records = meta_generator(sam, options, "binary_mask").generate(image)
    except IndexError:
        if not options.crop_n_layers:
            raise
        records = []
    masks = np.zeros((len(records), *image.shape[:2]), np.bool_)
    for row, record in enumerate(records):
        masks[row] = record["segmentation"]
    return masks_from_bits(
        np.packbits(masks, axis=2),
        image.shape[1],
        np.asarray([record["predicted_iou"] for record in records], np.float32),
        np.nan_to_num(np.asarray([record["stability_score"] for record in records], np.float32)),
        np.asarray([record["point_coords"][0] for record in records], np.float32).reshape(-1, 2),
    )
