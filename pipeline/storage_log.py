"""Shell: what the libraries of object stores log about broken connections, kept from the user.

They work in event loops of their own (fsspec's and zarr's). A connection that breaks there while a
request is under way fails twice: the request raises, which we turn into one line and go on or end,
and the task that was still sending is found forgotten when it is collected, at any later time and
in any thread. asyncio logs the latter with a traceback, which says nothing that the line does not.
"""

import logging
from traceback import walk_tb

LIBRARIES = frozenset(
    ("botocore", "aiobotocore", "aiohttp", "s3fs", "gcsfs", "google", "adlfs", "azure", "fsspec")
)
"""Top-level packages through which object stores are reached."""


class _NotOfStorage(logging.Filter):
    """Lets a record pass unless it is about a connection of one of `LIBRARIES`."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is None:
            message = record.getMessage()  # of a session or connection that nobody closed
            return not (message.startswith("Unclosed ") and "<aiohttp." in message)
        if _is_of_library(type(error).__module__):
            return False
        frames = (frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__))
        return not (isinstance(error, OSError) and any(map(_is_of_library, frames)))


def _is_of_library(module: str) -> bool:
    return module.split(".", 1)[0] in LIBRARIES


def keep_broken_connections_quiet() -> None:
    """Let asyncio's logger say nothing of connections to object stores; any number of calls."""
    logger = logging.getLogger("asyncio")
    if not any(isinstance(known, _NotOfStorage) for known in logger.filters):
        logger.addFilter(_NotOfStorage())
