"""Shell: find the items of a shard that end their process, and do the others.

A shard that was begun several times and never ended is computed in processes of their own: first
whole, then in halves, until the items are known that fail alone. Run as a module it is such a
process, which ends with its parent: `python -m pipeline.isolation PIPE PARENT`.
"""

import ctypes
import math
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

from pipeline.attempts import MAX_ATTEMPTS, Attempts
from pipeline.errors import SemiresError, StoreError
from pipeline.places import redacted
from pipeline.shards import FailsRows, ShardResult, Work, join_results
from pipeline.store import ArraySpec, space_needed

MAX_POISON = 8
"""Items of one shard that may be given up; more are no bad items but a bad setting."""
START_SECONDS = 600.0
"""How long a process may take to start: nothing of the items, and of no limit for them."""
WARM_UP_SECONDS = 60.0
"""How long it may then take for an item of another shard, before the limit counts: networks are
loaded by the first. Ten times the limit, where that is more."""
_END_SECONDS = 60.0  # a core dump takes its time
_LOOK_SECONDS = 1.0
_NO_START = "the process that looks for bad items"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


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
    work: Work,
    rows: range,
    specs: tuple[ArraySpec, ...],
    before: Attempts,
    probe: Probe,
    elsewhere: range = range(0),
) -> tuple[ShardResult, dict[str, int]]:
    """Compute a shard around the items that cannot be computed.

    Args:
        work: The stage's computation; gives the columns of a failed row by `failed_row`.
        rows: The shard's item rows.
        specs: The store's arrays.
        before: What was tried before.
        probe: Computes some rows, or says why it cannot.
        elsewhere: A row of another shard, by which a bad machine is told from bad items where all
            of this shard fail; empty if there is none.

    Returns:
        The shard's result, and the attempts at every item that was given up.

    Raises:
        GivenUpError: If more than `MAX_POISON` items fail, the stage cannot leave an item out, or
            the machine is to blame.
    """
    search = _Search(probe)
    search.run(rows)
    if len(search.poison) == len(rows):
        _refuse_bad_machine(rows, probe, elsewhere)
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


def _refuse_bad_machine(rows: range, probe: Probe, elsewhere: range) -> None:
    """Refuse to blame every item of a shard for what one of another shard meets as well."""
    if not elsewhere:
        return
    try:
        found = probe(elsewhere)
    except SemiresError:  # what it needs may not be made yet
        return
    if isinstance(found, Death):
        raise GivenUpError(
            f"all its items fail, and row {elsewhere.start} of another shard, too, with "
            f"{found.reason}; look for the cause in the machine or the settings"
        )


@contextmanager
def probing(
    work: Work, max_seconds: float | None = None, elsewhere: range = range(0)
) -> Iterator[Probe]:
    """Give a probe that computes in another process, a new one whenever that has ended.

    Args:
        work: What it computes.
        max_seconds: How long it may take for some rows before it is ended; None for any time. The
            start of a process and what it loads for its first row do not count.
        elsewhere: A row of another shard, computed first for that; empty if there is none.

    Raises:
        SemiresError: What the work raises of that kind, or that the process cannot be started; it
            is about all items.
    """
    child = _Child(work, max_seconds, elsewhere)
    try:
        yield child.compute
    except BaseException:
        child.kill()  # it may hang, and would outlive us
        raise
    finally:
        child.end()


class _Child:
    """The process that computes; it may die at any time, and is then started anew."""

    def __init__(self, work: Work, max_seconds: float | None, elsewhere: range) -> None:
        import cloudpickle  # a dependency of distributed

        self._task: bytes = cloudpickle.dumps(work)
        self._max_seconds = max_seconds
        self._warm_up_row = elsewhere if max_seconds is not None else range(0)
        self._process: _Process | None = None

    def compute(self, rows: range) -> ShardResult | Death:
        while self._process is None:
            self._process = _Process(self._task)
            self._warm_up()
        found = self._ask(rows, self._max_seconds)
        if isinstance(found, SemiresError):
            raise found
        return found

    def _warm_up(self) -> None:
        row, self._warm_up_row = self._warm_up_row, range(0)
        if row:
            found = self._ask(row, max(WARM_UP_SECONDS, 10 * (self._max_seconds or 0.0)))
            if isinstance(found, ShardResult):
                self._warm_up_row = row  # for the next process; one that fails is of no use

    def _ask(self, rows: range, seconds: float | None) -> ShardResult | Death | SemiresError:
        assert self._process is not None
        try:
            found = self._process.ask(rows, seconds)
        except TimeoutError:
            self.kill()
            found = Death(f"took longer than {seconds:g} s")
        if found is None:
            found = Death(_how_it_ended(self.end()))
        return found

    def kill(self) -> None:
        """End the process at once, if there is one."""
        if self._process is not None:
            self._process.kill()
            self.end()

    def end(self) -> int:
        """Let the process end, if there is one, and give its exit code."""
        if self._process is None:
            return 0
        code, self._process = self._process.end(), None
        return code


