"""How equal the masks of both profiles are to those of segment-anything's own generator.

`make bench-equality` runs it: every image under every set of options, both profiles.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import click
import numpy as np
import torch

from benchmarks.meta_generator import meta_masks
from benchmarks.pictures import generated, photographs
from pipeline.sam.difference import Difference, compare_masks
from pipeline.sam.generator import generate_masks
from pipeline.sam.networks import SegmentAnything
from pipeline.sam.options import GeneratorOptions
from pipeline.sam.tiny import load_vit_tiny_demo

PROFILES: tuple[Literal["reference", "fast"], ...] = ("reference", "fast")
COUNTS = ("num_expected", "identical")
_GRID = tuple((0.1 + 0.2 * i, 0.15 + 0.14 * j) for i in range(5) for j in range(6))
OPTION_SETS: dict[str, GeneratorOptions] = {
    "thresholds 0.5, 0.8": GeneratorOptions(pred_iou_thresh=0.5, stability_score_thresh=0.8),
    "filters off": GeneratorOptions(
        pred_iou_thresh=0.0, stability_score_thresh=0.0, box_nms_thresh=0.9
    ),
    "crops": GeneratorOptions(
        pred_iou_thresh=0.4,
        stability_score_thresh=0.6,
        crop_n_layers=1,
        crop_n_points_downscale_factor=2,
    ),
    "two layers of crops, small regions": GeneratorOptions(
        pred_iou_thresh=0.4,
        stability_score_thresh=0.6,
        crop_n_layers=2,
        crop_n_points_downscale_factor=2,
        crop_overlap_ratio=0.2,
        min_mask_region_area=60,
    ),
    "small regions": GeneratorOptions(
        pred_iou_thresh=0.3, stability_score_thresh=0.4, min_mask_region_area=100
    ),
    "own grid": GeneratorOptions(
        pred_iou_thresh=0.3, stability_score_thresh=0.5, point_grids=(_GRID,)
    ),
    "zero masks": GeneratorOptions(pred_iou_thresh=1.0, stability_score_thresh=0.95),
}


def compare(sam: Any, image: np.ndarray, options: GeneratorOptions) -> dict[str, Difference]:
    """Run the original once and each profile once on one image."""
    expected = meta_masks(sam, image, options)
    return {
        profile: compare_masks(
            expected, generate_masks(SegmentAnything(sam, profile), image, options)
        )
        for profile in PROFILES
    }


def summarise(rows: list[Difference]) -> str:
    """Give the table's cells of one set of options and profile."""
    equal = np.mean([row.num_expected == row.num_found for row in rows])
    expected, identical = (sum(getattr(row, name) for row in rows) for name in COUNTS)
    share = identical / expected if expected else 1.0
    iou = np.mean([row.matched_iou for row in rows])
    return f"{100 * equal:.1f} % | {expected} | {100 * share:.2f} % | {iou:.6f}"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--scenes", type=click.IntRange(min=1), default=12, show_default=True)
@click.option("--photos", type=click.Path(path_type=Path), help="A folder of JPEG files.")
@click.option("--points", type=click.IntRange(min=4), default=8, show_default=True)
def main(scenes: int, photos: Path | None, points: int) -> None:
    """Print, per set of options and profile, what share of images and masks is identical."""
    torch.set_num_threads(1)
    sam = load_vit_tiny_demo()
    images = [*generated(scenes), *(photographs(photos, scenes) if photos else ())]
    print(f"{len(images)} images, vit_tiny_demo, {points} x {points} points")
    print("options | profile | images with equal count | masks | identical | matched mIoU")
    for name, options in OPTION_SETS.items():
        grid = {} if options.point_grids else {"points_per_side": points}
        every = [compare(sam, image, replace(options, **grid)) for image in images]
        for profile in PROFILES:
            print(f"{name} | {profile} | {summarise([one[profile] for one in every])}", flush=True)


if __name__ == "__main__":
    main()
