"""Shell: Dask clusters: local processes, any running scheduler, SLURM jobs."""

import asyncio
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

from pipeline.errors import ConfigError, StoreError
from pipeline.found_values import why
from pipeline.gpus import VISIBLE, count_gpus, take_gpu

CONNECT_SECONDS = 30
"""How long a scheduler may take to answer."""

_WORKER_SETTINGS = {
    "distributed.worker.daemon": False,
    # A worker that is being replaced for the second time after 15 s is closed for good, and in the
    # end there is none: Dask looks only whether it is there at that moment.
    "distributed.deploy.lost-worker-timeout": "10000h",
    # Dask has glibc give freed memory back at once; networks allocate the same large blocks again
    # and again, and a third of a worker's time went into the kernel clearing fresh pages.
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 1 << 30,
    "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": 1 << 30,
}
_DEFAULT_WALLTIME, _DEFAULT_MEMORY = "00:30:00", "16GB"
_STAGGER_SECONDS = 240


@contextmanager
def local_client(workers: int) -> Iterator[Any]:
    """Start worker processes on this machine, each with a GPU of its own where there are some.

    Scheduler, workers and dashboard listen on loopback alone.
    """
    import dask
    from distributed import Client, LocalCluster
    from distributed.diagnostics.plugin import WorkerPlugin

    visible, num_gpus = os.environ.get(VISIBLE), count_gpus()

    class OneGpu(WorkerPlugin):
        """Run at the start of a worker, and again when a dead one is replaced."""

        name = "one-gpu"

        def setup(self, worker: Any) -> None:
            take_gpu(worker.name, visible, num_gpus)

    with (
        dask.config.set(_WORKER_SETTINGS),
        _without_ctrl_c(
            lambda: LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",  # any free port: another job may run here
                memory_limit=None,
                silence_logs=50,
            )
        ) as cluster,
        Client(cluster) as client,
    ):
        if num_gpus:
            client.register_plugin(OneGpu())
        yield client


def _without_ctrl_c(start: Callable[[], Any]) -> Any:
    """Start what leaves ctrl-C to this process, which a terminal sends to all others as well.

    Threads and processes inherit which signals wait; those that replace a dead one, too.
    """
    resource_tracker.ensure_running()  # it would let the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
    try:
        return start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def address_client(address: str) -> Iterator[Any]:
    """Connect to a scheduler that runs; its workers and their GPUs are whoever started them's.

    A `tls://` address takes certificates from Dask's own config (`distributed.comm.tls`), and shows
    them to the scheduler. Whoever can reach a `tcp://` scheduler can run code on its workers.

    Raises:
        ConfigError: If the address holds credentials.
        StoreError: If none answers.
    """
    from distributed import Client

    refuse_credentials(address)
    try:
        if not address.strip():  # Dask would start a cluster, whose dashboard the network can see
            raise ValueError("an empty address")
        asyncio.run(_ask(address))
        client = Client(address, timeout=CONNECT_SECONDS)
    # Without certificates it is a TypeError, for a port beyond 65535 an OverflowError.
    except (OSError, ValueError, TypeError, OverflowError, ImportError) as error:
        raise StoreError(
            f"--cluster {address}: no Dask scheduler answers ({why(error)}){_hint(address)}"
        ) from error
    with client:
        yield client


def refuse_credentials(address: str) -> None:
    """Refuse an address with a user in it, which Dask would print; the address is not repeated."""
    if "@" in address:
        raise ConfigError(
            "--cluster: expected PROTOCOL://HOST:PORT, found an address with an '@'; a scheduler "
            "takes no user: give its host and port alone, and certificates in Dask's config"
        )


async def _ask(address: str) -> None:
    """Connect once and take leave, or raise what connecting raises.

    A client that fails in its constructor cannot be closed by its caller. It closes itself when it
    is collected, which waits for ever where that happens while the next one starts.
    """
    from distributed import Client

    client = Client(address, asynchronous=True, timeout=CONNECT_SECONDS, set_as_default=False)
    try:
        await client
    finally:
        await client.close()


