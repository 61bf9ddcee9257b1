"""Who holds a run directory, how one is told alive, and the heartbeat of one's own."""

import os
import signal
import socket
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import NoReturn

from pipeline.errors import StoreError
from pipeline.places import Place

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 120.0
"""How old the heartbeat of another machine's driver must be for its lock to be taken over."""
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
    return StoreError(f"{run_dir}: in use by {name}; wait for it or stop it")


@contextmanager
def heartbeat(*checks: Callable[[], bool]) -> Iterator[None]:
    """Call each check now and then; interrupt the process as ctrl-C once one says all is lost.

    Args:
        checks: Renew the lock, or look at it; False if another has taken it. Each is called in a
            thread of its own, since one that asks another machine may hang.
    """
    done = threading.Event()

    def go_on(check: Callable[[], bool]) -> None:
        while not done.wait(HEARTBEAT_SECONDS):
            if not check():
                if not done.is_set():
                    done.set()
                    os.kill(os.getpid(), _LOST)  # as ctrl-C, even out of a sleep
                return

    threads = [
        threading.Thread(target=go_on, args=(check,), name="heartbeat", daemon=True)
        for check in checks
    ]
    in_main = threading.current_thread() is threading.main_thread()  # no other may set handlers
    before = signal.signal(_LOST, _interrupt) if in_main else None
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join(HEARTBEAT_SECONDS)
        if in_main:
            signal.signal(_LOST, before)


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt("the lock of the run directory is lost")
