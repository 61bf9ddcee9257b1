"""Shell: what can be watched of a training: progress line, CSV and TensorBoard logs, memory."""

import csv
import resource
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from tqdm import tqdm

from pipeline.errors import ConfigError
from pipeline.records import atomic_write

STEPS_LOG, LOOKS_LOG, EVENTS = "log.csv", "validation.csv", "tensorboard"
"""Files in a training's folder: a line per step, a line per look at the split, TensorBoard's."""


class Watch:
    """The logs of one training and its progress line; only the first process has one.

    A resumed training drops the lines after its checkpoint first: those steps are done again.
    """

    def __init__(
        self, folder: Path, name: str, start: int, steps: int, *, tensorboard: bool
    ) -> None:
        self._folder = folder
        self._samples = 0
        self._began = time.monotonic()
        cut_log(folder / STEPS_LOG, start)
        cut_log(folder / LOOKS_LOG, start + 1)
        self._board: Any = _board(folder / EVENTS, start) if tensorboard else None
        self._bar = tqdm(
            total=steps,
            initial=start,
            desc=name,
            unit=" steps",
            file=sys.stderr,
            mininterval=0.5,
            dynamic_ncols=True,
        )

    def __enter__(self) -> "Watch":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
        if self._board is not None:
            self._board.close()

    def step(self, step: int, losses: dict[str, float], samples: int) -> None:
        """Take down a step: its losses and rate, and how many samples it saw."""
        log_step(self._folder / STEPS_LOG, step, losses, fresh=step == 0)
        self._samples += samples
        seconds = max(time.monotonic() - self._began, 1e-9)
        self._bar.update()
        self._bar.set_postfix(
            loss=f"{losses['loss']:.3f}",
            sup=f"{losses['supervised']:.3f}",
            unsup=f"{losses['unsupervised']:.3f}",
            lr=f"{losses['lr']:.1e}",
            img_s=f"{self._samples / seconds:.1f}",
            refresh=False,
        )
        self._add_scalars(step, losses)

    def look(self, done: int, figures: dict[str, float]) -> None:
        """Take down what the teacher came to after `done` updates."""
        path = self._folder / LOOKS_LOG
        log_step(path, done, figures, fresh=not path.exists())
        self._add_scalars(done, {f"val/{name}": value for name, value in figures.items()})

    def _add_scalars(self, step: int, values: dict[str, float]) -> None:
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)


def _board(folder: Path, start: int) -> Any:
    """Open TensorBoard's log; events after the step that is resumed from are purged.

    Raises:
        ConfigError: If it is not installed.
    """
    require_tensorboard()
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=start)


def require_tensorboard() -> None:
    """Refuse to log for TensorBoard where it is not installed.

    Raises:
        ConfigError: Names the extra that installs it.
    """
    if find_spec("tensorboard") is None:
        raise ConfigError(
            "train.tensorboard: expected the package tensorboard, found none; "
            "pip install 'semires[watch]', or leave it out: log.csv holds the same figures"
        )


def log_step(path: Path, step: int, values: dict[str, float], *, fresh: bool) -> None:
    """Append one step's figures to a CSV log; `fresh` begins a new one."""
    with path.open("w" if fresh else "a", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        if fresh:
            writer.writerow(["step", *values])
        writer.writerow([step, *(f"{value:.6g}" for value in values.values())])


def cut_log(path: Path, step: int) -> None:
    """Drop the lines of a log from a step on, which are done again."""
    if path.exists():
        head, *lines = path.read_text(encoding="utf-8").splitlines(keepends=True) or [""]
        kept = [line for line in lines if line.endswith("\n") and _step_of(line) < step]
        atomic_write(path, "".join([head, *kept] if kept else []).encode())
        if not kept:
            path.unlink()


def _step_of(line: str) -> int:
    number = line.split(",", 1)[0]
    return int(number) if number.isdigit() else sys.maxsize


def peak_memory(device: str) -> tuple[float, float]:
    """Give the most memory that this process has held so far, in bytes: its own, the GPU's.

    Loading processes are not counted.
    """
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB
    own = float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
    on_gpu = torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else 0
    return own, float(on_gpu)
