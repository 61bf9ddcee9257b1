"""Do the same to many items in several threads: hashing, and waiting for an object store."""

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from contextlib import closing
from queue import SimpleQueue
from typing import TypeVar

from pipeline.places import Place, is_local

T = TypeVar("T")
R = TypeVar("R")

_AHEAD = 4  # items per thread, begun or waiting, so that a slow one does not let the others idle
_OBJECT_STORE_THREADS = 8
_MAX_DISK_THREADS = 8


def default_threads(where: Place) -> int:
    """Give with how many threads the files of a place are read.

    On a disk as many as the cores that this process may use, since hashing needs a core, and not
    more than one disk serves; of an object store eight whatever the cores, since they wait.
    """
    if not is_local(where):
        return _OBJECT_STORE_THREADS
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # Linux alone tells what the process may use
        cores = len(os.sched_getaffinity(0))
    return min(cores, _MAX_DISK_THREADS)


def in_order(
    function: Callable[[T], R], items: Iterable[T], threads: int
) -> Generator[R, None, None]:
    """Give `function(item)` of every item, in the order of the items.

    Where this ends early (an error, ctrl-C, `close`), no waiting item is begun any more, and what
    is under way is not waited for: of a store that does not answer that could take minutes.

    Args:
        function: Runs in `threads` other threads; with one thread in this one.
        items: Taken in this thread, a few per thread ahead of what is given.
        threads: How many items are worked on at a time, at least 1; bounds the memory.

    Raises:
        BaseException: What `function` raises, when its item's turn has come.
    """
    if threads == 1:
        yield from map(function, items)
        return
    todo: SimpleQueue[tuple[Future[R], T] | None] = SimpleQueue()
    waiting: deque[Future[R]] = deque()
    started = 0
    try:
        for item in items:
            waiting.append(Future())
            todo.put((waiting[-1], item))
            if started < threads:
                started += 1
                # Those of a pool would be waited for at the end of the process.
                threading.Thread(target=_work, args=(function, todo), daemon=True).start()
            if len(waiting) == _AHEAD * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        for _ in range(started):
            todo.put(None)


def for_each(function: Callable[[T], object], items: Iterable[T], threads: int) -> None:
    """Call `function(item)` for every item as `in_order` does, for what it does."""
    with closing(in_order(function, items, threads)) as results:
        for _ in results:
            pass


def _work(function: Callable[[T], R], todo: "SimpleQueue[tuple[Future[R], T] | None]") -> None:
    while (task := todo.get()) is not None:
        future, item = task
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(function(item))
        except BaseException as error:
            future.set_exception(error)
