"""Candidates without a checkpoint: the small SAM's masks with sharp edges, then merged regions.

The small SAM finds whole things but blurs their edges; regions have the edges but not the things.
So its masks are moved to the edges of small regions, and merged regions fill up the list.

Shape legend: H and W rows and columns of the image.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.sam import region_merging
from pipeline.sam.generator import Views, masks_of_views, prepare_views
from pipeline.sam.masks import Masks, masks_from_bits
from pipeline.sam.networks import Network
from pipeline.sam.options import GeneratorOptions
from pipeline.sam.snapping import snap_to_regions, without_duplicates

VERSION = f"tiny_regions 1, {region_merging.VERSION}"
"""Raised whenever the same image and weights would give other masks or scores."""

_SAME = 0.9  # IoU above which the later of two masks is dropped


class Prepared(NamedTuple):
    """One image for the network and for the regions."""

    image: npt.NDArray[np.uint8]
    """Shape (H, W, 3), RGB."""
    views: Views


def prepare(network: Network, image: npt.NDArray[np.uint8], options: GeneratorOptions) -> Prepared:
    """Scale an image for the network; on the CPU alone, safe in a thread."""
    return Prepared(image, prepare_views(network, image, options))


def generate(
    network: Network, images: Sequence[Prepared], options: GeneratorOptions
) -> list[Masks]:
    """Find the masks of images.

    Args:
        network: The small SAM.
        images: From `prepare`.
        options: Of the mask generator; `max_candidates` counts both kinds together.

    Returns:
        The network's masks first, best first, then regions, best first; no two with an IoU above
        0.9, none without a pixel. The network's scores and prompts are those of its own masks,
        before their edges were moved; those of regions are as `region_masks` gives them.
    """
    every = replace(options, max_candidates=None)
    found = masks_of_views(network, [one.views for one in images], every)
    return [
        _united(masks, region_merging.region_masks(one.image, options), one.image, options)
        for one, masks in zip(images, found, strict=True)
    ]


def _united(
    of_network: Masks, regions: Masks, image: npt.NDArray[np.uint8], options: GeneratorOptions
) -> Masks:
    """Move the edges of a network's masks, then add regions."""
    best = of_network.select(np.argsort(-of_network.predicted_iou, kind="stable"))
    snapped = snap_to_regions(best.bits, region_merging.small_regions_of(image))
    united = masks_from_bits(
        np.concatenate([snapped, regions.bits]),
        best.width,
        np.concatenate([best.predicted_iou, regions.predicted_iou]),
        np.concatenate([best.stability_score, regions.stability_score]),
        np.concatenate([best.point, regions.point]),
    )
    kept = without_duplicates(united.bits, _SAME)
    chosen = kept[: options.max_candidates]
    return replace(united.select(chosen), num_dropped=len(kept) - len(chosen) + regions.num_dropped)
