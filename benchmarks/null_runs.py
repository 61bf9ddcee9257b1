"""Runs of the null stage in processes of their own, to be broken: start, wait, find, compare."""

import hashlib
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ITEMS, SHARD_SIZE = 200, 5
"""Of the null stage: 40 shards."""
NULL = [sys.executable, "-m", "benchmarks.null_stage", "--items", str(ITEMS),
        "--shard-size", str(SHARD_SIZE)]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """What was done, how often, and what came of it."""

    what: str
    times: int
    outcome: str
    lost: int
    """Stores that differed from the undisturbed ones, or damage that was not found."""


def hashes(folder: Path) -> dict[str, str]:
    """Hash all files of the stores below a folder."""
    files = sorted(path for path in folder.glob("**/*.zarr/**/*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def null_run(folder: Path, *options: str, seconds: float = 0.01) -> subprocess.Popen[bytes]:
    """Start the null stage in a process group of its own."""
    command = [*NULL, "--run-dir", str(folder), "--seconds", str(seconds), *options]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdout=quiet, stderr=quiet, start_new_session=True)


def null_hashes(folder: Path) -> dict[str, str]:
    """Give the undisturbed store of the null stage."""
    if null_run(folder, seconds=0).wait():
        raise RuntimeError("the undisturbed null stage failed")
    return hashes(folder)


def finish(run_dir: Path, expected: dict[str, str]) -> int:
    """Run the null stage to its end; give 1 if the store differs."""
    return int(null_run(run_dir).wait() != 0 or hashes(run_dir) != expected)


def num_done(folder: Path) -> int:
    """Count the shards of the null stage that are done."""
    return len(list((folder / "null.stage" / "done").glob("[0-9]*.json")))


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for something that must come."""
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            raise TimeoutError("what should have happened did not")
        time.sleep(0.005)


def until_done(folder: Path, goal: int, process: "subprocess.Popen[bytes]") -> None:
    """Wait until so many shards of the null stage are done, or the process has ended."""
    until(lambda: num_done(folder) >= goal or process.poll() is not None)


def children(pid: int) -> list[int]:
    """List the living descendants of a process."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError, ValueError):
                continue
            if parent == pid:
                found += [int(entry.name), *children(int(entry.name))]
    return found


def workers_of(pid: int) -> list[int]:
    """List the worker processes below a driver."""
    found = []
    for child in children(pid):
        try:
            command = Path(f"/proc/{child}/cmdline").read_bytes()
        except OSError:
            continue
        if b"spawn_main" in command:
            found.append(child)
    return found
