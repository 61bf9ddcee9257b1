"""Several processes that train together, as torchrun starts them, without its start-up time."""

import faulthandler
import multiprocessing
import os
import random
import signal
import socket
import sys
import time
import traceback
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path

TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code and what it wrote to stdout and stderr."""

    code: int | None
    text: str


def free_port():
    """Find a free port below those that the kernel gives to whoever asks for any.

    One of its own could be another's connection by the time that rank 0 listens on it.
    """
    chosen = random.Random(f"{os.getpid()} {time.time_ns()}")
    for _ in range(1000):
        port = chosen.randrange(15_000, 30_000)
        with socket.socket() as found, suppress(OSError):
            found.bind(("127.0.0.1", port))
            return port
    raise OSError("expected a free port from 15000 to 29999, found none; end what listens there")


def run_ranks(count, function, arguments, folder):
    """Call function(*arguments) in `count` processes; give how each ended, by rank.

    They come from a server that has imported torch once. One that does not end is killed and
    fails the test: nothing may hang.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train.student", "train.cli"])
    port = free_port()
    outputs = [folder / f"rank-{rank}.txt" for rank in range(count)]
    ranks = [
        context.Process(target=_run, args=(rank, count, port, outputs[rank], function, arguments))
        for rank in range(count)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(TIMEOUT_SECONDS)
    hanging = [rank for rank, process in enumerate(ranks) if process.is_alive()]
    for process in ranks:
        if process.is_alive():
            os.kill(process.pid, signal.SIGUSR1)  # tells where it is
            process.join(2)
    for process in ranks:
        process.kill()
        process.join()
    texts = [path.read_text() if path.exists() else "" for path in outputs]
    assert not hanging, f"processes {hanging} hang: {texts}"
    return [Ended(process.exitcode, text) for process, text in zip(ranks, texts, strict=True)]


def _run(rank, count, port, output, function, arguments):
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    handle = output.open("w")  # stays open: a process may hang after the last line
    with redirect_stdout(handle), redirect_stderr(handle):
        faulthandler.register(signal.SIGUSR1, handle, all_threads=True)
        try:
            function(*arguments)
        except SystemExit as ended:
            handle.flush()
            sys.exit(ended.code)
        except BaseException:
            traceback.print_exc()
            handle.flush()
            sys.exit(70)


def train(config: Path, run_dir: Path, number: int, overrides=(), before=None):
    """Run the verb train-student; `before` is called first, to disturb it."""
    if before is not None:
        before()
    from train.cli import train_student

    arguments = ["--config", str(config), "--run-dir", str(run_dir), "--round", str(number)]
    for override in overrides:
        arguments += ["--set", override]
    train_student.main(arguments, standalone_mode=False)


def terminate_after(step: int, rank: int):
    """Let SIGTERM reach one process in the middle of a step."""
    import signal

    from train import loop

    real = loop.train_step

    def step_and_signal(*arguments):
        if arguments[4] == step and int(os.environ["RANK"]) == rank:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    loop.train_step = step_and_signal


def kill_at(step: int, rank: int):
    """Let one process die before a step, as by SIGKILL."""
    from train import loop

    real = loop.train_step

    def step_or_die(*arguments):
        if arguments[4] == step and int(os.environ["RANK"]) == rank:
            os._exit(9)
        return real(*arguments)

    loop.train_step = step_or_die
