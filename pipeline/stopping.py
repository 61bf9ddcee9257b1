"""Shell: SIGTERM finishes the shards that are being made, and no new ones are begun."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True)
class _State:
    stages: int = 0
    requested: bool = False


_STATE = _State()


class StoppedEarly(KeyboardInterrupt):
    """The stage stopped before its end for a reason outside; the same command goes on."""


@contextmanager
def stage_running() -> Iterator[None]:
    """Let `request` wait for shards while the block runs; a request made within ends with it."""
    _STATE.stages += 1
    try:
        yield
    finally:
        _STATE.stages -= 1
        if not _STATE.stages:
            _STATE.requested = False


def request() -> bool:
    """Ask the running stage to stop after its shards.

    Returns:
        False if none is running, or it was asked before: then stop at once.
    """
    if not _STATE.stages or _STATE.requested:
        return False
    _STATE.requested = True
    return True


def requested() -> bool:
    """Tell whether the running stage was asked to stop."""
    return _STATE.requested
