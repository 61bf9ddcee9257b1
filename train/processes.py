"""Shell: the processes of one training: who writes, how they agree, how they end together.

`torchrun` starts them and says so in the environment (RANK, WORLD_SIZE, LOCAL_RANK); without it
there is one, and nothing here costs anything. All see the same run directory. Messages between
them go through gloo, gradients on GPUs through nccl.
"""

import gc
import os
import re
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any, NoReturn, TypeVar, cast

import torch
from torch import distributed

from pipeline.commands import EXIT_ERROR, EXIT_INTERRUPTED
from pipeline.errors import ConfigError, SemiresError
from pipeline.places import Place
from pipeline.records import run_lock

T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)
"""How long a process waits for another before it takes it for lost."""
_LOST = re.compile(r"peer|Connection|connection|[Tt]imed out|NCCL|socket", re.A)


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among those of a training."""

    rank: int = 0
    """From 0; the first one alone writes and speaks."""
    count: int = 1
    local_rank: int = 0
    """Rank on its machine, which numbers its GPU."""

    @property
    def is_first(self) -> bool:
        """Whether this one writes."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """Give this process's own device of a kind."""
        return f"cuda:{self.local_rank}" if name == "cuda" and self.count > 1 else name

    def from_first(self, function: Callable[[], T]) -> T:
        """Call a function in the first process and give all of them what it returned.

        Raises:
            SemiresError: In the first process, if the function raises it; the others exit with 1.
        """
        if self.count == 1:
            return function()
        answer: list[Any] = [None, None]
        error: SemiresError | None = None
        if self.is_first:
            try:
                answer[1] = function()
            except SemiresError as caught:
                error = caught
                answer[0] = str(caught)
        distributed.broadcast_object_list(answer, src=0)
        if error is not None:
            raise error
        if answer[0] is not None:
            raise SystemExit(EXIT_ERROR)
        return cast("T", answer[1])

    def together(self, function: Callable[[], T]) -> T:
        """Call a function in every process; if one fails, all of them end, with one message.

        The function must not wait for other processes.

        Raises:
            SemiresError: In the first process that failed; the others exit with 1.
        """
        if self.count == 1:
            return function()
        error: SemiresError | None = None
        result: Any = None
        try:
            result = function()
        except SemiresError as caught:
            error = caught
        failed = [0.0] * self.count
        failed[self.rank] = float(error is not None)
        failed = self.total(failed)
        if not any(failed):
            return cast("T", result)
        if error is not None and failed.index(1) == self.rank:
            raise error
        raise SystemExit(EXIT_ERROR)

    def fail(self, message: str) -> NoReturn:
        """End all processes, which all found the same mistake: the first says it, all exit with 1.

        Raises:
            SemiresError: In the first process.
        """
        if self.is_first:
            raise SemiresError(message)
        raise SystemExit(EXIT_ERROR)

    def total(self, values: list[float]) -> list[float]:
        """Add numbers up over all processes."""
        return self._reduce(values, distributed.ReduceOp.SUM) if self.count > 1 else values

    def largest(self, values: list[float]) -> list[float]:
        """Give the largest of every number over all processes."""
        return self._reduce(values, distributed.ReduceOp.MAX) if self.count > 1 else values

    def gather(self, value: T) -> list[T]:
        """Give what every process has, by rank."""
        if self.count == 1:
            return [value]
        everyone: list[Any] = [None] * self.count
        distributed.all_gather_object(everyone, value)
        return everyone

    def wait(self) -> None:
        """Wait until every process is here."""
        self.total([0.0])

    def _reduce(self, values: list[float], operation: Any) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(tensor, op=operation)
        result: list[float] = tensor.tolist()
        return result

    @contextmanager
    def holding(self, run_dir: Place) -> Iterator[None]:
        """Hold a run directory through the first process.

        Raises:
            StoreError: In the first process, if another command holds it.
        """
        if self.count == 1:
            with run_lock(run_dir):
                yield
            return
        lock = run_lock(run_dir)
        self.from_first(lock.__enter__)
        try:
            yield
        finally:
            if self.is_first:
                lock.__exit__(None, None, None)


ALONE = Processes()
"""A training in one process."""


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the processes that torchrun started; alone without it.

    When the first process ends with an error or an interruption, so do the others, silently.

    Raises:
        ConfigError: If the environment names processes but not this one.
        SemiresError: If another process is lost.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE
        return
    try:
        processes = Processes(
            rank=int(os.environ["RANK"]),
            count=count,
            local_rank=int(os.environ.get("LOCAL_RANK", os.environ["RANK"])),
        )
    except KeyError as error:
        raise ConfigError(
            f"WORLD_SIZE={count} without {error.args[0]}; start several processes with torchrun"
        ) from error
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield processes
    except BaseException as error:
        _drop_networks(error)
        if isinstance(error, RuntimeError) and _LOST.search(str(error)):
            raise SemiresError(
                f"process {processes.rank} of {count} lost another one, which says why itself, or "
                f"was killed; run the same command again to go on "
                f"({' '.join(str(error).split())[:120]})"
            ) from error
        if isinstance(error, KeyboardInterrupt) and not processes.is_first:
            raise SystemExit(EXIT_INTERRUPTED) from None
        raise
    finally:
        gc.collect()
        distributed.destroy_process_group()


def _drop_networks(error: BaseException) -> None:
    """Let go of what the frames of an error hold, before the group of processes is destroyed.

    DistributedDataParallel refers to the group. If it is the last to do so, the group's threads
    are waited for while Python's lock is held, which they may need: the process would hang.
    """
    found: BaseException | None = error
    while found is not None:
        traceback.clear_frames(found.__traceback__)
        found = found.__cause__ or found.__context__


class StopRequest:
    """Whether SIGTERM came: the first one asks to stop after the step, the second stops at once."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGTERM down instead of ending at once, where signals can be taken."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGTERM)

        def note(number: int, frame: FrameType | None) -> None:
            if self.asked and callable(before):
                before(number, frame)
            self.asked = True

        signal.signal(signal.SIGTERM, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)
