"""Break the stages on purpose, mend them, and count what was lost.

Drivers, workers and schedulers are killed at random moments, bits flipped, shards cut, disks
filled; after each the same command is given again, and the stores are compared byte by byte with
those of an undisturbed run. `make bench-faults` prints the table of docs/faults.md.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks import object_faults
from benchmarks.file_faults import STORES, cut_short, damage_files, empty, flip_bit
from benchmarks.null_runs import Row, hashes, until, workers_of
from benchmarks.process_faults import (
    fill_disks,
    kill_drivers,
    kill_schedulers,
    kill_workers,
    terminate,
)

STAGES = (
    "import sys\n"
    "from pathlib import Path\n"
    "from pipeline.cli import sam_candidates\n"
    "from train.cli import predict_teacher\n"
    "from refine.cli import refine_labels\n"
    "Path(sys.argv[1]).touch()\n"
    "for verb in (sam_candidates, predict_teacher, refine_labels):\n"
    "    try:\n"
    "        verb(sys.argv[2:])\n"
    "    except SystemExit as end:\n"
    "        if end.code: raise\n"
)
"""The three stages that write stores, one after the other, each by its own command."""
JOB = (
    "import sys\n"
    "from pathlib import Path\n"
    "import train.rounds\n"
    "from train.cli import run_rounds\n"
    "Path(sys.argv[1]).touch()\n"
    "run_rounds(sys.argv[2:])\n"
)
"""All steps: data, candidates, burn-in, then teacher, refine, train, evaluate, twice."""


def campaign(config: Path, whole: Path, folder: Path) -> Iterator[Row]:
    """Do everything, the long version."""
    rng = np.random.default_rng(0)

    def place(name: str) -> Path:
        (folder / name).mkdir()
        return folder / name

    yield kill_stages(config, whole, place("a"), 30, rng)
    yield kill_jobs(config, place("i"), 30, rng)
    yield kill_workers_of_jobs(config, place("j"), 8, rng)
    yield kill_drivers(place("b"), 30, rng)
    yield kill_drivers(place("c"), 5, rng, "--workers", "2")
    yield kill_workers(place("d"), 12, rng)
    yield kill_schedulers(place("e"), 4, rng)
    yield terminate(place("f"), 5, rng)
    yield terminate(place("g"), 3, rng, "--workers", "2")
    yield fill_disks(place("h"), 8)
    for damage, times in ((flip_bit, 200), (cut_short, 40), (empty, 40)):
        yield damage_files(config, whole, place(damage.__name__), times, rng, damage, 20)
    yield from object_faults.rows(place("objects"), rng)


def kill_stages(
    config: Path, whole: Path, folder: Path, times: int, rng: np.random.Generator
) -> Row:
    """SIGKILL the three real stages at random moments of their work, and start them again."""
    expected, run_dir, lost, stores = hashes(whole), folder / "stages", 0, 0
    ready = folder / "ready"
    killed, longest = 0, 4.0
    fresh(whole, run_dir)
    while killed < times:
        process, began = start(STAGES, config, run_dir, ready)
        try:
            code = process.wait(float(rng.uniform(0.05, longest)))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
            continue
        longest = min(longest, time.monotonic() - began + 0.5)
        lost += differs(code, hashes(run_dir), expected)
        stores += 1
        fresh(whole, run_dir)
    process, _ = start(STAGES, config, run_dir, ready)
    lost += differs(process.wait(), hashes(run_dir), expected)
    what = "SIGKILL in sam-candidates, predict-teacher, refine-labels"
    return Row(what, killed, f"{3 * (stores + 1)} stores compared", lost)


def kill_jobs(config: Path, folder: Path, times: int, rng: np.random.Generator) -> Row:
    """SIGKILL the whole job in one process at random moments of all its steps, and start it again.

    Each start may come as far as half of an undisturbed job, so that some kills make one whole.
    """
    from tests.conftest import file_hashes

    expected, seconds = undisturbed_job(config, folder)
    killed, lost, runs, half_done = 0, 0, 0, False
    while killed < times or half_done:
        run_dir = folder / f"job-{runs}"
        process, _ = start(JOB, config, run_dir, folder / "ready")
        patience = float(rng.uniform(0.05, seconds / 2)) if killed < times else None
        try:
            code = process.wait(patience)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            killed, half_done = killed + 1, True
            continue
        lost += differs(code, file_hashes(run_dir), expected)
        runs, half_done = runs + 1, False
    return Row("SIGKILL of run-rounds", killed, f"{runs} whole jobs compared", lost)


def kill_workers_of_jobs(config: Path, folder: Path, times: int, rng: np.random.Generator) -> Row:
    """SIGKILL random workers of the whole job, which has two and goes on.

    Between two kills a shard gets done: one that is begun three times and never ended has its
    items isolated, which is another row's matter.
    """
    from tests.conftest import file_hashes

    expected, _ = undisturbed_job(config, folder)
    killed, lost, runs = 0, 0, 0
    while killed < times:
        run_dir = folder / f"job-{runs}"
        process, _ = start(JOB, config, run_dir, folder / "ready", "--workers", "2")
        done = 0
        while process.poll() is None and killed < times:
            time.sleep(float(rng.uniform(0, 1)))
            alive = workers_of(process.pid)
            if alive and num_shards_done(run_dir) > done and process.poll() is None:
                done = num_shards_done(run_dir)
                os.kill(int(rng.choice(alive)), signal.SIGKILL)
                killed += 1
        lost += differs(process.wait(), file_hashes(run_dir), expected)
        runs += 1
    what = "SIGKILL of a worker of run-rounds --workers 2"
    return Row(what, killed, f"{runs} whole jobs compared", lost)


def undisturbed_job(config: Path, folder: Path) -> tuple[dict[str, str], float]:
    """Run the whole job in a process of its own; give its files' hashes, and its seconds."""
    from tests.conftest import file_hashes

    process, began = start(JOB, config, folder / "whole", folder / "ready")
    if process.wait():
        raise RuntimeError("the undisturbed job failed")
    return file_hashes(folder / "whole"), time.monotonic() - began


