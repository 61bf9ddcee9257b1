"""Shell: how far the candidates of the fast profile are from those of the reference."""

import dataclasses
from typing import Any

import numpy as np

from pipeline.candidate_config import CandidatesConfig, source_of_masks
from pipeline.candidate_sources import masks_of_images
from pipeline.errors import ConfigError, ItemError
from pipeline.manifest import load_manifest
from pipeline.paths import RunPaths
from pipeline.places import Place
from pipeline.sam.difference import Difference, compare_masks


def measure_difference(config: CandidatesConfig, run_dir: Place, num_images: int) -> dict[str, Any]:
    """Make the candidates of the first training images by both profiles and compare them.

    Args:
        config: Its profile is left aside.
        run_dir: Run directory with a manifest; nothing is written to it.
        num_images: How many images; those that cannot be read are left out.

    Returns:
        Names and values for a table: shares in [0, 1], mean IoU in [0, 1] with masks that have no
        partner counted as 0.

    Raises:
        ConfigError: If the model has no profiles, or no image can be read.
    """
    if not config.has_network:
        raise ConfigError(
            f"model {config.model} has no network, so there are no profiles to compare"
        )
    manifest = load_manifest(RunPaths(run_dir).manifest)
    images = manifest.images_of("train")[:num_images]
    source = source_of_masks(config)
    found = []
    for profile in ("reference", "fast"):
        options = dataclasses.replace(config.options, profile=profile)
        changed = dataclasses.replace(config, options=options)
        found.append(dict(masks_of_images(changed, manifest, images, source)))
    rows = [
        compare_masks(one, other)
        for one, other in zip(found[0].values(), found[1].values(), strict=True)
        if not isinstance(one, ItemError) and not isinstance(other, ItemError)
    ]
    if not rows:
        raise ConfigError(f"none of the first {num_images} training images can be read")
    return _summary(rows)


def _summary(rows: list[Difference]) -> dict[str, Any]:
    expected = sum(row.num_expected for row in rows)
    identical = sum(row.identical for row in rows)
    return {
        "images": len(rows),
        "reference candidates": expected,
        "fast candidates": sum(row.num_found for row in rows),
        "share of images with equal count": float(
            np.mean([row.num_expected == row.num_found for row in rows])
        ),
        "share of candidates identical": identical / expected if expected else 1.0,
        "matched mIoU, misses as 0": float(np.mean([row.matched_iou for row in rows])),
    }