def _hint(address: str) -> str:
    """Say what is likely wrong with an address where nobody answers."""
    if address.startswith("tls://"):
        names = "ca-file, client.cert and client.key"
        return f"; set distributed.comm.tls.{names} in Dask's config, or the environment"
    return "; if it asks for TLS, its address begins with tls://"


@contextmanager
def slurm_client(jobs: int, lifetime: str | None) -> Iterator[Any]:
    """Keep `jobs` SLURM jobs of one worker each running, until the block ends.

    Queue, account, memory, walltime and GPUs are those of dask-jobqueue's own config file. Workers
    stop taking tasks before their walltime ends, not all at once, and jobs that are
    preempted are submitted again.

    The scheduler and the workers listen on the network, as jobs on other nodes must reach them:
    asking for SLURM asks for that. No dashboard does. TLS is set in dask-jobqueue's config.

    Args:
        jobs: Jobs to keep.
        lifetime: How long a worker takes tasks, e.g. "55m"; None: nine tenths of the walltime.

    Raises:
        StoreError: If dask-jobqueue or SLURM is not installed.
        ConfigError: If the lifetime is none.
    """
    import dask
    from distributed import Client

    try:
        from dask_jobqueue.slurm import SLURMCluster
    except ImportError as error:
        raise StoreError(
            "--engine slurm: dask-jobqueue is not installed; run pip install -e '.[slurm]' in the "
            "clone, or use --engine static in a job array"
        ) from error
    if shutil.which(SLURMCluster.job_cls.submit_command) is None:  # else it would wait for ever
        raise StoreError(
            f"--engine slurm: expected the command {SLURMCluster.job_cls.submit_command}, found "
            f"none on this machine; start it where SLURM is installed, or use --workers"
        )
    walltime = dask.config.get("jobqueue.slurm.walltime", None) or _DEFAULT_WALLTIME
    cores = dask.config.get("jobqueue.slurm.cores", None) or 1
    memory = dask.config.get("jobqueue.slurm.memory", None) or _DEFAULT_MEMORY
    with (
        SLURMCluster(
            cores=cores,
            processes=1,
            memory=memory,
            walltime=walltime,
            worker_extra_args=[
                # Also without a dashboard a worker answers HTTP where its dashboard would be.
                *("--nthreads", "1", "--no-dashboard", "--dashboard-address", "127.0.0.1:0"),
                *lifetime_arguments(lifetime, walltime),
            ],
            scheduler_options={"dashboard_address": "127.0.0.1:0"},
        ) as cluster,
        Client(cluster) as client,
    ):
        cluster.adapt(minimum=jobs, maximum=jobs)
        yield client


def lifetime_arguments(lifetime: str | None, walltime: str) -> list[str]:
    """Give a Dask worker's arguments, so that it ends before its job is ended.

    Args:
        lifetime: Number and unit s, m or h, e.g. "55m"; None: nine tenths of the walltime.
        walltime: SLURM's, as [D-]HH:MM:SS, HH:MM:SS, MM:SS or MM.

    Raises:
        ConfigError: If either is none of these.
    """
    if lifetime is None:
        seconds = 9 * _seconds_of_walltime(walltime) // 10
    else:
        found = re.fullmatch(r"(\d+)([smh])", lifetime)
        if not found or not int(found[1]):
            raise ConfigError(f"--lifetime {lifetime}: expected a number and s, m or h, e.g. 55m")
        seconds = int(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]
    stagger = min(_STAGGER_SECONDS, seconds // 10)
    return ["--lifetime", f"{seconds}s", "--lifetime-stagger", f"{stagger}s"]


def _seconds_of_walltime(walltime: str) -> int:
    found = re.fullmatch(r"(?:(\d+)-)?(\d+(?::\d+){0,2})", walltime)
    if not found:
        raise ConfigError(f"walltime {walltime!r}: expected [D-]HH:MM:SS")
    parts = [int(part) for part in found[2].split(":")]
    if found[1] is not None:
        hours, minutes, seconds = [*parts, 0, 0][:3]
    else:
        hours, minutes, seconds = {1: [0, *parts, 0], 2: [0, *parts], 3: parts}[len(parts)]
    return ((int(found[1] or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