def num_shards_done(run_dir: Path) -> int:
    """Count the shards of all stages of a run that are done."""
    return len(list(run_dir.glob("**/done/[0-9]*.json")))


def start(
    code: str, config: Path, run_dir: Path, ready: Path, *options: str
) -> tuple["subprocess.Popen[bytes]", float]:
    """Start the three stages or the job; come back when all is imported, with the time."""
    ready.unlink(missing_ok=True)
    command = [sys.executable, "-c", code, str(ready)]
    command += ["--config", str(config), "--run-dir", str(run_dir), *options]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet, start_new_session=True)
    until(lambda: ready.exists() or process.poll() is not None)
    return process, time.monotonic()


def differs(code: int, found: dict[str, str], expected: dict[str, str]) -> int:
    """Give 1 if a run failed or its files are not the expected ones, and say why on stderr."""
    names = sorted({name for name, _ in found.items() ^ expected.items()})
    if code or names:
        print(f"exit code {code}, differing: {names[:5]}", file=sys.stderr)
    return int(bool(code or names))


def fresh(whole: Path, run_dir: Path) -> None:
    """Copy a run without its three stores."""
    shutil.rmtree(run_dir, ignore_errors=True)
    shutil.copytree(whole, run_dir)
    for name in STORES:
        for kind in ("zarr", "stage"):
            shutil.rmtree(run_dir / f"{name}.{kind}")


def small_run(folder: Path) -> tuple[Path, Path]:
    """Make the config and the undisturbed run of a small job of all stages."""
    from pipeline.commands import Settings
    from tests.conftest import SMALL_JOB
    from train.cli import job_config
    from train.rounds import run_rounds

    config = folder / "stages.yaml"
    config.write_text(SMALL_JOB)
    run_rounds(job_config(Settings(config, folder / "run", ())), folder / "run", say=lambda _: None)
    return config, folder / "run"


def main() -> None:
    """Print the table as Markdown."""
    with tempfile.TemporaryDirectory(prefix="semires-faults-") as name:
        folder = Path(name)
        config, whole = small_run(folder)
        print("| what was done | times | what came of it | lost |\n|---|---|---|---|")
        for row in campaign(config, whole, folder):
            print(f"| {row.what} | {row.times} | {row.outcome} | {row.lost} |", flush=True)


if __name__ == "__main__":
    main()
