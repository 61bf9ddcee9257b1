"""Shell: who may write to a run directory: one driver, or the parts of one static run.

`.lock` holds one line of JSON: host, pid, since when, by which command; its time of change is the
heartbeat. On one machine the kernel's flock decides, which ends with the process however that
ends; a driver of another machine counts as gone when its heartbeat stops. The parts of a static
run share `.lock` and hold one `.lock-i-of-n` each.
"""

import errno
import fcntl
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import NoReturn

from pipeline.errors import StoreError

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 120.0
"""How old the heartbeat of another machine's driver must be for its lock to be taken over."""
_SETTLE_SECONDS = 0.5
_LOST = signal.SIGUSR2  # not SIGINT, which a shell's background jobs ignore
_NO_FLOCK = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


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


@contextmanager
def run_lock(run_dir: Path, part: Part | None = None) -> Iterator[None]:
    """Hold a run directory, so that two drivers never write the same shards.

    The folder is made if missing.

    Args:
        run_dir: The run directory.
        part: Hold it together with the other parts of the same count; None holds it alone.

    Raises:
        StoreError: If another process holds it; names host and pid.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with _taken(run_dir / ".lock", run_dir, shared=part is not None):
        if part is None:
            for place in _parts(run_dir).values():
                _refuse_if_held(place, run_dir)
                place.unlink(missing_ok=True)
            yield
            return
        with _taken(run_dir / f".lock-{part}", run_dir, shared=False):
            for other, place in _parts(run_dir).items():
                if other.count != part.count:
                    _refuse_if_held(place, run_dir)
            yield


def holders(run_dir: Path) -> list[Holder]:
    """Name the processes that hold a run directory now."""
    places = [run_dir / ".lock", *_parts(run_dir).values()]
    found = [_held_by(place) for place in places if place.exists()]
    return [holder for holder in found if holder is not None]


def _parts(run_dir: Path) -> dict[Part, Path]:
    matches = {p: re.fullmatch(r"\.lock-(\d+)-of-(\d+)", p.name) for p in run_dir.glob(".lock-*")}
    return {Part(int(m[1]), int(m[2])): place for place, m in sorted(matches.items()) if m}


@contextmanager
def _taken(path: Path, run_dir: Path, *, shared: bool) -> Iterator[None]:
    """Hold one lock file; a shared one is not written to."""
    with path.open("a+", encoding="utf-8") as handle:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        flocked = _flock(handle.fileno(), kind)
        for _ in range(5):  # someone who only looks holds it for an instant
            if flocked is not False:
                break
            time.sleep(0.1)
            flocked = _flock(handle.fileno(), kind)
        holder = _read(path)
        if flocked is False or (holder is not None and _alive(holder, path, flocked is True)):
            raise _in_use(run_dir, holder)
        if shared:
            yield
            return
        mine = _myself()
        _write(path, mine)
        if holder is not None and holder.boot != mine.boot:
            # Another machine may be taking the same lock over, where flock does not reach.
            time.sleep(_SETTLE_SECONDS)
            found = _read(path)
            if found is None or found.token != mine.token:
                raise _in_use(run_dir, found)
        with _heartbeat(path, mine):
            yield
        found = _read(path)
        if found is not None and found.token == mine.token:
            handle.truncate(0)


def _flock(descriptor: int, kind: int) -> bool | None:
    """Ask the kernel for the lock; None if this file system has no such locks."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_FLOCK:
            return None
        return False
    return True


def _alive(holder: Holder, path: Path, flocked: bool) -> bool:
    """Tell whether the process that a lock file names still runs."""
    if holder.boot == _boot():
        return not flocked and _runs(holder.pid)
    return _age(path) < STALE_SECONDS


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _age(path: Path) -> float:
    """Give the seconds since the last heartbeat, by the clock of the file system."""
    probe = path.with_name(f"{path.name}.{uuid.uuid4().hex}.now")
    probe.touch()
    try:
        return probe.stat().st_mtime - path.stat().st_mtime
    finally:
        probe.unlink()


def _held_by(path: Path) -> Holder | None:
    with path.open("a+", encoding="utf-8") as handle:
        flocked = _flock(handle.fileno(), fcntl.LOCK_SH)
        holder = _read(path)
        if holder is None:
            return None
        return holder if flocked is False or _alive(holder, path, flocked is True) else None


def _refuse_if_held(place: Path, run_dir: Path) -> None:
    holder = _held_by(place)
    if holder is not None:
        raise _in_use(run_dir, holder)


def _in_use(run_dir: Path, holder: Holder | None) -> StoreError:
    name = "another process" if holder is None else str(holder)
    return StoreError(f"{run_dir}: in use by {name}; wait for it or stop it")


@contextmanager
def _heartbeat(path: Path, mine: Holder) -> Iterator[None]:
    """Touch the lock file now and then; stop the process if another has taken the lock."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT_SECONDS):
            found = _read(path)
            if found is None or found.token != mine.token:
                os.kill(os.getpid(), _LOST)  # as ctrl-C, even out of a sleep
                return
            os.utime(path)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    in_main = threading.current_thread() is threading.main_thread()  # no other may set handlers
    before = signal.signal(_LOST, _interrupt) if in_main else None
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        if in_main:
            signal.signal(_LOST, before)


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _myself() -> Holder:
    return Holder(
        host=socket.gethostname(),
        pid=os.getpid(),
        boot=_boot(),
        token=uuid.uuid4().hex,
        since=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        command=Path(sys.argv[0]).name or "python",
    )


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()


def _write(path: Path, holder: Holder) -> None:
    with path.open("r+", encoding="utf-8") as handle:
        handle.truncate(0)
        handle.write(json.dumps(asdict(holder)) + "\n")
        handle.flush()
        os.fsync(handle.fileno())


def _read(path: Path) -> Holder | None:
    """Read who a lock file names; None if it is empty, damaged or of an older version."""
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
