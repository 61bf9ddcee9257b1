"""Shell: who may write to a run directory: one driver, or the parts of one static run.

`.lock` holds one line of JSON: host, pid, since when, by which command; its time of change is the
heartbeat. On one machine the kernel's flock decides, which ends with the process however that
ends; a driver of another machine counts as gone when its heartbeat stops, and whoever comes waits
to see that. The parts of a static run share `.lock` and hold one `.lock-i-of-n` each. In an object
store `object_locks` decides.
"""

import errno
import fcntl
import json
import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.errors import StoreError
from pipeline.lock_holders import (
    HEARTBEAT_SECONDS,
    STALE_SECONDS,
    Holder,
    fell_silent,
    heartbeat,
    in_use,
    runs,
    this_boot,
    this_process,
)
from pipeline.lock_holders import Part as Part
from pipeline.object_locks import object_holders, object_lock
from pipeline.places import Place, is_local

_SETTLE_SECONDS = 0.5
_NO_FLOCK = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


@contextmanager
def run_lock(run_dir: Place, part: Part | None = None) -> Iterator[None]:
    """Hold a run directory, so that two drivers never write the same shards.

    The folder is made if missing.

    Args:
        run_dir: The run directory.
        part: Hold it together with the other parts of the same count; None holds it alone.

    Raises:
        StoreError: If another process holds it; names host and pid.
    """
    if not is_local(run_dir):
        with object_lock(run_dir, part):
            yield
        return
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


def holders(run_dir: Place) -> list[Holder]:
    """Name the processes that hold a run directory now."""
    if not is_local(run_dir):
        return object_holders(run_dir)
    places = [run_dir / ".lock", *_parts(run_dir).values()]
    found = [_held_by(place) for place in places if place.exists()]
    return [holder for holder in found if holder is not None]


def _parts(run_dir: Path) -> dict[Part, Path]:
    matches = {p: re.fullmatch(r"\.lock-(\d+)-of-(\d+)", p.name) for p in run_dir.glob(".lock-*")}
    return {Part(int(m[1]), int(m[2])): place for place, m in sorted(matches.items()) if m}


@contextmanager
def _taken(path: Path, run_dir: Path, *, shared: bool) -> Iterator[None]:
    """Hold one lock file; a shared one is not written to."""
    if path.is_symlink():  # in a run of somebody else's it may lead to any file of ours
        raise StoreError(f"{path}: expected a lock file, found a link; delete it")
    with path.open("a+", encoding="utf-8") as handle:
        holder = _take(handle.fileno(), path, run_dir, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        if shared:
            yield
            return
        mine = this_process()
        pulse = _Pulse(path, mine.token, time.monotonic())
        try:
            _write(path, mine)
            if holder is not None and holder.boot != mine.boot:
                # Another machine may be taking the same lock over, where flock does not reach.
                time.sleep(_SETTLE_SECONDS)
                found = _read(path)
                if found is None or found.token != mine.token:
                    raise in_use(run_dir, found)
            with heartbeat(pulse.beat, pulse.is_fresh):
                yield
        finally:  # other machines would wait for a heartbeat, however this one ends
            with suppress(OSError):  # here it is free with the end of this process anyway
                if pulse.is_fresh() and pulse.is_ours():  # else another may be taking it now
                    handle.truncate(0)


def _take(descriptor: int, path: Path, run_dir: Path, kind: int) -> Holder | None:
    """Get the kernel's lock, where there is one, and wait for what another machine may hold.

    Returns:
        Who held it before and is gone, if anybody.

    Raises:
        StoreError: If somebody holds it.
    """
    flocked = _flock(descriptor, kind)
    for _ in range(5):  # someone who only looks holds it for an instant
        if flocked is not False:
            break
        time.sleep(0.1)
        flocked = _flock(descriptor, kind)
    holder = _read(path)
    if flocked is False or (holder is not None and _alive(holder, path, flocked is True)):
        if holder is None or not _fell_silent(holder, path, run_dir):
            raise in_use(run_dir, _read(path) or holder)
        if flocked is False and _flock(descriptor, kind) is False:
            raise in_use(run_dir, _read(path) or holder)
    return holder


@dataclass(slots=True)
class _Pulse:
    """The heartbeat of one lock file."""

    path: Path
    token: str
    seen: float
    """When the file system last took our heartbeat, by this machine's monotonic clock."""

    def is_ours(self) -> bool:
        found = _read(self.path)
        return found is not None and found.token == self.token

    def beat(self) -> bool:
        """Renew the lock; False if another has it. A disk that fails now is tried again."""
        asked = time.monotonic()
        with suppress(OSError):  # `is_fresh` ends it
            if not self.is_ours():
                return False
            os.utime(self.path)
            self.seen = asked
        return True

    def is_fresh(self) -> bool:
        """Tell whether no other can have taken the lock for want of heartbeats."""
        return time.monotonic() - self.seen < STALE_SECONDS - 2 * HEARTBEAT_SECONDS


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
    if holder.boot == this_boot():
        return not flocked and runs(holder.pid)
    return _age(path) < STALE_SECONDS


def _age(path: Path) -> float:
    """Give the seconds since the last heartbeat, by the clock of the file system."""
    probe = path.with_name(f"{path.name}.{uuid.uuid4().hex}.now")
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
    except OSError:  # who may only look, or has no space, goes by the clock of this machine
        return time.time() - path.stat().st_mtime
    finally:
        with suppress(OSError):
            probe.unlink()


def _fell_silent(holder: Holder, path: Path, run_dir: Path) -> bool:
    """Tell whether another machine's driver gives no sign of life; waits to find out."""

    def sign() -> object | None:
        found = _read(path)  # first: to open a file asks a network file system anew
        return None if found is None else (found.token, path.stat().st_mtime_ns)

    return holder.boot != this_boot() and fell_silent(run_dir, holder, _age(path), sign)


def _held_by(path: Path) -> Holder | None:
    try:
        with path.open(encoding="utf-8") as handle:  # who looks may have no right to write
            flocked = _flock(handle.fileno(), fcntl.LOCK_SH)
            holder = _read(path)
            if holder is None:
                return None
            return holder if flocked is False or _alive(holder, path, flocked is True) else None
    except FileNotFoundError:
        return None


def _refuse_if_held(place: Path, run_dir: Path) -> None:
    holder = _held_by(place)
    if holder is not None and not _fell_silent(holder, place, run_dir):
        raise in_use(run_dir, holder)


def _write(path: Path, holder: Holder) -> None:
    with path.open("r+", encoding="utf-8") as handle:
        handle.truncate(0)
        handle.write(json.dumps(asdict(holder)) + "\n")
        handle.flush()
        os.fsync(handle.fileno())


def _read(path: Path) -> Holder | None:
    """Read who a lock file names; None if it is gone, empty, damaged or of an older version."""
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None
