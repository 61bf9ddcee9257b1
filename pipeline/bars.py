"""Shell: how often a progress bar is drawn: for an eye, or into a job's log."""

import sys
from typing import Any

AN_EYE, A_LOG = 0.5, 30.0
"""Seconds between two drawings on a terminal, and into a file or pipe, which keeps every one."""


def bar_options() -> dict[str, Any]:
    """Give what every `tqdm` is made with: on stderr, drawn as often as whoever reads it needs."""
    seconds = AN_EYE if sys.stderr.isatty() else A_LOG
    return {
        "file": sys.stderr,
        "mininterval": seconds,
        "maxinterval": max(10.0, seconds),  # else tqdm's monitor draws after 10 s
        "dynamic_ncols": True,
    }