class _Process:
    """One started process and the pipe to it."""

    def __init__(self, task: bytes) -> None:
        self._pipe, theirs = Pipe()
        with theirs:
            command = [sys.executable, "-m", "pipeline.isolation", str(theirs.fileno())]
            self._popen = subprocess.Popen(
                [*command, str(os.getpid())],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
            )
        try:
            started = self._answer_to(task, START_SECONDS)
        except BaseException as error:
            self.kill()
            self.end()
            if not isinstance(error, TimeoutError):
                raise
            reason = f"is not ready after {START_SECONDS:g} s"
            raise StoreError(f"{_NO_START} {reason}") from error
        if started is None:
            raise StoreError(f"{_NO_START} cannot start: {_how_it_ended(self.end())}")

    def ask(self, rows: range, seconds: float | None) -> ShardResult | Death | SemiresError | None:
        """Have some rows computed; None if the process ends, TimeoutError if they take longer."""
        answer = self._answer_to(pickle.dumps(rows), seconds)
        return None if answer is None else pickle.loads(answer)

    def _answer_to(self, message: bytes, seconds: float | None) -> bytes | None:
        limit = math.inf if seconds is None else time.monotonic() + seconds
        try:
            self._pipe.send_bytes(message)
            while not self._pipe.poll(max(0.0, min(_LOOK_SECONDS, limit - time.monotonic()))):
                if self._popen.poll() is not None and not self._pipe.poll():
                    return None  # a process that it made may have the pipe open
                if time.monotonic() >= limit:
                    raise TimeoutError
            return self._pipe.recv_bytes()
        except (EOFError, ConnectionError):
            return None

    def kill(self) -> None:
        """End it at once."""
        self._popen.kill()

    def end(self) -> int:
        """Let it end, and give its exit code."""
        self._pipe.close()
        try:
            return self._popen.wait(_END_SECONDS)
        except BaseException as error:
            self._popen.kill()
            code = self._popen.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return code


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"its process ended with exit code {code}"
    name = signal.Signals(-code).name
    hint = " (out of memory?)" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{hint}"


def serve(pipe: Connection, parent: int) -> None:
    """Compute the rows that come through a pipe and send back what they gave; the child's part.

    Args:
        pipe: Gives the work, then rows; ends when the parent does.
        parent: Its process id.
    """
    _end_with(parent)
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to all of a group: the parent ends us
        signal.signal(number, signal.SIG_IGN)
    work = pickle.loads(pipe.recv_bytes())
    pipe.send_bytes(b"")
    with suppress(EOFError, ConnectionError):
        while True:
            rows = pickle.loads(pipe.recv_bytes())
            pipe.send_bytes(pickle.dumps(_outcome(work, rows)))


def _outcome(work: Work, rows: range) -> ShardResult | Death | SemiresError:
    try:
        with space_needed(Path(tempfile.gettempdir())):  # a full disk is no fault of an item
            return work(rows)
    except SemiresError as error:
        return error
    except Exception as error:
        return Death(redacted(f"{type(error).__name__}: {' '.join(str(error).split())}"))


def _end_with(parent: int) -> None:
    """Have the kernel end this process with its parent, even in the middle of a computation."""
    with suppress(OSError, AttributeError, TypeError):  # no Linux: it ends after what it computes
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    from pipeline import isolation  # by its own name, for what is pickled

    isolation.serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
