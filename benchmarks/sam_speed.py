"""Speed of the mask generator beside segment-anything's own, in one process on the same images.

`make bench-sam` runs it on the CPU with the small SAM. On a GPU: `--device cuda --model vit_b`,
with random weights: their masks are noise, so the thresholds are set from what they predict for
the first image, such that a realistic share of the masks survives.

The original is asked for uncompressed RLE, the cheapest of its outputs; ours gives packed masks,
and its time with cells is given beside. Where torchvision has no compiled operators, the original's
NMS is the plain torch one of `meta_generator`; its share is given.
"""

import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.meta_generator import meta_generator, original
from benchmarks.pictures import generated, photographs
from pipeline.cells import build_cells_packed
from pipeline.commands import print_table
from pipeline.sam.generator import generate_masks
from pipeline.sam.networks import SegmentAnything
from pipeline.sam.options import FAST, REFERENCE, GeneratorOptions
from pipeline.sam.tiny import load_vit_tiny_demo

WAYS = ("original", "reference", "fast")


class Clock:
    """Seconds by name; waits for the device before it reads the time."""

    def __init__(self, device: str) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._device = device

    def now(self) -> float:
        """Give the time when all that was asked of the device is done."""
        if self._device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def wrap(self, owner: Any, attribute: str, name: str) -> None:
        """Count the time spent in a method or function under a name."""
        function: Callable[..., Any] = getattr(owner, attribute)

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = self.now()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += self.now() - began

        setattr(owner, attribute, timed)


def build_sam(model: str, device: str) -> Any:
    """Load the small SAM, or build one of Meta's with random weights."""
    if model == "vit_tiny_demo":
        return load_vit_tiny_demo().to(device)
    from segment_anything import sam_model_registry

    torch.manual_seed(0)
    sam = sam_model_registry[model]()
    with torch.no_grad():
        for network in sam.mask_decoder.output_hypernetworks_mlps:
            network.layers[-1].weight *= 400
        sam.mask_decoder.iou_prediction_head.layers[-1].bias.fill_(0.5)
    return sam.to(device)


def runner(
    way: str, sam: Any, device: str, options: GeneratorOptions, clock: Clock | None = None
) -> Any:
    """Give a function of an image that runs one way; a clock is wired into its parts."""
    if way == "original":
        generator = meta_generator(sam, options, "uncompressed_rle")
        if clock is not None:
            clock.wrap(generator.predictor, "set_image", "encode")
            clock.wrap(generator.predictor, "predict_torch", "decode and draw")
            clock.wrap(original, "mask_to_rle_pytorch", "RLE")
            clock.wrap(original, "batched_nms", "NMS")
        return generator.generate
    fast = way == "fast"
    network = SegmentAnything(sam, "fast" if fast else "reference", half=fast and device == "cuda")
    for name in ("encode", "decode", "draw") if clock is not None else ():
        clock.wrap(network, name, name)
    batches = FAST if fast and device == "cuda" else REFERENCE
    ours = replace(options, points_per_batch=batches.points_per_batch, profile=None)
    return lambda image: generate_masks(network, image, ours)


