"""Who holds a run directory, how one is told alive, and the heartbeat of one's own."""

import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click

from pipeline.errors import StoreError
from pipeline.places import Place

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 120.0
"""How old the heartbeat of another machine's driver must be for its lock to be taken over."""
_LOOK_SECONDS = 2.0
_LOST = signal.SIGUSR2  # not SIGINT, which a shell's background jobs ignore


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds, or held, a lock."""

    host: str
    pid: int
    boot: str
    """The kernel's id of this start of the machine: tells whether a pid means anything here."""
    token: str
    since: str
    command: str

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host} since {self.since} ({self.command})"


@dataclass(frozen=True, slots=True)
class Part:
    """Part `index` of `count`, from 0, of a static run."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}-of-{self.count}"


def this_process() -> Holder:
    """Describe this process as the holder of a new lock."""
    return Holder(
        host=socket.gethostname(),
        pid=os.getpid(),
        boot=this_boot(),
        token=uuid.uuid4().hex,
        since=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        command=Path(sys.argv[0]).name or "python",
    )


def this_boot() -> str:
    """Give the kernel's id of this start of the machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()


def runs(pid: int) -> bool:
    """Tell whether there is a process of this number on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def in_use(run_dir: Place, holder: Holder | None) -> StoreError:
    """Say in one line who holds a run directory."""
    name = "another process" if holder is None else str(holder)
    there = holder is not None and not holder.boot.startswith(this_boot())
    freed = f" (if its machine is gone, the lock is free {STALE_SECONDS:.0f} s after)"
    return StoreError(
        f"{run_dir}: in use by {name}; wait for it or stop it{freed if there else ''}"
    )


def fell_silent(
    run_dir: Place, holder: Holder, age: float, sign: Callable[[], object | None]
) -> bool:
    """Wait until a driver of another machine gives a sign of life, or has given none for long.

    Such a driver may have ended with its machine a moment ago, as where a job system moves a job.
    By this machine's own clock, since the heartbeat may lie in the future.

    Args:
        run_dir: For the message on stderr.
        holder: Who it is.
        age: Seconds since its last heartbeat; negative if clocks disagree, and then unknown.
        sign: Gives something that differs after a heartbeat; None once nobody holds the lock.

    Returns:
        True if it is gone: then the lock may be taken.
    """
    before = sign()
    left = STALE_SECONDS - max(0.0, age)
    heard = "in the future" if age < 0 else f"{age:.0f} s ago"
    click.echo(
        f"{run_dir}: held by {holder}, last heard of {heard}; waiting up to {left:.0f} s for a "
        f"sign of life, and going on if there is none",
        err=True,
    )
    limit = time.monotonic() + left
    while before is not None and time.monotonic() < limit:
        time.sleep(min(_LOOK_SECONDS, max(0.0, limit - time.monotonic())))
        found = sign()
        if found is None:
            return True
        if found != before:
            return False
    return True


@contextmanager
def heartbeat(*checks: Callable[[], bool]) -> Iterator[None]:
    """Call each check now and then; interrupt the process as ctrl-C once one says all is lost.

    Args:
        checks: Renew the lock, or look at it; False if another has taken it. Each is called in a
            thread of its own, since one that asks another machine may hang.
    """
    done, ending = threading.Event(), threading.Lock()  # at most one signal, and none after the end

    def go_on(check: Callable[[], bool]) -> None:
        try:
            while not done.wait(HEARTBEAT_SECONDS) and check():
                pass
        finally:  # also of a check that breaks down: a lock without a heartbeat is taken over
            with ending:
                if not done.is_set():
                    done.set()
                    os.kill(os.getpid(), _LOST)  # as ctrl-C, even out of a sleep

    threads = [
        threading.Thread(target=go_on, args=(check,), name="heartbeat", daemon=True)
        for check in checks
    ]
    in_main = threading.current_thread() is threading.main_thread()  # no other may set handlers
    before = signal.signal(_LOST, _interrupt) if in_main else None
    try:
        for thread in threads:
            thread.start()
        yield
    finally:
        try:
            with ending:
                done.set()
            for thread in threads:
                if thread.is_alive():
                    thread.join(HEARTBEAT_SECONDS)
        finally:  # the signal, or ctrl-C, may come while these are awaited
            done.set()
            if in_main:
                signal.signal(_LOST, before)


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt("the lock of the run directory is lost")
