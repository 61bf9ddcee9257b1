"""Shell: what can be watched of a training: progress line, CSV, TensorBoard, W&B, memory."""

import csv
import resource
import secrets
import sys
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import torch
from tqdm import tqdm

from pipeline.bars import bar_options
from pipeline.errors import ConfigError
from pipeline.records import atomic_write

STEPS_LOG, LOOKS_LOG, EVENTS = "log.csv", "validation.csv", "tensorboard"
"""Files in a training's folder: a line per step, a line per look at the split, TensorBoard's."""
WANDB, WANDB_ID = "wandb", "run-id"
"""W&B's own folder in a training's, and the file there that names the run it goes on with."""
UNFIT = "/\\#?%:"
"""Characters that W&B does not take in the name of a project."""


class Board(Protocol):
    """Something besides the CSV logs that figures are shown on."""

    def add(self, step: int, values: dict[str, float]) -> None:
        """Show figures of a step; steps never fall."""

    def close(self, *, failed: bool) -> None:
        """Write out what is left."""


class Watch:
    """The logs of one training and its progress line; only the first process has one.

    A resumed training drops the lines after its checkpoint first: those steps are done again.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        start: int,
        steps: int,
        *,
        tensorboard: bool,
        wandb: str | None = None,
    ) -> None:
        self._folder = folder
        self._samples = 0
        self._began = time.monotonic()
        cut_log(folder / STEPS_LOG, start)
        cut_log(folder / LOOKS_LOG, start + 1)
        self._boards: list[Board] = []
        if tensorboard:
            self._boards.append(TensorBoard(folder / EVENTS, start))
        if wandb is not None:
            self._boards.append(WeightsAndBiases(folder, name, start, wandb))
        self._bar = tqdm(
            total=steps,
            initial=start,
            desc=name,
            unit=" steps",
            **bar_options(),
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
        for board in self._boards:
            board.close(failed=kind is not None)

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
        for board in self._boards:
            board.add(step, values)


class TensorBoard:
    """TensorBoard's log; events after the step that is resumed from are purged.

    Raises:
        ConfigError: If it is not installed.
    """

    def __init__(self, folder: Path, start: int) -> None:
        require_tensorboard()
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=start)

    def add(self, step: int, values: dict[str, float]) -> None:
        """Show figures of a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, *, failed: bool) -> None:
        """Write out what is left."""
        self._writer.close()


class WeightsAndBiases:
    """A run of a W&B project: the figures of the CSV logs and nothing else.

    Config, code, console and the list of packages stay here; W&B adds times and the versions of
    itself, Python and the platform. `WANDB_MODE=offline` keeps all of it in the training's folder,
    for `wandb sync`. A resumed training goes on with its run; steps that are
    done again are the same, and W&B leaves out those that it has.

    Raises:
        ConfigError: If it is not installed, the project has no proper name, or no run can be begun,
            e.g. without a login.
    """

    def __init__(self, folder: Path, name: str, start: int, project: str) -> None:
        require_wandb(project)
        wandb: Any = import_module("wandb")  # may be missing where types are checked
        (folder / WANDB).mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = dict.fromkeys(
            ("silent", "disable_git", "disable_code", "x_disable_meta", "x_disable_stats"), True
        )
        try:
            self._run: Any = wandb.init(
                project=project,
                name=name,
                dir=str(folder),
                id=_run_id(folder / WANDB / WANDB_ID, start),
                resume="allow",
                save_code=False,
                settings=wandb.Settings(console="off", x_save_requirements=False, **options),
            )
        except wandb.errors.Error as error:
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"train.wandb: expected a run of project {project!r}, found none begun ({reason}); "
                f"'wandb login', or set WANDB_MODE=offline, or leave it out: log.csv holds the "
                f"same figures"
            ) from error

    def add(self, step: int, values: dict[str, float]) -> None:
        """Show figures of a step; several of one step are one row."""
        self._run.log(values, step=step)

    def close(self, *, failed: bool) -> None:
        """Write out what is left; a training that did not end is marked as failed."""
        self._run.finish(exit_code=int(failed))


def _run_id(path: Path, start: int) -> str:
    """Give the name of a run, kept for when the training is resumed; one from step 0 is new."""
    if start and path.exists():
        return path.read_text(encoding="utf-8").strip()
    name = secrets.token_hex(8)
    atomic_write(path, f"{name}\n".encode())
    return name


def require_tensorboard() -> None:
    """Refuse to log for TensorBoard where it is not installed.

    Raises:
        ConfigError: Names the extra that installs it.
    """
    if find_spec("tensorboard") is None:
        raise ConfigError(
            "train.tensorboard: expected the package tensorboard, found none; "
            "run pip install -e '.[watch]' in the clone, or leave it out: log.csv holds the same "
            "figures"
        )


def require_wandb(project: str) -> None:
    """Refuse to log to W&B where it is not installed, or to a project that cannot be.

    Raises:
        ConfigError: Names the extra that installs it, or what is wrong with the name.
    """
    if not project.strip() or len(project) > 128 or set(UNFIT) & set(project):
        raise ConfigError(
            f"train.wandb: expected the name of a project, 1 to 128 characters without any of "
            f"{' '.join(UNFIT)}, found {project!r}"
        )
    found = find_spec("wandb")
    if found is None or found.origin is None:  # a folder of that name, such as W&B leaves, is none
        raise ConfigError(
            "train.wandb: expected the package wandb, found none; "
            "run pip install -e '.[watch]' in the clone, or leave it out: log.csv holds the same "
            "figures"
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
