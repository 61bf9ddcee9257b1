"""Reading labels and loading samples, side by side with the released way: `make bench-loader`.

The released dataset has no refined label to read: for every sample it reads all of SAM's masks from
JSON, decodes them run by run in Python, and resizes all of them to the network's square. This
project refines before training, so that a sample costs one label: read by zarr, or straight from
its shard. All are timed in one process on one thread, on the same masks, in turns; ratios are what
counts, machines differ.
"""

import functools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from benchmarks.synthetic_run import EXPRESSIONS_PER_IMAGE, NUM_CANDIDATES, SIZE, make_run
from pipeline.candidates import CandidateReader
from pipeline.commands import print_facts, print_table
from pipeline.images import read_image
from pipeline.manifest import load_manifest
from pipeline.paths import RunPaths
from refine.labels import LabelReader
from refine.stage import RefineConfig, refine_labels, with_strategy
from train import augment
from train.batches import StepSampler, make_loader
from train.config import NetworkConfig, TrainConfig
from train.data import RoundDataset, RoundSource, SampleIndex
from train.ema import make_teacher, update_teacher
from train.label_rows import FastLabelReader
from train.loss import unsupervised_loss
from train.optim import make_optimizer
from train.order import UNLABELLED, Draw
from train.text import build_vocabulary, load_text_encoder, save_vocabulary
from train.trained import build_network

SQUARE = 480
"""Side of the released network's input, pixels."""


def write_released(masks_NHW: npt.NDArray[np.bool_], path: Path) -> int:
    """Write masks as the released code stores them; give the file's size in bytes.

    A list of {counts, size}: start and length of the runs of the column-major mask, the first pixel
    being number 1.
    """
    entries = []
    for mask_HW in masks_NHW:
        edges = np.flatnonzero(np.diff(np.pad(mask_HW.T.ravel().astype(np.int8), 1)))
        runs = np.stack([edges[::2] + 1, edges[1::2] - edges[::2]], axis=1)
        entries.append({"counts": runs.ravel().tolist(), "size": list(mask_HW.shape)})
    path.write_text(json.dumps(entries))
    return path.stat().st_size


def read_released(path: Path, side: int = SQUARE) -> npt.NDArray[np.uint8]:
    """Restate how the released dataset reads a sample's masks: (N, side, side) uint8."""
    with path.open() as handle:
        entries = json.load(handle)
    height, width = entries[0]["size"]
    dense_NHW = np.zeros((len(entries), height, width), np.uint8)
    for number, entry in enumerate(entries):
        flat = np.zeros(height * width, np.uint8)
        counts = np.array(entry["counts"])
        for first, length in zip(counts[::2], counts[1::2], strict=True):
            flat[first - 1 : first - 1 + length] = 1
        dense_NHW[number] = flat.reshape((height, width), order="F")
    resized = F.interpolate(torch.from_numpy(dense_NHW)[None], (side, side), mode="nearest")
    return np.asarray(resized[0].numpy(), np.uint8)


def read_label(reader: LabelReader, row: int, side: int = SQUARE) -> npt.NDArray[np.uint8]:
    """Read mask and weight of a refined label as the trainer does: (2, side, side) uint8."""
    label = reader.read(row)
    assert label is not None, "every label of this run was made"
    weight = np.rint(label.weight * 255).astype(np.uint8)
    both = (label.mask.astype(np.uint8), weight)
    return np.stack([augment.resize_mask(part, side) for part in both])


def milliseconds(read: Callable[[int], Any], row: int) -> float:
    """Time one call."""
    started = time.perf_counter()
    read(row)
    return 1e3 * (time.perf_counter() - started)


def write_all_released(run_dir: Path) -> list[Path]:
    """Write the candidates of eight images the released way; check that they come back."""
    candidates, files = CandidateReader(RunPaths(run_dir).candidates), []
    for image in range(8):
        found = candidates.read(image)
        assert found is not None, "every image of this run has candidates"
        masks_NHW = found.cells.membership[:, found.cells.cells]
        files.append(run_dir / f"{image}.json")
        write_released(masks_NHW, files[-1])
        dense = torch.from_numpy(masks_NHW.astype(np.uint8))[None]
        expected = F.interpolate(dense, (SQUARE, SQUARE), mode="nearest")[0].numpy()
        assert np.array_equal(read_released(files[-1]), expected)
    return files


