"""Shell: how often a shard was begun and not ended, and its failed items tried.

`attempts/00003.json` beside the store is written before a shard is computed and removed once it is
done. It outlives the process: a shard whose worker dies counts, wherever it runs next. While a
shard's files are written, `attempts/00003.lock` is held.
"""

import errno
import fcntl
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import StoreError
from pipeline.json_files import atomic_write, read_json
from pipeline.places import Place, delete, is_local
from pipeline.store import space_needed

MAX_ATTEMPTS = 3
"""How often a shard is tried as a whole before its items are isolated."""
CLAIM_SECONDS = 60.0
"""How long to wait for another process that writes the same shard."""
_NO_FLOCK = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


class ClaimedError(StoreError):
    """A shard that another process holds and does not give back, though others can be done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempts:
    """What was tried of a shard before."""

    shard: int = 0
    """Times the shard was begun and not ended."""
    items: dict[str, int] = field(default_factory=dict)
    """Per item that failed when the shard was last done: how often it was tried."""

    @property
    def exhausted(self) -> bool:
        """Whether the shard, or an item of it, had its attempts: then isolate at once."""
        return self.shard >= MAX_ATTEMPTS or max(self.items.values(), default=0) >= MAX_ATTEMPTS


def attempts_path(store: Place, shard: int) -> Place:
    """Give the place of a shard's attempts."""
    return store.with_suffix(".stage") / "attempts" / f"{shard:05d}.json"


def read_attempts(store: Place, shard: int) -> Attempts:
    """Read what was tried; none where there is no file, or none that is whole."""
    try:
        document = read_json(attempts_path(store, shard))
        items = {str(item): int(count) for item, count in document["items"].items()}
        return Attempts(shard=int(document["shard"]), items=items)
    except (StoreError, ValueError, TypeError, KeyError, AttributeError):
        return Attempts()


def write_attempts(store: Place, shard: int, attempts: Attempts) -> None:
    """Remember what was tried; lost by a power cut, which costs nothing but the count."""
    path = attempts_path(store, shard)
    text = json.dumps({"shard": attempts.shard, "items": attempts.items})
    with space_needed(path):
        if not is_local(path):
            atomic_write(path, text.encode())
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        # Two machines may be at the same shard, where one of them was given up too early.
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
        partial.write_text(text)
        partial.replace(path)


def forget_attempts(store: Place, shard: int) -> None:
    """Forget a shard's attempts, once it is done."""
    delete(attempts_path(store, shard))


@contextmanager
def claimed(store: Place, shard: int) -> Iterator[None]:
    """Hold a shard while its files are written, so that no two processes write them at once.

    A worker that the cluster gave up may wake when another has its shard. The kernel's flock ends
    with the process. An object store has none: there both write the same objects, each whole.

    Raises:
        ClaimedError: If another process holds it for `CLAIM_SECONDS`; names it.
    """
    path = attempts_path(store, shard).with_suffix(".lock")
    if not is_local(path):
        yield
        return
    with held(path, CLAIM_SECONDS):
        yield


@contextmanager
def held(path: Path, seconds: float) -> Iterator[None]:
    """Hold a file of this name, which one process can at a time; it is gone afterwards.

    Args:
        path: On a disk. What a process that died has left there is nobody's.
        seconds: How long to wait for another process.

    Raises:
        ClaimedError: If another process holds it all the while; names it.
    """
    with space_needed(path):
        descriptor = _taken(path, seconds)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: who waits for it then makes another
        os.close(descriptor)


def _taken(path: Path, seconds: float) -> int:
    """Open and lock a file that is still there when it is locked."""
    limit = time.monotonic() + seconds
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if _flocked(descriptor) and _is_at(path, descriptor):
                with suppress(OSError):  # a word for the message of others
                    os.write(descriptor, f"pid {os.getpid()} on {socket.gethostname()}".encode())
                return descriptor
            holder = os.read(descriptor, 1000).decode(errors="replace") or "another process"
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if time.monotonic() > limit:
            raise ClaimedError(
                f"{path}: still held by {holder} after {seconds:g} s; end that "
                f"process, and run the same command again"
            )
        time.sleep(0.02)


def _flocked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise  # else this file system knows none: the done record alone decides
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
