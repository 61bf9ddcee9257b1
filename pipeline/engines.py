"""Shell: where the tasks of a stage run: in this process, on local processes, on a Dask cluster."""

import ctypes
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from pipeline.errors import SemiresError, StoreError

R = TypeVar("R")

MAX_ATTEMPTS = 3
"""How often a task is tried before the stage gives up."""


_WORKER_SETTINGS = {
    "distributed.worker.daemon": False,
    # Dask has glibc give freed memory back at once; networks allocate the same large blocks again
    # and again, and a third of a worker's time went into the kernel clearing fresh pages.
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 1 << 30,
    "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": 1 << 30,
}
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEEP_BYTES = 1 << 28
CONNECT_SECONDS = 30
"""How long a scheduler may take to answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """Where to run tasks; never part of a fingerprint, since results do not depend on it."""

    workers: int = 1
    """Local processes; 1 runs in this process."""
    cluster: str | None = None
    """Address of a running Dask scheduler, e.g. tcp://host:8786; None means this machine."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"expected at least 1 worker, found {self.workers}")


def run_tasks(
    engine: Engine, function: Callable[[int], R], tasks: Iterable[int], name: str
) -> Iterator[tuple[int, R]]:
    """Run `function` on every task and give (task, result) as they finish.

    In this process an error ends the run at once. On workers a task that raises, or whose worker
    dies, is tried `MAX_ATTEMPTS` times; a `SemiresError` is not tried again. On a cluster only a
    small window is submitted at a time, so that a dying worker takes few tasks along (all tasks of
    a lost worker count as suspicious to Dask).

    Args:
        engine: Where to run.
        function: Picklable; safe to run twice for the same task.
        tasks: Shard numbers.
        name: Prefix of the Dask keys.

    Raises:
        SemiresError: What a task raised, or that it failed `MAX_ATTEMPTS` times.
    """
    if engine.cluster is None and engine.workers == 1:
        yield from _run_inline(function, tasks)
        return
    with shared_workers() as workers:
        yield from _run_on(workers.client(engine), function, iter(tasks), name)


class _Workers:
    """Workers that are started when first asked for and stay until the end of the block."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._clients: dict[Engine, Any] = {}

    def client(self, engine: Engine) -> Any:
        if engine not in self._clients:
            self._clients[engine] = self._stack.enter_context(_client(engine))
        return self._clients[engine]


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


def _run_inline(function: Callable[[int], R], tasks: Iterable[int]) -> Iterator[tuple[int, R]]:
    keep_freed_memory()
    for task in tasks:
        yield task, function(task)


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


@contextmanager
def _client(engine: Engine) -> Iterator[Any]:
    import dask
    from distributed import Client, LocalCluster

    if engine.cluster is not None:
        try:
            client = Client(engine.cluster, timeout=CONNECT_SECONDS)
        except OSError as error:
            raise StoreError(f"--cluster {engine.cluster}: no Dask scheduler answers") from error
        with client:
            yield client
        return
    with (
        dask.config.set(_WORKER_SETTINGS),
        LocalCluster(
            n_workers=engine.workers,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",  # any free port: another job may run here
            memory_limit=None,
            silence_logs=50,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def _run_on(
    client: Any, function: Callable[[int], R], tasks: Iterator[int], name: str
) -> Iterator[tuple[int, R]]:
    from distributed import as_completed

    attempts: dict[int, int] = {}

    def submit(task: int) -> Any:
        attempts[task] = attempts.get(task, 0) + 1
        key = f"{name}-{task}-{attempts[task]}"
        future = client.submit(function, task, key=key, pure=False)
        shard_of[future.key] = task
        return future

    shard_of: dict[str, int] = {}
    window = 2 * max(1, len(client.scheduler_info()["workers"]))
    pending = as_completed([submit(task) for task in islice(tasks, window)])
    for future in pending:
        task = shard_of.pop(future.key)
        error = future.exception()
        if error is None:
            yield task, future.result()
            pending.update([submit(following) for following in islice(tasks, 1)])
        elif isinstance(error, SemiresError):
            raise error
        elif attempts[task] >= MAX_ATTEMPTS:
            raise StoreError(
                f"{name}: task {task} failed {MAX_ATTEMPTS} times, last with "
                f"{type(error).__name__}: {error}"
            ) from error
        else:
            pending.add(submit(task))
        future.release()
