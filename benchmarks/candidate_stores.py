"""Bytes and build time of an image's candidates: cells, COCO RLE, the released JSON.

`make bench-sam` runs it. The peers work on the same masks in the same process on one thread:
pycocotools' `encode`, and a restatement of the released SemiRES format, a JSON of (start, length)
pairs, from 1 and column by column, one list per mask.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import torch
from numcodecs import Zstd
from pycocotools import mask as coco_mask

from benchmarks.pictures import generated, photographs
from benchmarks.refinement import make_image, seconds_per_call
from pipeline.cells import build_cells_packed, masks_of, pack_membership
from pipeline.commands import print_table
from pipeline.sam.models import SAM_MODELS
from pipeline.sam.options import GeneratorOptions
from pipeline.store import ZSTD_LEVEL

BoolArray = npt.NDArray[np.bool_]
MASKS = 100


def ellipses(count: int) -> Iterator[BoolArray]:
    """Draw nested and overlapping ellipses at 480 x 640, as smooth as a large SAM's masks."""
    for seed in range(count):
        yield make_image(np.random.default_rng(seed), (480, 640), MASKS)[0]


def candidates_by(
    name: str, images: Callable[[], Iterator[npt.NDArray[np.uint8]]]
) -> Iterator[BoolArray]:
    """Give the candidates that an entry finds, without those that have no pixel."""
    entry = SAM_MODELS[name]
    options = entry.options_with(GeneratorOptions(max_candidates=MASKS))
    network = entry.load(None, "cpu", options)
    for image in images():
        found = entry.masks_of(network, image, options)
        yield found.masks[found.area > 0]


def released_json(masks: BoolArray) -> bytes:
    """Restate the released format: run by run in Python, then one JSON."""
    entries = []
    for mask in masks:
        flat = np.concatenate([[0], mask.T.ravel(), [0]])
        edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        pairs = [[int(a), int(b - a)] for a, b in zip(edges[0::2], edges[1::2], strict=True)]
        entries.append({"size": list(mask.shape), "counts": pairs})
    return json.dumps(entries).encode()


def coco_json(masks: BoolArray) -> bytes:
    """Encode by pycocotools and write what COCO's result files hold."""
    encoded = coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0), np.uint8))
    entries = [{"size": rle["size"], "counts": rle["counts"].decode()} for rle in encoded]
    return json.dumps(entries).encode()


def cell_bytes(bits: npt.NDArray[np.uint8], width: int) -> int:
    """Count what the store keeps: the map of cells and the membership, compressed as there."""
    cells, codec = build_cells_packed(bits, width), Zstd(ZSTD_LEVEL)
    membership = pack_membership(cells)
    return len(codec.encode(cells.cells)) + (
        len(codec.encode(membership)) if len(membership) else 0
    )


def measure(every: Iterator[BoolArray], repeats: int) -> list[float]:
    """Give the means over images: masks, cells, kB of each way, ms of each way."""
    rows = []
    for masks in every:
        bits, width = np.packbits(masks, axis=2), masks.shape[2]
        cells = build_cells_packed(bits, width)
        if not np.array_equal(masks_of(cells), masks):
            raise AssertionError("cells lost a pixel")
        coco = coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0), np.uint8))
        milliseconds = [
            1e3 * seconds_per_call(function, repeats)
            for function in (
                lambda bits=bits, width=width: build_cells_packed(bits, width),
                lambda masks=masks: coco_json(masks),
                lambda masks=masks: released_json(masks),
            )
        ]
        size = [
            cell_bytes(bits, width),
            sum(len(rle["counts"]) for rle in coco),
            len(coco_json(masks)),
            len(released_json(masks)),
        ]
        rows.append(
            [len(masks), cells.num_cells - 1, *(value / 1e3 for value in size), *milliseconds]
        )
    return [float(value) for value in np.mean(rows, axis=0)]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--images", type=click.IntRange(min=1), default=6, show_default=True)
@click.option("--photos", type=click.Path(path_type=Path), help="A folder of JPEG files.")
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True)
def main(images: int, photos: Path | None, repeats: int) -> None:
    """Print bytes and build time per image for several kinds of masks."""
    torch.set_num_threads(1)
    kinds: dict[str, Iterator[BoolArray]] = {"ellipses, 480 x 640": ellipses(images)}
    pictures = {"scenes": lambda: generated(images)}
    if photos is not None:
        pictures["photos"] = lambda: photographs(photos, images)
    for where, source in pictures.items():
        for name in ("region_merging", "vit_tiny_demo"):
            kinds[f"{name}, {where}"] = candidates_by(name, source)
    columns = ["masks of", "masks", "cells", "kB cells", "kB COCO RLE", "kB COCO JSON",
               "kB released JSON", "ms cells", "ms COCO", "ms released"]  # fmt: skip
    rows = [[kind, *measure(every, repeats)] for kind, every in kinds.items()]
    print_table(f"Per image, means over {images} images", columns, rows)


if __name__ == "__main__":
    main()
