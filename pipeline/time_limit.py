"""Shell: an end for what does not end.

A thread that hangs cannot be ended, and a C library that keeps Python's lock to itself lets no
other thread of Python run. So the kernel's timers call the C library, which says a line and ends
the process; where there are none of these, a thread of Python does it.
"""

import ctypes
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

EXIT_HUNG = 75
"""As an interruption: the same command goes on, and isolates the item after a few times."""
_SAY_SECONDS = 0.1  # for the line, before the end
_CLOCK_MONOTONIC, _SIGEV_THREAD = 1, 2  # time.h, signal.h
_LINES: deque[ctypes.c_char_p] = deque(maxlen=100)  # a timer's thread may still read one


class _Event(ctypes.Structure):
    """`struct sigevent`: call `function` with `value` in a thread of its own."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("function", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("reserved", ctypes.c_char * 64),
    )


class _Setting(ctypes.Structure):
    """`struct itimerspec`: never again, and in how many seconds and nanoseconds."""

    _fields_ = (
        ("again", ctypes.c_long * 2),
        ("seconds", ctypes.c_long),
        ("nanoseconds", ctypes.c_long),
    )


@contextmanager
def at_most(seconds: float | None, what: str) -> Iterator[None]:
    """End this process, by exit code 75, if the block takes longer.

    Args:
        seconds: How long it may take; None for as long as it likes.
        what: What the line on stderr calls it.
    """
    if seconds is None:
        yield
        return
    line = f"{what} took longer than {seconds:g} s; its process ends"
    cancel = _timers(seconds, line) or _thread(seconds, line)
    try:
        yield
    finally:
        cancel()


def _timers(seconds: float, line: str) -> Callable[[], None] | None:
    """Set two timers, for the line and the end; None where the C library has none."""
    try:
        library = ctypes.CDLL(None)
        functions = [ctypes.cast(getattr(library, name), ctypes.c_void_p) for name in _CALLED]
        create, settime, remove = (getattr(library, name) for name in _TIMER)
    except (OSError, AttributeError, TypeError):
        return None
    text = ctypes.c_char_p(line.replace("%", "%%").encode())
    _LINES.append(text)
    values = (ctypes.cast(text, ctypes.c_void_p).value, EXIT_HUNG)
    timers: list[ctypes.c_void_p] = []

    def cancel() -> None:
        for timer in timers:
            remove(timer)

    for number in range(2):
        event = _Event(values[number], 0, _SIGEV_THREAD, functions[number].value)
        timer = ctypes.c_void_p()
        when = seconds + number * _SAY_SECONDS
        setting = _Setting((0, 0), int(when), int(when % 1 * 1e9))
        if create(_CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(timer)):
            cancel()
            return None
        timers.append(timer)
        settime(timer, 0, ctypes.byref(setting), None)
    return cancel


_CALLED = ("warnx", "_exit")  # err.h, unistd.h
_TIMER = ("timer_create", "timer_settime", "timer_delete")


def _thread(seconds: float, line: str) -> Callable[[], None]:
    def end() -> NoReturn:
        os.write(2, f"{line}\n".encode())  # not by a buffered stream, whose lock may be held
        os._exit(EXIT_HUNG)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    return timer.cancel