def compare_reading(run_dir: Path, repeats: int) -> None:
    """Print all ways of reading, row by row in turns, and their ratios."""
    files, table = write_all_released(run_dir), []
    for strategy in ("iom", "pwa"):
        config = with_strategy(RefineConfig(shard_size=256, measure=False), strategy)
        refine_labels(config, run_dir, 1, replace="always")
        path = RunPaths(run_dir).labels(1)
        straight, by_zarr = FastLabelReader(path), LabelReader(path)
        ways: list[Callable[[int], Any]] = [
            functools.partial(read_label, straight),
            functools.partial(read_label, by_zarr),
            lambda row: read_released(files[row % len(files)]),
        ]
        count = len(straight.scalars()["source"])
        rows = np.random.default_rng(0).permutation(count)[:repeats].tolist()
        assert np.array_equal(ways[0](rows[0]), ways[1](rows[0]))
        times = np.median([[milliseconds(way, row) for way in ways] for row in rows], axis=0)
        shown = [*times, times[2] / times[0], times[2] / times[1]]
        table.append([strategy, *(f"{value:.2f}" for value in shown)])
    size = np.mean([path.stat().st_size for path in files]) / 1e3
    click.echo(f"released: {NUM_CANDIDATES} masks, {size:.0f} kB of JSON for one sample")
    print_table(
        f"one sample's label, {SIZE[0]} x {SIZE[1]} to {SQUARE} x {SQUARE}, median ms",
        ["chain", "straight", "by zarr", "released way", "times straight", "times by zarr"],
        table,
    )


