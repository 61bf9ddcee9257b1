"""Speed of matching and of the refine stage, side by side with peers: `make bench-refine`.

The peers, on the same inputs in the same process and on one thread: pycocotools (RLE `encode` of P,
then `iou` with all candidates), numpy on dense masks, and a restatement of how the released SemiRES
code matches (a Python loop over int64 masks in torch). Ratios are what counts; machines differ.
"""

import time
from collections.abc import Callable
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import torch
from pycocotools import mask as coco_mask

from pipeline.cells import build_cells
from pipeline.commands import print_table
from refine.evidence import expected_iou, gather, gather_image
from refine.labels import empty_columns, encode_label
from refine.strategies import ChainLink, parse_chain, refine
from refine.upsample import sigmoid, upsample_align_corners

BoolArray = npt.NDArray[np.bool_]


def make_image(
    rng: np.random.Generator, size: tuple[int, int], num_candidates: int
) -> tuple[BoolArray, npt.NDArray[np.float32]]:
    """Draw nested and overlapping ellipses, and a teacher's logits around one of them, at 120²."""
    height, width = size
    yy, xx = np.mgrid[:height, :width].astype(np.float32)
    masks = np.zeros((num_candidates, height, width), np.bool_)
    for number in range(num_candidates):
        cy, cx = rng.uniform(0, height), rng.uniform(0, width)
        a, b = rng.uniform(0.02, 0.3, 2) * (height, width)
        masks[number] = ((yy - cy) / a) ** 2 + ((xx - cx) / b) ** 2 < 1
    target = masks[int(masks.sum((1, 2)).argmax())]
    rows = np.linspace(0, height - 1, 120).astype(int)
    columns = np.linspace(0, width - 1, 120).astype(int)
    logit = np.where(target[np.ix_(rows, columns)], 3.0, -3.0) + rng.normal(0, 1.5, (120, 120))
    return masks, np.asarray(logit, np.float32)


def seconds_per_call(function: Callable[[], Any], repeats: int) -> float:
    """Give the median of several timed calls, after one that is not counted."""
    function()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def released_loop(masks: torch.Tensor, label: torch.Tensor) -> int:
    """Restate the released matching: mask by mask, IoU of int64 tensors, the best one kept."""
    best, best_iou = -1, 0.0
    for number in range(len(masks)):
        mask = masks[number]
        intersection = (mask * label).sum()
        union = ((mask + label) > 0).sum()
        iou = (intersection / (union + 1e-9)).item()
        if iou > best_iou:
            best, best_iou = number, iou
    return best


def bench_matching(num_candidates: int, side: int, repeats: int) -> list[list[str]]:
    """Time one label against all candidates of an image, by every method."""
    rng = np.random.default_rng(0)
    masks, logit = make_image(rng, (side, side), num_candidates)
    prob = sigmoid(upsample_align_corners(logit, (side, side)))
    label = prob > 0.5
    image = gather_image(build_cells(masks))
    rles = coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0), np.uint8))
    dense, tensor = (
        torch.from_numpy(masks.astype(np.int64)),
        torch.from_numpy(label.astype(np.int64)),
    )

    def by_rle() -> Any:
        own = coco_mask.encode(np.asfortranarray(label, np.uint8))
        return coco_mask.iou(rles, [own], [0])

    def by_dense() -> Any:
        both = (masks & label).sum((1, 2))
        return both / np.maximum((masks | label).sum((1, 2)), 1)

    ours = seconds_per_call(lambda: gather(image, prob, label).iou_N, repeats)
    peers = {
        "cells (ours)": ours,
        "pycocotools RLE": seconds_per_call(by_rle, repeats),
        "numpy, dense": seconds_per_call(by_dense, max(2, repeats // 5)),
        "released loop, restated": seconds_per_call(lambda: released_loop(dense, tensor), 2),
    }
    assert int(by_dense().argmax()) == int(gather(image, prob, label).iou_N.argmax())
    return [[name, f"{1e3 * t:.2f}", f"{t / ours:.1f}"] for name, t in peers.items()]


def bench_label(num_candidates: int, size: tuple[int, int], repeats: int) -> list[list[str]]:
    """Time the steps that make one label out of stored cells and logits."""
    rng = np.random.default_rng(1)
    masks, logit = make_image(rng, size, num_candidates)
    image = gather_image(build_cells(masks))
    logit_HW = upsample_align_corners(logit, size)
    prob = sigmoid(logit_HW)
    evidence = gather(image, prob, logit_HW > 0)
    chain = parse_chain([ChainLink(strategy="cpi-u"), ChainLink(strategy="pwa")], "chain")
    refined = refine(evidence, chain)
    columns = empty_columns(1, 640)
    steps: dict[str, Callable[[], Any]] = {
        "upsample": lambda: upsample_align_corners(logit, size),
        "sigmoid": lambda: sigmoid(logit_HW),
        "gather": lambda: gather(image, prob, logit_HW > 0),
        "refine": lambda: refine(evidence, chain),
        "expected IoU": lambda: expected_iou(evidence, refined.mask_HW),
        "pack": lambda: encode_label(columns, 0, refined, 0.5),
        "cells of the image": lambda: build_cells(masks),
    }
    return [[name, f"{1e3 * seconds_per_call(step, repeats):.2f}"] for name, step in steps.items()]


@click.command()
@click.option("--candidates", default=120, show_default=True)
@click.option("--repeats", default=20, show_default=True)
def main(candidates: int, repeats: int) -> None:
    """Print milliseconds and ratios."""
    torch.set_num_threads(1)
    rows = bench_matching(candidates, 480, repeats)
    title = f"one label against {candidates} candidates, 480 x 480"
    print_table(title, ["method", "ms", "times ours"], rows)
    rows = bench_label(candidates, (480, 640), repeats)
    print_table("one label, 480 x 640, step by step", ["step", "ms"], rows)


if __name__ == "__main__":
    main()
