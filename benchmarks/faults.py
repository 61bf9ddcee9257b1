"""Break the stages on purpose, mend them, and count what was lost.

Drivers, workers and schedulers are killed at random moments, bits flipped, shards cut, disks
filled; after each the same command is given again, and the stores are compared byte by byte with
those of an undisturbed run. `make bench-faults` prints the table of docs/faults.md.
"""

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

STORES = ("candidates", "round-1/teacher", "round-1/labels")
ITEMS, SHARD_SIZE = 200, 5
"""Of the null stage: 40 shards."""
NULL = [sys.executable, "-m", "benchmarks.null_stage", "--items", str(ITEMS),
        "--shard-size", str(SHARD_SIZE)]  # fmt: skip
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


def num_done(folder: Path) -> int:
    """Count the shards of the null stage that are done."""
    return len(list((folder / "null.stage" / "done").glob("[0-9]*.json")))


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


def finish(run_dir: Path, expected: dict[str, str]) -> int:
    """Run the null stage to its end; give 1 if the store differs."""
    return int(null_run(run_dir).wait() != 0 or hashes(run_dir) != expected)


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


class cluster:  # noqa: N801 - a context manager, used like a function
    """A scheduler and a worker, as a user starts them."""

    def __enter__(self) -> tuple[str, "subprocess.Popen[bytes]"]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        port = address.rsplit(":", 1)[1]
        first = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1",
                 "--port", port, "--no-dashboard"]  # fmt: skip
        second = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1",
                  "--no-dashboard", "--death-timeout", "10"]  # fmt: skip
        self.scheduler = subprocess.Popen(first, **quiet)
        self.worker = subprocess.Popen(second, **quiet, start_new_session=True)
        return address, self.scheduler

    def __exit__(self, *_error: object) -> None:
        self.scheduler.kill()
        with suppress(ProcessLookupError):
            os.killpg(self.worker.pid, signal.SIGKILL)
        self.scheduler.wait()
        self.worker.wait()


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


def stage_files(run_dir: Path) -> list[Path]:
    """List every file of the three stores and of their proofs."""
    places = [run_dir / f"{name}.{kind}" for name in STORES for kind in ("zarr", "stage")]
    return sorted(path for place in places for path in place.rglob("*") if path.is_file())


def redo(config: Path, run_dir: Path) -> None:
    """Run the three stages again, in this process."""
    from pipeline.candidate_config import CandidatesConfig
    from pipeline.candidate_stage import sam_candidates
    from pipeline.commands import Settings
    from refine.stage import RefineConfig, refine_labels
    from train.config import TeacherConfig
    from train.predict import predict_teacher

    settings = Settings(config, run_dir, ())
    sam_candidates(settings.section("candidates", CandidatesConfig), run_dir)
    predict_teacher(settings.section("teacher", TeacherConfig), run_dir, 1)
    refine_labels(settings.section("refine", RefineConfig), run_dir, 1)


def store_of(path: Path) -> Path:
    """Give the store that a file is of, or is the proof of."""
    place = next(up for up in path.parents if up.suffix in (".zarr", ".stage"))
    return place.with_suffix(".zarr")


def name_of(path: Path, store: Path) -> str:
    """Give what a verification should name when a file is damaged."""
    if path.suffix == ".json" and path.parent.name == "done":
        return f"shard {int(path.stem)}"
    if path.name == "plan.json":
        return "plan"
    parts = path.relative_to(store).parts
    return f"shard {int(parts[2])}" if "c" in parts else "/".join(parts)


Damage = Callable[[Path, np.random.Generator], None]


def flip_bit(path: Path, rng: np.random.Generator) -> None:
    """Flip one random bit of a file."""
    content = bytearray(path.read_bytes())
    content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
    path.write_bytes(bytes(content))


def cut_short(path: Path, rng: np.random.Generator) -> None:
    """Cut a file at a random place."""
    content = path.read_bytes()
    path.write_bytes(content[: int(rng.integers(len(content)))])


def empty(path: Path, _rng: np.random.Generator) -> None:
    """Leave nothing of a file."""
    path.write_bytes(b"")


def damage_files(
    config: Path,
    whole: Path,
    folder: Path,
    times: int,
    rng: np.random.Generator,
    damage: Damage,
    at_once: int = 10,
) -> Row:
    """Damage files of all stores, a few at once; verify, repair, run again, compare."""
    from pipeline.audit import repair, verify_store

    run_dir = folder / damage.__name__
    shutil.copytree(whole, run_dir)
    expected, missed, lost, done = hashes(whole), 0, 0, 0
    while done < times:
        count = min(at_once, times - done)
        chosen = rng.choice(np.array(stage_files(run_dir)), count, replace=False)
        for path in sorted(chosen, key=lambda path: path.name == "plan.json"):
            store = store_of(path)
            damage(path, rng)
            found = {problem.what for problem in verify_store(store).problems}
            missed += name_of(path, store) not in found
        for name in STORES:
            repair(run_dir / f"{name}.zarr")
        redo(config, run_dir)
        lost += hashes(run_dir) != expected
        done += count
    what = {"flip_bit": "single bit flipped", "cut_short": "file cut", "empty": "file emptied"}
    stores = "candidates, teacher, labels and their proofs"
    return Row(
        f"{what[damage.__name__]} in {stores}", done, f"{done - missed} found", missed + lost
    )


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
    from benchmarks import object_faults  # which imports this module

    yield from object_faults.rows(place("objects"), rng)


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
