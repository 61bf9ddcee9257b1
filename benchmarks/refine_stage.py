"""The whole refine stage, Zarr in and Zarr out: `make bench-refine`, second part.

Labels per second at 480 x 640 on one core and on two workers, resident memory against the number of
images, and the floor: the same stage that only reads, upsamples and writes the teacher's mask.
Every run is a process of its own, with one thread.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from benchmarks.synthetic_run import CANVAS, EXPRESSIONS_PER_IMAGE, SIZE, make_run
from pipeline.commands import print_table
from pipeline.engines import Engine, shared_workers
from pipeline.paths import RunPaths
from pipeline.runner import ShardResult, run_stage
from refine.choice import Refined
from refine.labels import empty_columns, encode_label
from refine.stage import (
    ChainLink,
    RefineConfig,
    plan_refinement,
    refine_labels,
    with_strategy,
)
from refine.teacher_store import TeacherReader
from refine.upsample import upsample_align_corners

SHARD = 256


class FloorWork:
    """Read, upsample and pack: what no refinement can do without."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir

    def __call__(self, rows: range) -> ShardResult:
        """Give labels that are the teacher's own masks."""
        teacher = TeacherReader(RunPaths(self.run_dir).teacher(1)).read(rows)
        columns = empty_columns(len(rows), CANVAS)
        columns["expression"][:] = teacher["expression"]
        for row in range(len(rows)):
            mask_HW = upsample_align_corners(teacher["logit"][row], SIZE) > 0
            label = Refined(mask_HW=mask_HW, weight_HW=None, source="none", score=1, num_chosen=0)
            encode_label(columns, row, label, 0.0)
        return ShardResult(columns=columns)


def peak_memory() -> float:
    """Give the most that this process had resident, in MiB (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def run_once(run_dir: Path, strategy: str, workers: int) -> dict[str, float]:
    """Refine a whole round anew; give seconds and peak memory of this process."""
    config = RefineConfig(shard_size=SHARD, measure=False)
    if strategy == "best-union, gated":
        config = RefineConfig(
            chain=(ChainLink(strategy="best-union", min_gain=0.0), ChainLink(strategy="none")),
            shard_size=SHARD,
            measure=False,
        )
    elif strategy != "floor":
        config = with_strategy(config, strategy)
    if strategy == "floor":
        started = time.perf_counter()
        plan = plan_refinement(config, run_dir, 1)
        run_stage(plan, FloorWork(run_dir), replace="always", made_by="bench")
    else:
        engine = Engine(workers=workers) if workers > 1 else None
        with shared_workers():
            if engine is not None:  # workers start before the clock: a job has many more shards
                refine_labels(config, run_dir, 1, engine=engine, replace="always", limit=2 * SHARD)
            started = time.perf_counter()
            refine_labels(config, run_dir, 1, engine=engine, replace="always")
            seconds = time.perf_counter() - started
        return {"seconds": seconds, "peak_mib": peak_memory()}
    return {"seconds": time.perf_counter() - started, "peak_mib": peak_memory()}


def measure(run_dir: Path, strategy: str, workers: int = 1) -> dict[str, float]:
    """Run `run_once` in a fresh process with one thread."""
    return finished(start(run_dir, strategy, workers))


def start(run_dir: Path, strategy: str, workers: int = 1) -> "subprocess.Popen[str]":
    """Begin `run_once` in a fresh process with one thread."""
    command = [sys.executable, "-m", "benchmarks.refine_stage", "--once", strategy]
    command += ["--run-dir", str(run_dir), "--workers", str(workers)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def finished(process: "subprocess.Popen[str]") -> dict[str, float]:
    """Wait for a process and give what it measured."""
    out, errors = process.communicate()
    if process.returncode:
        raise click.ClickException(errors.strip().splitlines()[-1])
    result: dict[str, float] = json.loads(out.strip().splitlines()[-1])
    return result


@click.command()
@click.option("--images", default=300, show_default=True)
@click.option("--once", help="Used by this script itself.")
@click.option("--run-dir", type=click.Path(path_type=Path))
@click.option("--workers", default=1)
@click.option("--strategy", "strategies", multiple=True, help="Only these.")
def main(
    images: int, once: str | None, run_dir: Path | None, workers: int, strategies: tuple[str, ...]
) -> None:
    """Print labels per second and memory."""
    if once is not None:
        assert run_dir is not None
        click.echo(json.dumps(run_once(run_dir, once, workers)))
        return
    folder = Path(tempfile.mkdtemp(prefix="semires-bench-"))
    try:
        _print(folder, images, strategies)
    finally:
        shutil.rmtree(folder)


def _print(folder: Path, images: int, strategies: tuple[str, ...]) -> None:
    small, large = folder / "small", folder / "large"
    make_run(small, max(images // 4, 40))
    make_run(large, images)
    labels = images * EXPRESSIONS_PER_IMAGE
    rows = []
    names = strategies or ("floor", "none", "pwa", "iom", "cpi-u", "vote", "best-union, gated")
    floor = measure(large, "floor")
    for name in names:
        one = floor if name == "floor" else measure(large, name)
        less = measure(small, name)
        rows.append(
            [
                name,
                f"{labels / one['seconds']:.0f}",
                f"{one['seconds'] / floor['seconds']:.2f}",
                f"{less['peak_mib']:.0f}",
                f"{one['peak_mib']:.0f}",
            ]
        )
    small_count = max(images // 4, 40)
    title = f"{labels} labels, {SIZE[0]} x {SIZE[1]}, one process"
    columns = ["strategy", "labels/s", "times the floor"]
    columns += [f"MiB, {small_count} images", f"MiB, {images} images"]
    print_table(title, columns, rows)
    _print_scaling(folder, large, labels, [name for name in names if name != "floor"])


def _print_scaling(folder: Path, run_dir: Path, labels: int, names: list[str]) -> None:
    """Print what a second worker brings, beside what a second process of its own brings."""
    other = folder / "other"
    shutil.copytree(run_dir, other)
    rows = []
    for name in names:
        one, two = measure(run_dir, name)["seconds"], measure(run_dir, name, 2)["seconds"]
        both = [start(where, name) for where in (run_dir, other)]
        apart = max(finished(process)["seconds"] for process in both)
        speed = (f"{labels / one:.0f}", f"{labels / two:.0f}", f"{one / two:.2f}")
        rows.append([name, *speed, f"{2 * one / apart:.2f}"])
    columns = ["strategy", "labels/s, one process", "two workers", "times", "machine's own"]
    print_table(
        "two workers, started before; last: two jobs side by side, what two processes gain here",
        columns,
        rows,
    )


if __name__ == "__main__":
    main()
