"""Shell: where the tasks of a stage run: here, on local processes, on Dask clusters, in parts."""

import ctypes
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

from pipeline.budget import Budget
from pipeline.dask_clusters import address_client, local_client, slurm_client
from pipeline.dask_tasks import MAX_SUBMISSIONS, run_on
from pipeline.errors import SemiresError, StoreError
from pipeline.locks import Part
from pipeline.places import redacted

R = TypeVar("R")
Stop = Callable[[], bool]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEEP_BYTES = 1 << 28


MAX_SHARD_SECONDS = 1e8
"""Three years: what clocks and timers can count."""
REMOTE = ("address", "slurm")
"""Engines whose workers may be of another kind than the machine of the driver."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """How to run tasks; never part of a fingerprint, since results do not depend on it."""

    name: str | None = None
    """An entry of `ENGINES`; None goes by the other fields: a part is `static`, an address
    `address`, several workers `processes`, and one worker `inline`."""
    workers: int = 1
    """Local processes, or SLURM jobs."""
    cluster: str | None = None
    """Address of a running Dask scheduler, e.g. tcp://host:8786; None means this machine."""
    part: Part | None = None
    """Which shards are this process's, where several share a stage without a scheduler."""
    lifetime: str | None = None
    """How long a SLURM worker takes tasks, e.g. 55m; None: nine tenths of its walltime."""
    max_failures: Budget | None = None
    """Failed items beyond which a stage stops; None: any number."""
    max_shard_seconds: float | None = None
    """How long a shard may be computed before its process is ended; None: any time."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"expected at least 1 worker, found {self.workers}")
        if self.name not in (None, *ENGINES):
            raise ValueError(f"unknown engine {self.name!r}; known are {', '.join(ENGINES)}")
        if (self.kind == "address") != (self.cluster is not None):
            raise ValueError("--cluster ADDRESS goes with --engine address, and only with it")
        if (self.kind == "static") != (self.part is not None):
            raise ValueError(
                "--shard-index and --num-shards go with --engine static, and only with it"
            )
        if self.part is not None and not 0 <= self.part.index < self.part.count:
            raise ValueError(
                f"expected --shard-index from 0 to {self.part.count - 1}, found {self.part.index}"
            )
        seconds = self.max_shard_seconds
        if seconds is not None and not 0 < seconds <= MAX_SHARD_SECONDS:  # nor nan
            raise ValueError(
                f"expected --max-shard-seconds above 0 and at most {MAX_SHARD_SECONDS:g}, found "
                f"{seconds}"
            )
        if self.lifetime is not None and self.kind != "slurm":
            raise ValueError("--lifetime goes with --engine slurm, and only with it")
        if self.workers > 1 and self.kind not in ("processes", "slurm"):
            raise ValueError(f"--workers {self.workers} means nothing to --engine {self.kind}")

    @property
    def kind(self) -> str:
        """The entry of `ENGINES` that runs the tasks."""
        if self.name is not None:
            return self.name
        if self.part is not None:
            return "static"
        if self.cluster is not None:
            return "address"
        return "inline" if self.workers == 1 else "processes"

    def takes(self, shard: int) -> bool:
        """Tell whether a shard is this engine's to do."""
        return self.part is None or shard % self.part.count == self.part.index


class Runner(Protocol):
    """Runs a function on every task; gives (task, result) as they finish."""

    def __call__(
        self,
        engine: Engine,
        function: Callable[[int], R],
        tasks: Iterable[int],
        name: str,
        stop: Stop,
        /,
    ) -> Iterator[tuple[int, R]]:
        """Run tasks until there are no more, or `stop` says so."""
        ...


def run_tasks(
    engine: Engine,
    function: Callable[[int], R],
    tasks: Iterable[int],
    name: str,
    stop: Stop = lambda: False,
) -> Iterator[tuple[int, R]]:
    """Run `function` on every task and give (task, result) as they finish.

    A task that raises, or whose worker dies, is tried again a few times; a `SemiresError` is not.
    On a cluster only a small window is submitted at a time, so that a dying worker takes few tasks
    along (all tasks of a lost worker count as suspicious to Dask).

    Args:
        engine: Where to run.
        function: Picklable; safe to run twice for the same task.
        tasks: Shard numbers.
        name: Prefix of the Dask keys.
        stop: Asked before each task is begun; then those that run are ended and no more begun.

    Raises:
        SemiresError: What a task raised, or that it failed too often.
        StoppedEarly: If the scheduler is gone.
    """
    yield from ENGINES[engine.kind](engine, function, tasks, name, stop)


class _Workers:
    """Workers that are started when first asked for and stay until the end of the block."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._clients: dict[tuple[Any, ...], Any] = {}

    def client(self, engine: Engine) -> Any:
        key = (engine.kind, engine.workers, engine.cluster, engine.lifetime)
        if key not in self._clients:
            self._clients[key] = self._stack.enter_context(_client(engine))
        return self._clients[key]


_SHARED: ContextVar[_Workers | None] = ContextVar("shared_workers", default=None)


@contextmanager
def shared_workers() -> Iterator[_Workers]:
    """Let all stages within the block use the same workers: starting them takes seconds."""
    outer = _SHARED.get()
    if outer is not None:
        yield outer
        return
    with ExitStack() as stack:
        workers = _Workers(stack)
        token = _SHARED.set(workers)
        try:
            yield workers
        finally:
            _SHARED.reset(token)


def _run_here(
    _engine: Engine, function: Callable[[int], R], tasks: Iterable[int], name: str, stop: Stop
) -> Iterator[tuple[int, R]]:
    keep_freed_memory()
    for task in tasks:
        if stop():
            return
        yield from _insisting(function, task, name, stop)


def _insisting(
    function: Callable[[int], R], task: int, name: str, stop: Stop
) -> Iterator[tuple[int, R]]:
    """Run one task, again as often as on workers: the fourth time, its items are isolated."""
    for left in reversed(range(MAX_SUBMISSIONS)):
        try:
            result = function(task)
        except SemiresError:
            raise
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            if not left:
                raise StoreError(
                    f"{name}: task {task} failed {MAX_SUBMISSIONS} times, last with {reason}"
                ) from error
            tqdm.write(
                f"{name}: shard {task} is tried again after {redacted(reason)} "
                f"({Path(place.filename).name}:{place.lineno})",
                sys.stderr,
            )
            if stop():
                return
        else:
            yield task, result
            return


def _run_on_workers(
    engine: Engine, function: Callable[[int], R], tasks: Iterable[int], name: str, stop: Stop
) -> Iterator[tuple[int, R]]:
    with shared_workers() as workers:
        yield from run_on(workers.client(engine), function, iter(tasks), name, stop)


ENGINES: dict[str, Runner] = {
    "inline": _run_here,
    "processes": _run_on_workers,
    "address": _run_on_workers,
    "slurm": _run_on_workers,
    "static": _run_here,
}
"""Where tasks can run. `static` runs here what `Engine.takes`: others do the rest."""


@contextmanager
def _client(engine: Engine) -> Iterator[Any]:
    if engine.cluster is not None:
        with address_client(engine.cluster) as client:
            yield client
    elif engine.kind == "slurm":
        with slurm_client(engine.workers, engine.lifetime) as client:
            yield client
    else:
        with local_client(engine.workers) as client:
            yield client


def keep_freed_memory() -> None:
    """Have glibc keep freed blocks for the next array of that size, as the workers' settings do.

    Arrays of a megabyte come and go for every label; giving each back made bringing logits to
    image size three times slower. Does nothing where the C library is another.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    for parameter in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
        mallopt(parameter, _KEEP_BYTES)
