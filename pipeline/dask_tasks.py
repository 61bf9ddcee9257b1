"""Shell: run tasks on a Dask cluster, a few at a time, whatever happens to its workers."""

import functools
import socket
import sys
import threading
import time
from asyncio import CancelledError
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

from tqdm import tqdm

from pipeline.attempts import MAX_ATTEMPTS
from pipeline.credentials import redacted
from pipeline.errors import SemiresError, StoreError
from pipeline.stopping import StoppedEarly

R = TypeVar("R")

MAX_SUBMISSIONS = MAX_ATTEMPTS + 3
"""How often a task is handed to the cluster. More than its attempts: the last isolates its items,
and a task also comes back that merely waited on a worker that died."""
RESULT_SECONDS = 5.0
"""How long a receipt may take. It lies on its worker: if that dies first, Dask waits for ever, and
the task is handed out again, to find that it is done."""
NOTICE_SECONDS = 5.0
_WINDOW_PER_WORKER = 2
_COUNT_WORKERS_SECONDS = 5.0
_ASK_SECONDS = 1.0
"""How long nobody asks whether to stop."""
ANSWER_SECONDS = 10.0
"""How long workers may take to say what they are at."""
SILENT_SECONDS = 60.0
"""How long a worker may give no sign of life until nobody waits for its tasks after a stop."""
_LEFT_SECONDS = 3.0
_FIRST_LOOK_SECONDS, _LOOK_SECONDS = 10.0, 60.0
"""When, and how often, a run that gets nowhere says that there are no workers."""


def run_on(
    client: Any,
    function: Callable[[int], R],
    tasks: Iterator[int],
    name: str,
    stop: Callable[[], bool],
) -> Iterator[tuple[int, R]]:
    """Run `function` on every task and give (task, result) as they finish.

    Args:
        client: Of the cluster.
        function: Picklable; safe to run twice for the same task.
        tasks: Task numbers; taken only as workers come free.
        name: Prefix of the Dask keys.
        stop: Asked every second; if true, tasks that are running are awaited as long as their
            workers give signs of life, others dropped.

    Raises:
        SemiresError: What a task raised, or that it failed too often.
        StoppedEarly: If the scheduler is gone.
    """
    window = _Window(client=client, function=function, name=name)
    try:
        yield from _finished(window, tasks, stop)
    except (OSError, CancelledError) as error:
        if window.is_lost(within=NOTICE_SECONDS):
            raise _gone(name) from error
        raise
    finally:
        window.drop()


def _finished(
    window: "_Window", tasks: Iterator[int], stop: Callable[[], bool]
) -> Iterator[tuple[int, Any]]:
    window.fill(tasks)
    for future in _as_completed(window, stop):
        task = window.task_of.pop(future.key)
        if future.cancelled():
            if not window.draining:
                window.again_after_cancel(task)
            continue
        error, found = _outcome(future)
        if error is None:
            window.submissions.pop(task, None)  # else a million would be kept
            yield task, found
        elif not window.draining:
            window.again_after(error, task)
        future.release()
        if not window.draining and stop():
            window.drain()
        if not window.draining:
            window.fill(tasks)


def _as_completed(window: "_Window", stop: Callable[[], bool]) -> Iterator[Any]:
    """Give futures as they finish, and look now and then whether to go on without them."""
    while not window.pending.is_empty():
        if window.has_finished():
            yield next(window.pending)
        elif window.draining and window.is_forsaken():
            return
        elif not window.draining and stop():
            window.drain()


def _outcome(future: Any) -> tuple[BaseException | None, Any]:
    """Give what a finished task raised, or its result; a result that is lost is an error."""
    try:
        error = future.exception(timeout=RESULT_SECONDS)
        return error, None if error is not None else future.result(timeout=RESULT_SECONDS)
    except TimeoutError as lost:
        return lost, None