def realistic(sam: Any, image: np.ndarray, options: GeneratorOptions) -> GeneratorOptions:
    """Let a third of the masks pass the predicted IoU, and the more stable half of those."""
    open_ = replace(options, pred_iou_thresh=0.0, stability_score_thresh=0.0, box_nms_thresh=1.0)
    found = generate_masks(SegmentAnything(sam), image, open_)
    thresh = float(np.quantile(found.predicted_iou, 2 / 3))
    stable = found.stability_score[found.predicted_iou > thresh]
    return replace(
        options,
        pred_iou_thresh=min(max(thresh, 0.0), 1.0),
        stability_score_thresh=float(np.median(stable)) if len(stable) else 0.0,
    )


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--model", default="vit_tiny_demo", show_default=True, help="Or vit_b, vit_l, vit_h.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--images", type=click.IntRange(min=1), default=4, show_default=True)
@click.option("--photos", type=click.Path(path_type=Path), help="A folder of JPEG files.")
@click.option("--points", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--iou", type=float, default=0.5, show_default=True, help="For the small SAM.")
@click.option("--stability", type=float, default=0.8, show_default=True, help="Likewise.")
@click.option("--memory", type=click.Choice(WAYS), help="Only run one way and print its peak, MiB.")
def main(
    model: str,
    device: str,
    images: int,
    photos: Path | None,
    points: int,
    iou: float,
    stability: float,
    memory: str | None,
) -> None:
    """Print seconds per image, the ratio to the original, peak memory and where the time goes."""
    torch.set_num_threads(1)
    sam = build_sam(model, device)
    every = photographs(photos, 10_000) if photos else generated(10_000)
    fitting = (image for image in every if image.shape[:2] == (480, 640))
    pictures = list(islice(fitting, images))
    options = GeneratorOptions(
        points_per_side=points, pred_iou_thresh=iou, stability_score_thresh=stability
    ).filled(REFERENCE)
    if not pictures:
        raise click.UsageError("none of the images is 480 x 640")
    if model != "vit_tiny_demo" and not memory:
        options = realistic(sam, pictures[0], options)
    ways = [memory] if memory else list(WAYS)
    runs = {way: runner(way, sam, device, options) for way in ways}
    if memory:
        print(peak_of(lambda: [runs[memory](image) for image in pictures], device))
        return
    seconds, kept, cells = measure(runs, device, pictures)
    title = f"{model} on {device}, {len(pictures)} images, {points} x {points} points, IoU > "
    title += f"{options.pred_iou_thresh:.3g}, stability >= {options.stability_score_thresh:.3g}"
    rows = [
        [
            way,
            statistics.median(seconds[way]),
            statistics.median(
                first / own for first, own in zip(seconds["original"], seconds[way], strict=True)
            ),
            1 / statistics.median(seconds[way]),
            float(np.mean(kept[way])),
            peak_in_a_process(way, options),
        ]
        for way in WAYS
    ]
    columns = ["way", "s per image", "times the original", "images/s", "masks", "peak MiB"]
    print_table(title, columns, rows)
    print(f"cells of one image: {1e3 * statistics.median(cells):.1f} ms more")
    for way in WAYS:
        print(f"{way}: {shares_of(way, sam, device, options, pictures[0])}")


def shares_of(way: str, sam: Any, device: str, options: GeneratorOptions, image: np.ndarray) -> str:
    """Say where the time of one image goes; waits for the device around every part."""
    clock = Clock(device)
    run = runner(way, sam, device, options, clock)
    began = clock.now()
    run(image)
    total = clock.now() - began
    parts = {name: spent / total for name, spent in clock.seconds.items()}
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in parts.items())
    return f"{shares}, the rest {100 * (1 - sum(parts.values())):.0f} %"


def measure(
    runs: dict[str, Any], device: str, pictures: list[np.ndarray]
) -> tuple[dict[str, list[float]], dict[str, list[int]], list[float]]:
    """Run every way on every image in turn, after one run each that is not counted."""
    for run in runs.values():
        run(pictures[0])
    clock = Clock(device)
    seconds: dict[str, list[float]] = defaultdict(list)
    kept: dict[str, list[int]] = defaultdict(list)
    cells = []
    for image in pictures:
        for way, run in runs.items():
            began = clock.now()
            masks = run(image)
            seconds[way].append(clock.now() - began)
            kept[way].append(len(masks))
        began = time.perf_counter()
        build_cells_packed(masks.bits, masks.width)
        cells.append(time.perf_counter() - began)
    return seconds, kept, cells


def peak_of(work: Callable[[], Any], device: str) -> float:
    """Give the most memory, MiB, that the device (on the CPU: the process) has held."""
    work()
    if device == "cuda":
        return float(torch.cuda.max_memory_allocated() / 2**20)
    # Not getrusage: across exec it keeps what the parent held.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10


def peak_in_a_process(way: str, options: GeneratorOptions) -> float:
    """Measure one way's peak in a process of its own, at the thresholds that were set here."""
    thresholds = ["--iou", str(options.pred_iou_thresh)]
    thresholds += ["--stability", str(options.stability_score_thresh)]
    arguments = [*sys.argv[1:], *thresholds, "--memory", way]
    command = [sys.executable, "-m", "benchmarks.sam_speed", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    main()
