"""Damaged files for everything that reads what users hand us; what became of them.

Every reader gets its kept files as they are, then mutations of them, the same for the same seed.
It runs in a process of its own, with a GiB of address space beyond what the program takes: a case
that asks for more, works for two seconds, ends the process, or raises anything but `SemiresError`
is a crash, and its input is written to `--out`.
"""

import argparse
import json
import mmap
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType

from tests.fuzz.mutations import mutated
from tests.fuzz.readers import READERS, fresh, outcome, seeds_of

MAX_SECONDS = 2.0
_HANGS_SECONDS = 60
_ROOM_BYTES = 1 << 30
_MAX_ALIKE = 3


@dataclass
class Found:
    """What became of a reader's cases."""

    cases: int = 0
    accepted: int = 0
    refused: int = 0
    crashed: int = 0
    crashes: list[dict[str, str]] = field(default_factory=list)
    """Case and what happened, the first `_MAX_ALIKE` of those that are alike."""
    longest_ms: float = 0.0
    memory_mib: float = 0.0


def cases_of(name: str, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Give a reader's inputs with their names: the kept files, then `count` mutations of them."""
    kept = seeds_of(name)
    yield from kept.items()
    files = list(kept.values())
    for number in range(count):
        rng = random.Random(f"{name} {seed} {number}")
        yield (
            f"seed-{seed}-case-{number}",
            mutated(rng.choice(files), files, READERS[name].kind, rng),
        )


class _Hangs(BaseException):
    """The alarm: not an Exception, so that nothing that catches those takes it for damage."""


def _ring(_signal: int, _frame: FrameType | None) -> None:
    raise _Hangs


def place_of(error: BaseException) -> str:
    """Name an error by its kind and the innermost function of ours that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith(_OURS)]
    if not ours:
        return f"{type(error).__name__} ?"
    file = Path(ours[-1].filename).relative_to(_ROOT)
    return f"{type(error).__name__} {file.as_posix()}:{ours[-1].name}"


_ROOT = Path(__file__).resolve().parents[1]
_OURS = tuple(f"{_ROOT}{os.sep}{name}{os.sep}" for name in ("pipeline", "refine", "train"))


def _run_cases(
    name: str, cases: Iterator[tuple[int, str, bytes]], folder: Path, progress: mmap.mmap
) -> Found:
    """Run cases of a reader in this process."""
    warnings.simplefilter("ignore")
    read = READERS[name].open(fresh(folder))
    _take_limits()
    signal.signal(signal.SIGALRM, _ring)
    found = Found()
    before = _memory_mib()
    for number, case, content in cases:
        progress[:8] = struct.pack("<q", number)
        started, worked = time.perf_counter(), time.process_time()
        signal.setitimer(signal.ITIMER_REAL, _HANGS_SECONDS / 2)
        crash = ""
        try:
            result = outcome(read, content)
            setattr(found, result, getattr(found, result) + 1)
        except (Exception, _Hangs) as error:
            crash = place_of(error)
            text = f"{error!s:.200}" if isinstance(error, Exception) else ""
            crash += f" ({' '.join(text.split())})" if text else ""
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        seconds = time.perf_counter() - started
        found.cases += 1
        found.longest_ms = max(found.longest_ms, 1000 * seconds)
        worked = time.process_time() - worked  # others may use the machine too
        if not crash and worked > MAX_SECONDS:
            crash = f"slow: {worked:.1f} s"
        if crash:
            found.crashed += 1
            alike = [one for one in found.crashes if _kind(one["what"]) == _kind(crash)]
            if len(alike) < _MAX_ALIKE:
                found.crashes.append({"case": case, "what": crash})
    found.memory_mib = max(0.0, _memory_mib() - before)
    return found


def _kind(crash: str) -> str:
    return crash.split(" (")[0].split(": ")[0]


def _take_limits() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _ROOM_BYTES, used + _ROOM_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _memory_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fuzz(name: str, count: int, seed: int, folder: Path) -> Found:
    """Run a reader's cases in a process of their own; one that ends it is a crash like others."""
    progress = mmap.mmap(-1, 8)
    found, first = Found(), 0
    while True:
        part, ended = _run_part(name, count, seed, first, folder, progress)
        _add(found, part)
        if not ended:
            return found
        if ended == "exit code 1":  # said why, on stderr
            raise RuntimeError(f"{name}: the reader could not be opened, or the damage done")
        number = struct.unpack("<q", progress[:8])[0]
        case = next(case for n, case, _ in _from(name, count, seed, number) if n == number)
        found.cases += number + 1 - first
        found.crashed += 1
        found.crashes.append({"case": case, "what": f"process ended: {ended}"})
        first = number + 1


def _from(name: str, count: int, seed: int, first: int) -> Iterator[tuple[int, str, bytes]]:
    """Give a reader's cases with their numbers, from one on."""
    for number, (case, content) in enumerate(cases_of(name, count, seed)):
        if number >= first:
            yield number, case, content


def _run_part(
    name: str, count: int, seed: int, first: int, folder: Path, progress: mmap.mmap
) -> tuple[Found, str]:
    """Run the cases from one on; gives what was found, and how the process ended, "" if well."""
    answer = folder.with_suffix(".json")
    answer.unlink(missing_ok=True)
    progress[:8] = struct.pack("<q", first)
    child = os.fork()
    if child == 0:
        try:
            part = _run_cases(name, _from(name, count, seed, first), folder, progress)
            answer.write_text(json.dumps(asdict(part)))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0 if answer.exists() else 1)
    ended = _wait(child, progress)
    if answer.exists():
        return Found(**json.loads(answer.read_text())), ""
    return Found(), ended


