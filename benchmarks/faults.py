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
from benchmarks.null_runs import Row, hashes, until
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


def campaign(config: Path, whole: Path, folder: Path) -> Iterator[Row]:
    """Do everything, the long version."""
    rng = np.random.default_rng(0)

    def place(name: str) -> Path:
        (folder / name).mkdir()
        return folder / name

    yield kill_stages(config, whole, place("a"), 30, rng)
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
        process, began = start_stages(config, run_dir, ready)
        try:
            code = process.wait(float(rng.uniform(0.05, longest)))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
            continue
        longest = min(longest, time.monotonic() - began + 0.5)
        lost += differs(code, run_dir, expected)
        stores += 1
        fresh(whole, run_dir)
    process, _ = start_stages(config, run_dir, ready)
    lost += differs(process.wait(), run_dir, expected)
    what = "SIGKILL in sam-candidates, predict-teacher, refine-labels"
    return Row(what, killed, f"{3 * (stores + 1)} stores compared", lost)


def start_stages(
    config: Path, run_dir: Path, ready: Path
) -> tuple["subprocess.Popen[bytes]", float]:
    """Start the three stages; come back when all is imported, with the time."""
    ready.unlink(missing_ok=True)
    command = [sys.executable, "-c", STAGES, str(ready)]
    command += ["--config", str(config), "--run-dir", str(run_dir)]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet, start_new_session=True)
    until(lambda: ready.exists() or process.poll() is not None)
    return process, time.monotonic()


def differs(code: int, run_dir: Path, expected: dict[str, str]) -> int:
    """Give 1 if a run failed or its stores are not the expected ones, and say why on stderr."""
    names = sorted(name for name, _ in hashes(run_dir).items() ^ expected.items())
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
