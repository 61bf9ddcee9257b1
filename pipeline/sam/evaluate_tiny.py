"""Measure candidates on pictures whose masks are known: `python -m pipeline.sam.evaluate_tiny`."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import torch

from pipeline.sam.blobs import blob_scene
from pipeline.sam.models import SAM_MODELS, SamModel
from pipeline.sam.options import GeneratorOptions
from pipeline.sam.tiny_batches import HELD_OUT_SEED
from pipeline.scenes.scene import make_scene

BoolArray = npt.NDArray[np.bool_]
_FIRST = 1000  # the scenes before it choose thresholds and fit the IoU head
_MIN_PART_AREA = 48  # pixels, as for blobs


@dataclass(frozen=True, slots=True)
class Labelled:
    """One image and its true masks."""

    image: npt.NDArray[np.uint8]
    """Shape (H, W, 3), RGB."""
    objects: BoolArray
    """Shape (N, H, W)."""
    parts: BoolArray
    """Shape (N', H, W)."""


def held_out_blobs(count: int, first: int = _FIRST) -> Iterator[Labelled]:
    """Give blobs that no training run has seen."""
    for index in range(first, first + count):
        scene = blob_scene(HELD_OUT_SEED, index)
        yield Labelled(scene.image, scene.masks("object"), scene.masks("region"))


def generated_scenes(count: int, first: int = 0) -> Iterator[Labelled]:
    """Give scenes of the embedded data set, which the small SAM is never trained on."""
    for index in range(first, first + count):
        scene = make_scene(0, "val", index)
        told = [thing for thing in scene.objects if thing.expressions]
        objects = np.stack([thing.mask for thing in told])
        parts = [mask for thing in told for mask in thing.parts.values()]
        large = np.stack([mask for mask in parts if mask.sum() >= _MIN_PART_AREA])
        yield Labelled(scene.image, objects, large)


SOURCES: dict[str, Callable[[int], Iterator[Labelled]]] = {
    "blobs": held_out_blobs,
    "scenes": generated_scenes,
}


def ious(truth: BoolArray, masks: BoolArray) -> npt.NDArray[np.float64]:
    """Give the IoU of every true mask (N, H, W) with every candidate (M, H, W), (N, M)."""
    wanted = truth.reshape(len(truth), truth[0].size if len(truth) else 0).astype(np.float32)
    found = masks.reshape(len(masks), masks[0].size if len(masks) else 0).astype(np.float32)
    if not len(wanted) or not len(found):
        return np.zeros((len(wanted), len(found)))
    both = wanted @ found.T
    either = wanted.sum(1)[:, None] + found.sum(1)[None] - both
    return np.asarray(both / np.maximum(either, 1), np.float64)


def best_iou(truth: BoolArray, masks: BoolArray) -> npt.NDArray[np.float64]:
    """Give each true mask's IoU with the candidate that fits it best, (N,); 0 if there is none."""
    return np.asarray(ious(truth, masks).max(1, initial=0))


def evaluate(
    entry: SamModel, network: Any, images: Iterator[Labelled], options: GeneratorOptions
) -> dict[str, float]:
    """Measure how well the best candidate fits each true mask.

    Args:
        entry: How candidates are made.
        network: What the entry has loaded.
        images: Pictures with their true masks.
        options: All options that the entry needs.

    Returns:
        Mean oracle IoU over objects and over parts, the share of objects above IoU 0.7,
        candidates and seconds per image.
    """
    objects, parts, counts, seconds = [], [], [], []
    for labelled in images:
        began = time.perf_counter()
        masks = entry.masks_of(network, labelled.image, options).masks
        seconds.append(time.perf_counter() - began)
        counts.append(len(masks))
        objects.append(best_iou(labelled.objects, masks))
        parts.append(best_iou(labelled.parts, masks))
    every, pieces = np.concatenate(objects), np.concatenate(parts)
    return {
        "images": len(counts),
        "object_iou": round(float(every.mean()), 4),
        "object_found_at_0.7": round(float((every > 0.7).mean()), 4),
        "part_iou": round(float(pieces.mean()), 4),
        "candidates": round(float(np.mean(counts)), 1),
        "fewest": int(np.min(counts)),
        "most": int(np.max(counts)),
        "seconds": round(float(np.median(seconds)), 4),
    }


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--model", type=click.Choice(list(SAM_MODELS)), default="vit_tiny_demo")
@click.option("--weights", type=click.Path(path_type=Path), help="Instead of the entry's own.")
@click.option("--max-candidates", type=click.IntRange(min=1), default=256, show_default=True)
@click.option("--images", type=click.IntRange(min=1), default=60, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--source", type=click.Choice(list(SOURCES)), default="blobs", show_default=True)
def main(
    model: str, weights: Path | None, max_candidates: int, images: int, threads: int, source: str
) -> None:
    """Print what an entry finds on unseen pictures at its defaults, as JSON."""
    torch.set_num_threads(threads)
    entry = SAM_MODELS[model]
    options = entry.options_with(GeneratorOptions(max_candidates=max_candidates))
    network = entry.load(weights, "cpu", options)
    result = evaluate(entry, network, SOURCES[source](images), options)
    click.echo(json.dumps(result))


if __name__ == "__main__":
    main()