def _add(total: Found, part: Found) -> None:
    """Add up two parts."""
    for key in ("cases", "accepted", "refused", "crashed", "crashes"):
        setattr(total, key, getattr(total, key) + getattr(part, key))
    total.longest_ms = max(total.longest_ms, part.longest_ms)
    total.memory_mib = max(total.memory_mib, part.memory_mib)


def _wait(child: int, progress: mmap.mmap) -> str:
    """Wait for a process as long as it gets from case to case."""
    last, since = b"", time.monotonic()
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            return signal.Signals(-code).name if code < 0 else f"exit code {code}"
        if progress[:8] != last:
            last, since = progress[:8], time.monotonic()
        elif time.monotonic() - since > 2 * _HANGS_SECONDS:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "it hung"
        time.sleep(0.02)


def share_out(cases: int, names: list[str]) -> dict[str, int]:
    """Share the cases among readers by their weights."""
    total = sum(READERS[name].weight for name in names)
    return {name: -(-cases * READERS[name].weight // total) for name in names}


def keep_crashes(name: str, found: Found, count: int, seed: int, out: Path) -> None:
    """Write the inputs of crashes, named by their case."""
    wanted = {crash["case"] for crash in found.crashes}
    for case, content in cases_of(name, count, seed):
        if case in wanted:
            (out / name).mkdir(parents=True, exist_ok=True)
            (out / name / case).write_bytes(content)


def table(results: dict[str, Found]) -> Iterator[str]:
    """Give the lines of a table, one a reader."""
    yield "| reader | cases | accepted | refused | crashed | longest, ms | memory, MiB |"
    yield "|---|---|---|---|---|---|---|"
    total = Found()
    for name, found in results.items():
        yield _line(name, found)
        _add(total, found)
    yield _line("all", total)


def _line(name: str, found: Found) -> str:
    figures = (found.cases, found.accepted, found.refused, found.crashed)
    texts = [*map(str, figures), f"{found.longest_ms:.0f}", f"{found.memory_mib:.0f}"]
    return f"| {name} | {' | '.join(texts)} |"


def main() -> None:
    """Fuzz the readers and print the table; exit 1 if anything crashed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", action="append", choices=list(READERS))
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"))
    arguments = parser.parse_args()
    names = arguments.reader or list(READERS)
    results: dict[str, Found] = {}
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as root:
        for name, count in share_out(arguments.cases, names).items():
            found = fuzz(name, count, arguments.seed, Path(root) / name)
            results[name] = found
            print(_line(name, found), file=sys.stderr, flush=True)
            for crash in found.crashes:
                print(f"  {crash['case']}: {crash['what']}", file=sys.stderr, flush=True)
            keep_crashes(name, found, count, arguments.seed, arguments.out)
    print("\n".join(table(results)))
    print(f"\n{time.monotonic() - started:.0f} s, seed {arguments.seed}")
    sys.exit(any(found.crashed for found in results.values()))


if __name__ == "__main__":
    main()
