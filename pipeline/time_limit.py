"""Shell: an end for what does not end."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

EXIT_HUNG = 75
"""As an interruption: the same command goes on, and isolates the item after a few times."""
_GRACE_SECONDS = 5.0


@contextmanager
def at_most(seconds: float | None, what: str) -> Iterator[None]:
    """End this process if the block takes longer: a thread that hangs cannot be ended otherwise.

    Args:
        seconds: How long it may take; None for as long as it likes.
        what: What the line on stderr calls it.
    """
    if seconds is None:
        yield
        return

    def end() -> NoReturn:
        line = f"{what} took longer than {seconds:g} s; its process ends\n"
        os.write(2, line.encode())  # not by a buffered stream, whose lock may be held
        os._exit(EXIT_HUNG)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    # The kernel's alarm ends the process even where a C library keeps Python's lock to itself.
    alarmed = signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
    timer.start()
    if alarmed:
        signal.setitimer(signal.ITIMER_REAL, seconds + _GRACE_SECONDS)
    try:
        yield
    finally:
        timer.cancel()
        if alarmed:
            signal.setitimer(signal.ITIMER_REAL, 0)