def write_images(run_dir: Path, count: int) -> None:
    """Write JPEGs with as much detail as photographs have, about 100 kB each."""
    rng = np.random.default_rng(1)
    for number in range(count):
        coarse = rng.integers(0, 256, (SIZE[0] // 8, SIZE[1] // 8, 3)).astype(np.uint8)
        smooth = Image.fromarray(coarse).resize((SIZE[1], SIZE[0]), Image.Resampling.BICUBIC)
        grain = rng.normal(0, 6, (*SIZE, 3))
        pixels = np.clip(np.asarray(smooth, np.float64) + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(run_dir / f"{number}.jpg", quality=90)


def make_source(run_dir: Path, network: NetworkConfig, side: int, cache_bytes: int) -> RoundSource:
    """Describe the samples of round 1 as the trainer does."""
    manifest = load_manifest(RunPaths(run_dir).manifest)
    sentences = [manifest.expression_text[row] for row in range(manifest.num_expressions)]
    labels = len(LabelReader(RunPaths(run_dir).labels(1)).scalars()["source"])
    return RoundSource(
        config=TrainConfig(network=network, cache_bytes=cache_bytes),
        run_dir=run_dir,
        number=1,
        index=SampleIndex(labelled=np.zeros(0, np.int64), refined=np.arange(labels)),
        side=side,
        vocabulary=save_vocabulary(build_vocabulary(sentences), run_dir),
    )


def time_parts(run_dir: Path, source: RoundSource, samples: int) -> dict[str, float]:
    """Give milliseconds per sample of the parts of loading, an image decoded for every sample."""
    manifest, side = load_manifest(RunPaths(run_dir).manifest), source.side
    reader = FastLabelReader(RunPaths(run_dir).labels(1))
    text = load_text_encoder(source.vocabulary, source.config.network.max_tokens)
    rows = np.random.default_rng(2).permutation(len(source.index.refined))[:samples]
    pixels = read_image(manifest.image_file(0), canvas=None)
    square = augment.resize_image(pixels, side)
    views = source.config.augment
    parts: dict[str, Callable[[int], Any]] = {
        "decode the JPEG": lambda row: read_image(
            manifest.image_file(row // EXPRESSIONS_PER_IMAGE), canvas=None
        ),
        "resize it": lambda _: augment.resize_image(pixels, side),
        "read the label, resize it": lambda row: read_label(reader, row, side),
        "strong view, normalised": lambda row: augment.strong_view(
            square, side, np.random.default_rng(row), views
        ),
        "words": lambda row: text.encode([manifest.expression_text[row]]),
    }
    found = [[milliseconds(part, row) for part in parts.values()] for row in [0, *rows.tolist()]]
    return dict(zip(parts, np.median(found[1:], axis=0).tolist(), strict=True))


def samples_per_second(source: RoundSource, samples: int) -> float:
    """Give what one process loads, in this one."""
    dataset = RoundDataset(source)
    order = np.random.default_rng(3).permutation(len(source.index.refined))[: samples + 1]
    draws = [Draw(UNLABELLED, int(row), 0) for row in order]
    dataset[draws[0]]
    started = time.perf_counter()
    for draw in draws[1:]:
        dataset[draw]
    return samples / (time.perf_counter() - started)


def with_workers(source: RoundSource, workers: int, batch: int, steps: int) -> float:
    """Give what a loader with workers hands out per second, after they have started."""
    sampler = StepSampler(
        seed=0,
        number=1,
        steps=range(steps + 2 * workers + 2),
        counts=source.index.counts,
        batch=(0, batch),
    )
    loader: Iterator[Any] = iter(make_loader(RoundDataset(source), sampler, workers))
    for _ in range(2 * workers + 2):  # what was loaded ahead while nobody waited
        next(loader)
    started = time.perf_counter()
    for _ in range(steps):
        next(loader)
    return batch * steps / (time.perf_counter() - started)


def step_seconds(source: RoundSource, batch: int, repeats: int) -> float:
    """Give the seconds of forward, loss, backward, AdamW and EMA on one thread."""
    text = load_text_encoder(source.vocabulary, source.config.network.max_tokens)
    student = build_network(source.config.network, text.vocab_size)
    optimizer, teacher = make_optimizer(student, 1e-4), make_teacher(student)
    ids, mask = (torch.from_numpy(a) for a in text.encode(["thing 1"] * batch))
    images = torch.randn(batch, 3, source.side, source.side)
    label = torch.randint(0, 2, (batch, source.side, source.side))
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        _update(student, teacher, optimizer, (images, ids, mask), label)
        times.append(time.perf_counter() - started)
    return float(np.median(times[1:]))


def _update(
    student: nn.Module,
    teacher: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: tuple[torch.Tensor, ...],
    label_BSS: torch.Tensor,
) -> None:
    weight_BSS = torch.ones(label_BSS.shape)
    refined_B = torch.ones(len(label_BSS), dtype=torch.bool)
    loss = unsupervised_loss(student(*inputs), label_BSS, weight_BSS, refined_B)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    update_teacher(teacher, student, 0.99)


def report_loading(run_dir: Path, samples: int, workers: tuple[int, ...]) -> None:
    """Print parts, samples per second, and the share of a training step."""
    toy = NetworkConfig(name="lavt", size="toy", options={"image_size": 96, "text_layers": 1})
    batch = 8
    for side in (96, SQUARE):
        source = make_source(run_dir, toy, side, cache_bytes=0)
        parts = time_parts(run_dir, source, samples)
        facts = {name: f"{value:.2f} ms" for name, value in parts.items()}
        single = samples_per_second(source, samples)
        facts["samples/s of one process, no image kept"] = f"{single:.0f}"
        if side == SQUARE:
            cached = make_source(run_dir, toy, side, cache_bytes=1 << 28)
            samples_per_second(cached, samples)
            kept = samples_per_second(cached, samples)
            facts["samples/s of one process, images kept"] = f"{kept:.0f}"
        for count in workers:
            facts[f"samples/s, loader with {count} workers"] = (
                f"{with_workers(source, count, batch, max(2, samples // batch)):.0f}"
            )
        if side == 96:
            seconds = step_seconds(source, batch, 5)
            facts[f"training step of the toy, batch {batch}"] = f"{1e3 * seconds:.0f} ms"
            facts["loading in the same process, share of a step"] = (
                f"{100 * (batch / single) / (batch / single + seconds):.0f} %"
            )
            facts["workers that keep up with one such core"] = f"{batch / single / seconds:.2f}"
        print_facts(f"loading one sample, {SIZE[0]} x {SIZE[1]} to {side} x {side}", facts)


@click.command()
@click.option("--images", default=40, show_default=True)
@click.option("--samples", default=200, show_default=True, help="Timed per figure.")
@click.option("--workers", "workers", multiple=True, type=int, default=(1, 2), show_default=True)
def main(images: int, samples: int, workers: tuple[int, ...]) -> None:
    """Print how fast labels are read and samples loaded."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    run_dir = Path(tempfile.mkdtemp(prefix="semires-loader-"))
    try:
        make_run(run_dir, images)
        write_images(run_dir, images)
        compare_reading(run_dir, samples)
        report_loading(run_dir, samples, workers)
    finally:
        shutil.rmtree(run_dir)


if __name__ == "__main__":
    main()
