"""How well candidates cover what is to be found: the best candidate of every true mask.

`make bench-oracle` runs it for the entries that need no checkpoint, on scenes that no weights were
trained on and, where a data set in the form of recipes/photos.yaml is given, on its polygons.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import spearmanr

from pipeline.commands import print_table
from pipeline.data_config import DataConfig
from pipeline.images import read_image
from pipeline.manifest import load_manifest
from pipeline.paths import RunPaths
from pipeline.prepare import prepare_data
from pipeline.sam.evaluate_tiny import Labelled, generated_scenes, ious
from pipeline.sam.masks import Masks
from pipeline.sam.models import SAM_MODELS
from pipeline.sam.options import GeneratorOptions

CANVAS = 640
ENTRIES: dict[str, tuple[str, GeneratorOptions]] = {
    "vit_tiny_demo": ("vit_tiny_demo", GeneratorOptions()),
    "vit_tiny_demo, 24 x 24 points": ("vit_tiny_demo", GeneratorOptions(points_per_side=24)),
    "vit_tiny_demo, crops": (
        "vit_tiny_demo",
        GeneratorOptions(crop_n_layers=1, crop_n_points_downscale_factor=2, crop_nms_thresh=0.9),
    ),
    "region_merging": ("region_merging", GeneratorOptions()),
    "vit_tiny_regions": ("vit_tiny_regions", GeneratorOptions()),
}


@dataclass(frozen=True, slots=True)
class Scores:
    """What one image's candidates came to."""

    objects: npt.NDArray[np.float64]
    """IoU of each object with its best candidate."""
    parts: npt.NDArray[np.float64]
    count: int
    rank: float
    """Spearman correlation of the predicted IoU and the true one with the nearest true mask; NaN
    where one of them does not vary."""


def annotated_photos(annotations: Path, count: int) -> Iterator[Labelled]:
    """Give the images of a data set of the jsonl reader that have polygons."""
    with TemporaryDirectory() as folder:
        run_dir = Path(folder)
        config = DataConfig(reader="jsonl", annotations=annotations)
        prepare_data(config, run_dir)
        manifest = load_manifest(RunPaths(run_dir).manifest)
        given = 0
        for image in range(manifest.num_images):
            rows = np.flatnonzero(manifest.object_image == image)
            truths = [manifest.truth(row, CANVAS) for row in rows]
            known = [truth for truth in truths if truth is not None]
            if known and given < count:
                given += 1
                pixels = read_image(manifest.image_file(image), canvas=CANVAS)
                yield Labelled(pixels, np.stack(known), np.zeros((0, *pixels.shape[:2]), np.bool_))


def score(labelled: Labelled, found: Masks) -> Scores:
    """Compare candidates with the true masks of their image."""
    masks = found.masks
    to_objects, to_parts = ious(labelled.objects, masks), ious(labelled.parts, masks)
    nearest = np.concatenate([to_objects, to_parts]).max(0, initial=0)
    varies = len(masks) > 1 and np.ptp(nearest) > 0 and np.ptp(found.predicted_iou) > 0
    return Scores(
        objects=to_objects.max(1, initial=0),
        parts=to_parts.max(1, initial=0),
        count=len(masks),
        rank=float(spearmanr(found.predicted_iou, nearest)[0]) if varies else np.nan,
    )


def row_of(scores: list[Scores]) -> list[Any]:
    """Give the table's cells: oracle over objects, found at 0.7, parts, candidates, ranking."""
    objects, parts = (
        np.concatenate([getattr(s, name) for s in scores]) for name in ("objects", "parts")
    )
    counts = [one.count for one in scores]
    return [
        float(objects.mean()),
        float((objects > 0.7).mean()),
        float(parts.mean()) if len(parts) else None,
        float(np.mean(counts)),
        max(counts),
        float(np.nanmean([one.rank for one in scores])),
    ]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--images", type=click.IntRange(min=1), default=40, show_default=True)
@click.option("--max-candidates", type=click.IntRange(min=1), default=200, show_default=True)
@click.option("--photos", type=click.Path(path_type=Path), help="A photos.jsonl with polygons.")
def main(images: int, max_candidates: int, photos: Path | None) -> None:
    """Print how well the best of at most --max-candidates candidates fits each true mask."""
    torch.set_num_threads(1)
    sources = {"scenes": list(generated_scenes(images))}
    if photos is not None:
        sources["photos"] = list(annotated_photos(photos, images))
    rows = []
    for where, pictures in sources.items():
        for title, (name, options) in ENTRIES.items():
            entry = SAM_MODELS[name]
            own = options.filled(GeneratorOptions(max_candidates=max_candidates))
            filled = entry.options_with(own)
            network = entry.load(None, "cpu", filled)
            scores = [
                score(picture, entry.masks_of(network, picture.image, filled))
                for picture in pictures
            ]
            rows.append([f"{title}, {where}", *row_of(scores)])
    columns = ["candidates by", "object IoU", "found at 0.7", "part IoU", "candidates", "most",
               "rank correlation"]  # fmt: skip
    print_table(f"Best candidate of each true mask, {images} images of each kind", columns, rows)


if __name__ == "__main__":
    main()
