"""Shell: find the items of a shard that end their process, and do the others.

A shard that was begun several times and never ended is computed in processes of their own: first
whole, then in halves, until the items are known that fail alone. Run as a module it is such a
process, which goes on until it dies: `python -m pipeline.isolation TASK ANSWERS`.
"""

import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.attempts import MAX_ATTEMPTS, Attempts
from pipeline.errors import SemiresError, StoreError
from pipeline.places import redacted
from pipeline.shards import FailsRows, ShardResult, Work, join_results
from pipeline.store import ArraySpec

MAX_POISON = 8
"""Items of one shard that may be given up; more are no bad items but a bad setting."""


class GivenUpError(StoreError):
    """A shard that cannot be done, though others can."""


@dataclass(frozen=True, slots=True)
class Death:
    """A range of rows that could not be computed, with the reason in one line."""

    reason: str


Probe = Callable[[range], ShardResult | Death]


@dataclass(slots=True)
class _Search:
    probe: Probe
    pieces: list[tuple[range, ShardResult]] = field(default_factory=list)
    poison: dict[int, str] = field(default_factory=dict)

    def run(self, rows: range) -> None:
        found = self.probe(rows)
        if isinstance(found, Death) and len(rows) == 1:
            found = self.probe(rows)  # alone, once more: the machine may have been to blame
        if isinstance(found, ShardResult):
            self.pieces.append((rows, found))
            return
        if len(rows) == 1:
            self.poison[rows.start] = found.reason
            if len(self.poison) > MAX_POISON:
                raise GivenUpError(
                    f"more than {MAX_POISON} items fail one by one, the last, row {rows.start}, "
                    f"with {found.reason}"
                )
            return
        middle = rows.start + len(rows) // 2
        self.run(range(rows.start, middle))
        self.run(range(middle, rows.stop))


def isolate(
    work: Work, rows: range, specs: tuple[ArraySpec, ...], before: Attempts, probe: Probe
) -> tuple[ShardResult, dict[str, int]]:
    """Compute a shard around the items that cannot be computed.

    Args:
        work: The stage's computation; gives the columns of a failed row by `failed_row`.
        rows: The shard's item rows.
        specs: The store's arrays.
        before: What was tried before.
        probe: Computes some rows, or says why it cannot.

    Returns:
        The shard's result, and the attempts at every item that was given up.

    Raises:
        GivenUpError: If more than `MAX_POISON` items fail, or the stage cannot leave an item out.
    """
    search = _Search(probe)
    search.run(rows)
    pieces, attempts = search.pieces, {}
    for row, reason in search.poison.items():
        if not isinstance(work, FailsRows):
            raise GivenUpError(f"row {row} fails on its own ({reason}), and cannot be left out")
        given_up = work.failed_row(row, f"given up: {reason}")
        pieces.append((range(row, row + 1), given_up))
        for failure in given_up.failures:
            attempts[failure.item] = before.items.get(failure.item, 0) + MAX_ATTEMPTS + 2
    pieces.sort(key=lambda piece: piece[0].start)
    return join_results(specs, [result for _, result in pieces]), attempts


@contextmanager
def probing(work: Work, max_seconds: float | None = None) -> Iterator[Probe]:
    """Give a probe that computes in another process, a new one whenever that has ended.

    Args:
        work: What it computes.
        max_seconds: How long it may take for some rows before it is ended; None for any time.

    Raises:
        SemiresError: What the work raises of that kind; it is about all items.
    """
    with tempfile.TemporaryDirectory(prefix="semires-") as folder:
        child = _Child(Path(folder), work, max_seconds)
        try:
            yield child.compute
        finally:
            child.end()


class _Child:
    """The process that computes; it may die at any time."""

    def __init__(self, folder: Path, work: Work, max_seconds: float | None) -> None:
        import cloudpickle  # a dependency of distributed

        self._task, self._result = folder / "task", folder / "result"
        self._task.write_bytes(cloudpickle.dumps(work))
        self._process: subprocess.Popen[bytes] | None = None
        self._replies = -1
        self._max_seconds = max_seconds

    def compute(self, rows: range) -> ShardResult | Death:
        process = self._running()
        self._result.unlink(missing_ok=True)
        try:
            os.write(process.stdin.fileno(), f"{rows.start} {rows.stop}\n".encode())  # type: ignore[union-attr]
            if not select.select([self._replies], [], [], self._max_seconds)[0]:
                process.kill()
                self.end()
                return Death(f"took longer than {self._max_seconds:g} s")
            answered = os.read(self._replies, 1)
        except BrokenPipeError:
            answered = b""
        if not answered or not self._result.exists():
            return Death(_how_it_ended(self.end()))
        found: ShardResult | Death | SemiresError = pickle.loads(self._result.read_bytes())
        if isinstance(found, SemiresError):
            raise found
        return found

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            self._replies, answers = os.pipe()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.isolation", str(self._task), str(answers)],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdin=subprocess.PIPE,
                pass_fds=(answers,),
            )
            os.close(answers)
        return self._process

    def end(self) -> int:
        """Let the process end, if there is one, and give its exit code."""
        if self._process is None:
            return 0
        with suppress(BrokenPipeError):
            self._process.stdin.close()  # type: ignore[union-attr]
        os.close(self._replies)
        code, self._process = self._process.wait(), None
        return code


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"its process ended with exit code {code}"
    name = signal.Signals(-code).name
    hint = " (out of memory?)" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{hint}"


def serve(task: Path, answers: int) -> None:
    """Compute the rows that stdin names, line by line, and say so after each; the child's part."""
    work = pickle.loads(task.read_bytes())  # written by the parent process
    for line in sys.stdin:
        start, stop = map(int, line.split())
        result: ShardResult | Death | SemiresError
        try:
            result = work(range(start, stop))
        except SemiresError as error:
            result = error
        except Exception as error:
            result = Death(redacted(f"{type(error).__name__}: {' '.join(str(error).split())}"))
        task.with_name("result").write_bytes(pickle.dumps(result))
        os.write(answers, b"1")


if __name__ == "__main__":
    from pipeline import isolation  # by its own name, for what is pickled

    isolation.serve(Path(sys.argv[1]), int(sys.argv[2]))