@dataclass(slots=True, kw_only=True)
class _Window:
    """The few tasks that the cluster knows of."""

    client: Any
    function: Callable[[int], Any]
    name: str
    pending: Any = None
    task_of: dict[str, int] = field(default_factory=dict)
    futures: dict[str, Any] = field(default_factory=dict)
    submissions: dict[int, int] = field(default_factory=dict)
    draining: bool = False
    _size: int = 0
    _counted: float = 0.0
    _look: float = 0.0
    _heard: float = 0.0
    _seen: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from distributed import as_completed

        self.pending = as_completed()
        self._look = time.monotonic() + _FIRST_LOOK_SECONDS

    def has_finished(self) -> bool:
        """Wait a moment for a task to finish; tell whether one has."""
        limit = time.monotonic() + _ASK_SECONDS
        condition = self.pending.thread_condition
        while not (ready := self.pending.has_ready()) and time.monotonic() < limit:
            with condition:
                condition.wait(0.1)
        now = time.monotonic()
        if ready:
            self._look = now + _LOOK_SECONDS
        elif now >= self._look and not self.draining:
            self._look = now + _LOOK_SECONDS
            if not self._workers():
                tqdm.write(
                    f"{self.name}: the Dask scheduler has no workers; waiting for some", sys.stderr
                )
        return bool(ready)

    def fill(self, tasks: Iterator[int]) -> None:
        """Submit as many tasks as there is room for."""
        for task in islice(tasks, max(0, self._room() - len(self.task_of))):
            self._submit(task)

    def _room(self) -> int:
        """Twice the number of workers, which may change; asked for now and then."""
        if time.monotonic() - self._counted > _COUNT_WORKERS_SECONDS:
            self._size = _WINDOW_PER_WORKER * max(1, len(self._workers()))
            self._counted = time.monotonic()
        return self._size

    def _workers(self) -> dict[str, Any]:
        found: dict[str, Any] = self.client.scheduler_info(n_workers=-1)["workers"]
        return found

    def _submit(self, task: int) -> None:
        number = self.submissions[task] = self.submissions.get(task, 0) + 1
        key = f"{self.name}-{task}-{number}-{id(self):x}"
        function = functools.partial(_there, self.function, socket.gethostname())
        future = self.client.submit(function, task, key=key, pure=False)
        self.task_of[future.key] = task
        self.futures[future.key] = future
        self.pending.add(future)
        for gone in self.futures.keys() - self.task_of.keys():
            del self.futures[gone]

    def again_after(self, error: BaseException, task: int) -> None:
        """Submit a failed task again, or give up."""
        if isinstance(error, SemiresError):
            raise error
        if self.submissions[task] >= MAX_SUBMISSIONS:
            raise StoreError(
                f"{self.name}: task {task} failed {MAX_SUBMISSIONS} times, last with "
                f"{type(error).__name__}: {error}"
            ) from error
        self._submit(task)

    def again_after_cancel(self, task: int) -> None:
        """Submit a task again that the cluster forgot, unless the scheduler is gone."""
        if self.is_lost():
            raise _gone(self.name)
        self.again_after(RuntimeError("the cluster forgot the task"), task)

    def is_lost(self, within: float = 0.0) -> bool:
        """Tell whether the connection to the scheduler has ended.

        Args:
            within: Seconds to wait for that: a receipt's own connection ends with it, and may be
                noticed first.
        """
        limit = time.monotonic() + within
        while True:
            comm = self.client.scheduler_comm
            if self.client.status != "running" or comm is None or comm.closed():
                return True
            if time.monotonic() >= limit:
                return False
            time.sleep(0.05)

    def drain(self) -> None:
        """Drop what has not begun, and let the rest be awaited."""
        self.draining = True
        self._heard = time.monotonic()
        begun = self._begun()
        waiting = [self.futures[key] for key in self.task_of if key not in begun]
        self.client.cancel([future for future in waiting if not future.done()])

    def _begun(self) -> set[str]:
        """Give the keys that workers execute; or, if one does not answer, that they were given."""
        answers: list[dict[str, Any]] = []

        def ask() -> None:
            with suppress(Exception, CancelledError):
                answers.append(self.client.run(_executing, on_error="ignore"))

        asking = threading.Thread(target=ask, name="what-is-begun", daemon=True)
        asking.start()
        asking.join(ANSWER_SECONDS)
        running = answers[0] if answers else self.client.processing()
        return {key for keys in running.values() for key in keys}

    def is_forsaken(self) -> bool:
        """Tell whether what is left lies on no worker, or only on such as give no sign of life."""
        given = self.client.processing()
        ours = [worker for worker, keys in given.items() if self.task_of.keys() & set(keys)]
        workers = self._workers()
        seen = {name: workers[name]["last_seen"] for name in ours if name in workers}
        now = time.monotonic()
        if any(self._seen.get(name) != when for name, when in seen.items()):
            self._heard = now
        self._seen = seen
        if now - self._heard < (SILENT_SECONDS if seen else _LEFT_SECONDS):
            return False
        tqdm.write(
            f"{self.name}: {len(self.task_of)} shards are left unfinished: no worker is at them "
            f"that gives a sign of life",
            sys.stderr,
        )
        return True

    def drop(self) -> None:
        """Have the cluster forget what is left, after an error."""
        left = [self.futures[key] for key in self.task_of]
        if left and not self.is_lost():
            self.client.cancel(left)


def _gone(name: str) -> StoppedEarly:
    return StoppedEarly(f"{name}: the Dask scheduler is gone; start one")


def _there(function: Callable[[int], R], driver: str, task: int) -> R:
    """Run one task on a worker; what it cannot do there names the machine, and no credential."""
    try:
        return function(task)
    except SemiresError as error:
        host = socket.gethostname()
        if host == driver:
            raise
        raise StoreError(
            f"{error} (so on the worker {host}, which has to see the files of {driver} at the same "
            f"paths)"
        ) from error
    except Exception as error:  # Dask logs it there, and hands it to whoever asks
        text = f"{type(error).__name__}: {error}"
        if redacted(text) == text:
            raise
        raise RuntimeError(redacted(text)) from None


def _executing(dask_worker: Any) -> list[str]:
    return [state.key for state in dask_worker.state.executing]
