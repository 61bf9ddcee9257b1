"""A million images' worth of shards through the runner, with null models: `make bench-scale`.

What is measured is everything but the networks: preparing the data, start-up, the overhead of a
shard, the driver's memory, and going on with 99 % done. Ends with exit code 1 and a line for each
goal that was missed.
"""

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.null_stage import Null, null_plan
from benchmarks.preparing import measure_preparing
from benchmarks.synthetic_run import EXPRESSIONS_PER_IMAGE as PER_IMAGE
from benchmarks.synthetic_run import make_run
from pipeline.candidate_config import CandidatesConfig
from pipeline.candidate_stage import plan_candidates
from pipeline.columns import StringColumn
from pipeline.engines import Engine, shared_workers
from pipeline.manifest import Manifest, load_manifest, manifest_fingerprint, write_manifest
from pipeline.paths import RunPaths
from pipeline.records import begun_shards, done_path
from pipeline.runner import run_stage, scan
from refine.stage import RefineConfig, refine_labels

SHARD_SIZE = 64
TRIAL_SHARDS = 300
EXPRESSIONS_PER_IMAGE = 5
GOAL_IMAGES = 1_000_000
GOALS = {
    "opening the manifest and planning": (30.0, "s"),
    "the driver's memory at most": (1024.0, "MiB"),
    "the whole stage resumed with 99 % done": (10.0, "s"),
}
"""What a million images must stay below, and fewer as well."""


def missed_goals(found: dict[str, float]) -> list[str]:
    """Name the goals that are missed, with what was expected and what was found."""
    return [
        f"goal missed: {what}: expected less than {goal:g} {unit}, found {found[what]:.1f} {unit}"
        for what, (goal, unit) in GOALS.items()
        if not found[what] < goal
    ]


def rss_mib() -> float:
    """Give the memory of this process, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


@contextmanager
def memory_watched(every: float = 1.0) -> Iterator[list[float]]:
    """Note this process's memory every second."""
    noted, done = [rss_mib()], threading.Event()

    def watch() -> None:
        while not done.wait(every):
            noted.append(rss_mib())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield noted
    finally:
        done.set()
        thread.join()
        noted.append(rss_mib())


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Give a function's seconds and result."""
    started = time.monotonic()
    result = function()
    return time.monotonic() - started, result


def make_manifest(folder: Path, num_images: int) -> None:
    """Write a manifest of images that do not exist, with one object and five sentences each."""
    objects = np.arange(num_images, dtype=np.int32)
    sentences = num_images * EXPRESSIONS_PER_IMAGE
    strings = StringColumn.from_strings
    columns: dict[str, Any] = {
        "image_id": strings(f"{i}" for i in range(num_images)),
        "image_path": strings(f"shards/{i // 10_000:05d}/{i:09d}.jpg" for i in range(num_images)),
        "image_sha256": strings(f"{i:064x}" for i in range(num_images)),
        "image_size": np.tile(np.array((480, 640), np.int32), (num_images, 1)),
        "image_labelled": np.zeros(num_images, np.bool_),
        "object_id": strings(f"{i}" for i in range(num_images)),
        "object_image": objects,
        "object_category": strings("" for _ in range(num_images)),
        "object_split": np.zeros(num_images, np.uint8),
        "object_rle": strings("" for _ in range(num_images)),
        "expression_object": np.repeat(objects, EXPRESSIONS_PER_IMAGE),
        "expression_text": strings(f"the thing on the left {i}" for i in range(sentences)),
    }
    fingerprint = manifest_fingerprint(columns)
    manifest = Manifest(image_root=folder, fingerprint=fingerprint, **columns)
    write_manifest(RunPaths(folder).manifest, manifest, description={})


def measure_start(
    folder: Path, num_images: int, found: dict[str, float]
) -> Iterator[tuple[str, str]]:
    """Plan the candidates of a manifest of so many images; what has a goal is put into `found`."""
    make_manifest(folder, num_images)
    size = sum(path.stat().st_size for path in RunPaths(folder).manifest.iterdir())
    yield "bytes of the manifest per image", f"{size / num_images:.0f}"
    opening, manifest = timed(lambda: load_manifest(RunPaths(folder).manifest))
    yield "opening the manifest", f"{opening:.2f} s"
    seconds, _ = timed(lambda: manifest.images_of("train"))
    yield "finding the training images, as every task does", f"{seconds:.3f} s"
    seconds, _ = timed(lambda: plan_candidates(CandidatesConfig(), folder))
    found["opening the manifest and planning"] = opening + seconds
    yield "planning the candidates (hashes of all images)", f"{seconds:.1f} s"


