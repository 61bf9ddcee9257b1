"""The fault table's rows of processes and disks: what runs is ended, disks are filled."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from benchmarks.null_runs import (
    ITEMS,
    NULL,
    SHARD_SIZE,
    Row,
    finish,
    hashes,
    null_hashes,
    null_run,
    num_done,
    until_done,
    workers_of,
)


def kill_drivers(folder: Path, times: int, rng: np.random.Generator, *options: str) -> Row:
    """SIGKILL the null stage's driver at random moments, and start it again."""
    expected, lost, finished = null_hashes(folder / "whole"), 0, 0
    killed = 0
    while killed < times:
        run_dir = folder / f"killed-{finished}"
        process = null_run(run_dir, *options)
        goal = min(ITEMS // SHARD_SIZE - 1, num_done(run_dir) + int(rng.integers(1, 12)))
        until_done(run_dir, goal, process)
        time.sleep(float(rng.uniform(0, 0.03)))
        process.kill()  # not its workers: they notice
        killed += process.wait() == -signal.SIGKILL
        if num_done(run_dir) >= ITEMS // SHARD_SIZE - 1:
            lost += finish(run_dir, expected)
            finished += 1
    lost += finish(folder / f"killed-{finished}", expected)
    name = " ".join(("SIGKILL of the driver,", *(options or ("in one process",))))
    return Row(name, killed, f"{finished + 1} stores compared", lost)


def kill_workers(folder: Path, times: int, rng: np.random.Generator) -> Row:
    """SIGKILL random workers of a driver with two of them, which goes on."""
    expected, lost, killed, stores = null_hashes(folder / "whole"), 0, 0, 0
    while killed < times:
        run_dir = folder / f"workers-{stores}"
        process = null_run(run_dir, "--workers", "2", seconds=0.1)
        while process.poll() is None and killed < times:
            done = num_done(run_dir)
            goal = done + int(rng.integers(1, 8))
            until_done(run_dir, goal, process)
            alive = workers_of(process.pid)
            if alive and process.poll() is None:
                os.kill(int(rng.choice(alive)), signal.SIGKILL)
                killed += 1
        lost += int(process.wait(120) != 0 or hashes(run_dir) != expected)
        stores += 1
    return Row("SIGKILL of a worker, --workers 2", killed, f"{stores} stores compared", lost)


def kill_schedulers(folder: Path, times: int, rng: np.random.Generator) -> Row:
    """SIGKILL a running scheduler: the driver exits with 75, and goes on with another."""
    expected, killed, codes = null_hashes(folder / "whole"), 0, []
    run_dir = folder / "schedulers"
    while killed < times:
        with cluster() as (address, scheduler):
            process = null_run(run_dir, "--cluster", address, seconds=0.05)
            goal = num_done(run_dir) + int(rng.integers(1, 4))
            until_done(run_dir, goal, process)
            scheduler.kill()
            codes.append(process.wait(120))
            killed += 1
    lost = finish(run_dir, expected)
    wrong = sum(code not in (0, 75) for code in codes)
    return Row(
        "SIGKILL of the Dask scheduler", killed, f"exit 75 {codes.count(75)} times", lost + wrong
    )


@contextmanager
def cluster() -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """Start a scheduler and a worker, as a user does; give its address, and the scheduler."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "scheduler.json"  # it chooses its port, and tells it there
        first = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1",
                 "--port", "0", "--no-dashboard", "--scheduler-file", str(place)]  # fmt: skip
        second = [sys.executable, "-m", "distributed.cli.dask_worker", "--nthreads", "1",
                  "--no-dashboard", "--scheduler-file", str(place),
                  "--death-timeout", "60"]  # fmt: skip
        scheduler = subprocess.Popen(first, **quiet)
        worker = subprocess.Popen(second, **quiet, start_new_session=True)
        try:
            yield _address_in(place, scheduler), scheduler
        finally:
            scheduler.kill()
            with suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            scheduler.wait()
            worker.wait()


def _address_in(place: Path, scheduler: "subprocess.Popen[bytes]") -> str:
    """Wait for a scheduler to write its file, and give the address it names."""
    limit = time.monotonic() + 60
    while time.monotonic() < limit and scheduler.poll() is None:
        with suppress(FileNotFoundError, ValueError):  # not there, or not whole
            return str(json.loads(place.read_text(encoding="utf-8"))["address"])
        time.sleep(0.05)
    raise RuntimeError(
        f"expected a Dask scheduler that writes {place} within 60 s, found none (exit code "
        f"{scheduler.poll()}); run 'python -m distributed.cli.dask_scheduler' to see why"
    )


def terminate(folder: Path, times: int, rng: np.random.Generator, *options: str) -> Row:
    """SIGTERM the driver: it ends the shards that are begun and exits with 75."""
    expected, codes, halves = null_hashes(folder / "whole"), [], 0
    for number in range(times):
        run_dir = folder / f"terminated-{number}"
        process = null_run(run_dir, *options, seconds=0.2)
        goal = int(rng.integers(1, 5))
        until_done(run_dir, goal, process)
        time.sleep(float(rng.uniform(0, 0.15)))
        process.send_signal(signal.SIGTERM)
        codes.append(process.wait(60))
        halves += len(list(run_dir.glob("null.stage/attempts/*.json")))  # begun and not ended
    lost = finish(run_dir, expected)
    wrong = sum(code != 75 for code in codes)
    name = " ".join(("SIGTERM of the driver,", *(options or ("in one process",))))
    return Row(
        name, times, f"exit 75 {codes.count(75)} times, {halves} shards cut", lost + wrong + halves
    )


def fill_disks(folder: Path, times: int) -> Row:
    """Let the disk fill up at different moments: a file system of a few hundred kB, or quota."""
    expected, wrong, clean = null_hashes(folder / "whole"), 0, 0
    for number in range(times):
        run_dir = folder / f"full-{number}"
        run_dir.mkdir()
        size = 120 + 40 * number
        mounted = mount_small(run_dir, size)
        command = [*NULL, "--run-dir", str(run_dir)]
        if not mounted:  # no right to mount: no file may be larger than a plan
            command = ["bash", "-c", f'ulimit -f {number % 4}; exec "$@"', "bash", *command]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = [line for line in ended.stderr.splitlines() if line.startswith("error:")]
        good = ended.returncode == 1 and len(lines) == 1 and "free some space" in lines[0]
        clean += good
        partial = hashes(run_dir)
        proven = {name: value for name, value in partial.items() if proven_file(run_dir, name)}
        wrong += any(expected[name] != value for name, value in proven.items())
        if mounted:
            subprocess.run(["mount", "-o", "remount,size=64m", str(run_dir)], check=True)
        wrong += int(not good) + finish(run_dir, expected)
        if mounted:
            subprocess.run(["umount", str(run_dir)], check=True)
    kind = "tmpfs" if times and mounted else "file size limit"
    return Row(f"disk full ({kind})", times, f"one clear line, exit 1: {clean} times", wrong)


def proven_file(run_dir: Path, name: str) -> bool:
    """Tell whether a file of the null store belongs to a shard with a done record."""
    parts = Path(name).parts
    if "c" not in parts:
        return False
    shard = int(parts[parts.index("c") + 1])
    return (run_dir / "null.stage" / "done" / f"{shard:05d}.json").exists()


def mount_small(folder: Path, kilobytes: int) -> bool:
    """Mount a small file system; False if that is not allowed here."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False
