"""Shell: the lock of a run directory in an object store, which has neither rename nor links.

`.lock/00000007.json` names the holder: the highest number counts. To take the lock is to create
the next number, which only one process can; a number is never used again while a higher one may
come, so that a slow process cannot take a lock that was taken since. The holder writes its object
anew as a heartbeat, and marks it as released at the end. Parts of a static run hold
`.lock-i-of-n/` instead.
"""

import json
import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from upath import UPath

from pipeline.errors import StoreError
from pipeline.lock_holders import (
    HEARTBEAT_SECONDS,
    STALE_SECONDS,
    Holder,
    Part,
    in_use,
    runs,
    this_boot,
    this_process,
)
from pipeline.lock_holders import heartbeat as beating
from pipeline.places import create_once, delete, modified_at, names_in, reaching, read_bytes

_TRIES = 5
_ENTRY = re.compile(r"(\d{8})\.json")
_PART = re.compile(r"\.lock-(\d+)-of-(\d+)")


@contextmanager
def object_lock(run_dir: UPath, part: Part | None = None) -> Iterator[None]:
    """Hold a run directory of an object store, alone or as one part of a static run.

    Whoever takes it looks for others only after its own entry is there: of two that come at the
    same time at least one sees the other.

    Raises:
        StoreError: If another process holds it, or the object store cannot be used.
    """
    with reaching(run_dir):
        entry = _take(run_dir / (".lock" if part is None else f".lock-{part}"), run_dir)
    try:
        with reaching(run_dir):
            if part is not None:
                _refuse_if_held(run_dir / ".lock", run_dir)
            for other, place in _parts(run_dir).items():
                if part is None or other.count != part.count:
                    _refuse_if_held(place, run_dir)
        with beating(entry.beat, entry.is_fresh):
            yield
    finally:
        entry.release()


def object_holders(run_dir: UPath) -> list[Holder]:
    """Name the processes that hold a run directory of an object store now."""
    with reaching(run_dir):
        places = [run_dir / ".lock", *_parts(run_dir).values()]
        found = [_held_by(place) for place in places]
    return [holder for holder in found if holder is not None]


@dataclass(slots=True)
class _Entry:
    """One process's entry in a lock."""

    folder: UPath
    number: int
    holder: Holder
    seen: float
    """When the object store last took our heartbeat, by this machine's monotonic clock."""

    def write(self, *, released: bool = False) -> None:
        document = {**asdict(self.holder), "released": released}
        _at(self.folder, self.number).write_bytes(_text(document))

    def is_ours(self) -> bool:
        """Tell whether ours is the newest; some stores let two processes create the same entry."""
        if max(_numbers(self.folder), default=0) != self.number:
            return False
        found = _read(_at(self.folder, self.number))
        return found is None or found[0].token == self.holder.token

    def beat(self) -> bool:
        """Renew the entry; False if another has the lock. What cannot be asked is tried again."""
        asked = time.monotonic()
        with suppress(Exception):  # `is_fresh` ends it
            if not self.is_ours():
                return False
            self.write()
            self.seen = asked
        return True

    def is_fresh(self) -> bool:
        """Tell whether no other can have taken the lock for want of heartbeats."""
        return time.monotonic() - self.seen < STALE_SECONDS - 2 * HEARTBEAT_SECONDS

    def release(self) -> None:
        with suppress(Exception):  # it is stale in two minutes anyway
            if self.is_ours():
                self.write(released=True)


def _take(folder: UPath, run_dir: UPath) -> _Entry:
    mine = replace(this_process(), boot=_this_place())
    for _ in range(_TRIES):
        newest = max(_numbers(folder), default=0)
        holder = _held_by(folder)
        if holder is not None:
            raise in_use(run_dir, holder)
        entry = _Entry(folder, newest + 1, mine, time.monotonic())
        content = _text({**asdict(mine), "released": False})
        try:
            # Whose it is is read below: a request sent again may find what it created before.
            made = [create_once(_at(folder, entry.number), content) for _ in range(2)]
            if all(made) and entry.is_ours():
                raise StoreError(
                    f"{run_dir}: expected an object store whose library creates an object only "
                    f"where none is (s3fs and gcsfs do), found one that replaces it: two drivers "
                    f"could not be told apart; use another run directory"
                )
            if entry.is_ours() and _read(_at(folder, entry.number)) == (mine, False):
                for number in _numbers(folder):
                    if number < entry.number:
                        delete(_at(folder, number))
                return entry
        except BaseException:
            entry.release()  # it may be ours
            raise
    raise in_use(run_dir, None)


def _held_by(folder: UPath) -> Holder | None:
    """Give the process that holds a lock; None if it is free or its holder is gone."""
    newest = max(_numbers(folder), default=0)
    found = _read(_at(folder, newest)) if newest else None
    if found is None:
        return None
    holder, released = found
    return holder if not released and _alive(holder, _at(folder, newest)) else None


def _refuse_if_held(folder: UPath, run_dir: UPath) -> None:
    holder = _held_by(folder)
    if holder is not None:
        raise in_use(run_dir, holder)


def _alive(holder: Holder, place: UPath) -> bool:
    if holder.boot == _this_place() and not runs(holder.pid):
        return False  # else it may be the holder, or another process of that number
    probe = place.with_name(f"now-{uuid.uuid4().hex}")
    try:
        probe.write_bytes(b"")  # tells the time by the clock of the object store
    except PermissionError:  # who may only look, cannot take it over either
        return True
    try:
        return modified_at(probe) - modified_at(place) < STALE_SECONDS
    except FileNotFoundError:  # deleted meanwhile: a higher number was taken
        return True
    finally:
        delete(probe)


def _this_place() -> str:
    """Name this start of this machine, and the container, if any: where a pid means the same."""
    try:
        return f"{this_boot()} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115
    except OSError:
        return this_boot()


def _parts(run_dir: UPath) -> dict[Part, UPath]:
    matches = {name: _PART.fullmatch(name) for name in sorted(names_in(run_dir))}
    return {Part(int(m[1]), int(m[2])): run_dir / name for name, m in matches.items() if m}


def _numbers(folder: UPath) -> list[int]:
    return [int(match[1]) for name in names_in(folder) if (match := _ENTRY.fullmatch(name))]


def _at(folder: UPath, number: int) -> UPath:
    return folder / f"{number:08d}.json"


def _text(document: dict[str, Any]) -> bytes:
    return (json.dumps(document) + "\n").encode()


def _read(place: UPath) -> tuple[Holder, bool] | None:
    """Read who an entry names, and whether it was released; None if it is not there or damaged."""
    try:
        document = json.loads(read_bytes(place))
        released = document.pop("released")
        return Holder(**document), bool(released)
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return None