def measure_bytes(folder: Path, num_images: int = 32) -> Iterator[tuple[str, str]]:
    """Fill the three stores with ellipses and blurred masks at 480 x 640, and weigh them."""
    make_run(folder, num_images)
    refine_labels(RefineConfig(), folder, 1)
    num_expressions = num_images * PER_IMAGE
    for name, count, unit in (
        ("candidates", num_images, "image"),
        ("round-1/teacher", num_expressions, "expression"),
        ("round-1/labels", num_expressions, "expression"),
    ):
        files = [path for path in (folder / f"{name}.zarr").rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        in_shards = sum("c" in path.relative_to(folder / f"{name}.zarr").parts for path in files)
        record = done_path(folder / f"{name}.zarr", 0).stat().st_size
        each = f"{size / count:.0f} bytes per {unit}"
        yield f"{name}.zarr", f"{each}, {in_shards} files and a record of {record} bytes per shard"


def measure_trial(folder: Path, workers: int) -> Iterator[tuple[str, str]]:
    """Run some hundred shards; workers are started before the clock."""
    engine = Engine(workers=workers)
    with shared_workers():
        few = null_plan(folder / f"warm-{workers}", 2 * workers * SHARD_SIZE, SHARD_SIZE)
        run_stage(few, Null(), engine=engine, made_by="bench")
        plan = null_plan(folder / f"trial-{workers}", TRIAL_SHARDS * SHARD_SIZE, SHARD_SIZE)
        seconds, _ = timed(lambda: run_stage(plan, Null(), engine=engine, made_by="bench"))
    each = 1000 * seconds / TRIAL_SHARDS
    where = "1 process" if workers == 1 else f"{workers} workers"
    rate = TRIAL_SHARDS * SHARD_SIZE / seconds
    yield f"a shard of nothing, {where}", f"{each:.1f} ms, {rate:.0f} images/s"


def measure_whole(
    folder: Path, num_images: int, workers: int, found: dict[str, float]
) -> Iterator[tuple[str, str]]:
    """Run all shards, then drop the proof of every hundredth and go on.

    What has a goal is put into `found`.
    """
    plan = null_plan(folder, num_images, SHARD_SIZE)
    engine = Engine(workers=workers)
    with memory_watched() as memory:
        seconds, summary = timed(lambda: run_stage(plan, Null(), engine=engine, made_by="bench"))
    assert summary.complete
    each = 1000 * seconds / plan.num_shards
    yield f"all {plan.num_shards} shards, {workers} workers", f"{seconds:.0f} s, {each:.1f} ms each"
    tenth = memory[len(memory) // 10]
    shown = f"{tenth:.0f} MiB after a tenth, at most {max(memory):.0f}, {memory[-1]:.0f} at last"
    found["the driver's memory at most"] = max(memory)
    yield "the driver's memory", shown
    records = done_path(plan.store, 0).parent
    size = sum(path.stat().st_size for path in records.iterdir())
    yield "bytes of the done records per shard", f"{size / plan.num_shards:.0f}"
    for shard in begun_shards(plan.store)[::100]:
        done_path(plan.store, shard).unlink()
    seconds, tally = timed(lambda: scan(plan))
    yield (
        f"finding what {tally.num_done / plan.num_shards:.0%} done leaves to do",
        f"{seconds:.1f} s",
    )
    started = time.monotonic()
    first: list[float] = []

    def work(rows: range) -> Any:
        first.append(time.monotonic() - started)
        return Null()(rows)

    summary = run_stage(plan, work, made_by="bench")
    assert summary.complete
    found["the whole stage resumed with 99 % done"] = summary.seconds
    yield "until the first shard of the resumed stage", f"{first[0]:.1f} s"
    yield "the whole resumed stage", f"{summary.seconds:.1f} s for {summary.shards_done_now} shards"


def main() -> None:
    """Print every figure on a line of its own, and on stderr the goals that were missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=GOAL_IMAGES)
    parser.add_argument("--folder", type=Path, help="where to write; a temporary one by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="semires-scale-", dir=options.folder) as name:
        folder, found = Path(name), dict[str, float]()
        print(f"{options.images} images in shards of {SHARD_SIZE}")
        for figures in (
            measure_bytes(folder / "bytes"),
            measure_preparing(folder / "data", options.images),
            measure_start(folder / "start", options.images, found),
            measure_trial(folder, 1),
            measure_trial(folder, 2),
            measure_whole(folder / "whole", options.images, 2, found),
        ):
            for what, figure in figures:
                print(f"{what:55} {figure}", flush=True)
    if options.images <= GOAL_IMAGES and (missed := missed_goals(found)):
        sys.exit("\n".join(missed))


if __name__ == "__main__":
    main()
