"""Shell: how far `prepare_data` is, on stderr."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from pipeline.bars import bar_options
from pipeline.readers.base import Progress


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Show the progress of `prepare_data` on stderr: number and rate, a bar for each kind of item.

    Yields:
        What to pass as `progress`; nothing is shown before its first call.
    """
    bars: dict[str, tqdm[Any]] = {}

    def show(kind: str, number: int) -> None:
        if kind not in bars:
            for earlier in bars.values():
                earlier.close()
            bars[kind] = tqdm(desc="prepare-data", unit=f" {kind}", **bar_options())
        bars[kind].update(number - bars[kind].n)

    try:
        yield show
    finally:
        for bar in bars.values():
            bar.close()
