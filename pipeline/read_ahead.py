"""Read the next items in a thread while the present one is worked on."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def read_ahead(read: Callable[[T], R], items: Iterable[T], depth: int) -> Iterator[R]:
    """Give `read(item)` of every item in order, at most `depth` of them ahead.

    Args:
        read: Runs in one other thread; decoding an image lets go of the interpreter lock.
        items: What to read.
        depth: Results that may wait, at least 1; bounds the memory.

    Raises:
        Exception: What `read` raises, when its item's turn has come.
    """
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(1) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(read, item))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
