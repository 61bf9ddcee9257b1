"""A run on a cluster ends when asked to, whatever has become of its workers."""

import functools
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from pipeline import dask_tasks
from pipeline.dask_clusters import local_client, slurm_client
from pipeline.dask_tasks import run_on
from pipeline.errors import StoreError

pytestmark = pytest.mark.dask


@pytest.fixture
def empty_cluster():
    """A client of a real scheduler that has no workers."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=50
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def one_worker():
    """A client of one worker process of this machine."""
    with local_client(1) as client:
        yield client


def after(seconds):
    """Give what says to stop after some seconds."""
    started = time.monotonic()
    return lambda: time.monotonic() - started > seconds


def results(client, function, tasks, stop=lambda: False):
    return dict(run_on(client, function, iter(range(tasks)), "null", stop))


def double(task):
    return 2 * task


def be_slow(begun, task):
    begun.touch()
    time.sleep(6)
    return task


def refuse(task):
    raise StoreError("/run/null.zarr: not there")


def test_without_workers_it_says_so_and_stops_when_asked(empty_cluster, monkeypatch, capsys):
    monkeypatch.setattr(dask_tasks, "_FIRST_LOOK_SECONDS", 0.5)
    started = time.monotonic()
    assert results(empty_cluster, double, 4, after(2)) == {}
    assert time.monotonic() - started < 30
    assert "null: the Dask scheduler has no workers" in capsys.readouterr().err


def test_workers_that_come_late_do_the_tasks(empty_cluster):
    empty_cluster.cluster.scale(1)
    assert results(empty_cluster, double, 9) == {task: 2 * task for task in range(9)}


def test_a_stop_awaits_what_is_begun_and_no_more(one_worker, tmp_path):
    begun = tmp_path / "begun"
    slow = functools.partial(be_slow, begun)
    assert len(results(one_worker, slow, 50, begun.exists)) == 1


@pytest.mark.slow  # Dask takes its time to end a frozen worker
def test_frozen_workers_do_not_keep_a_stop_waiting(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dask_tasks, "ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(dask_tasks, "SILENT_SECONDS", 2.0)
    with local_client(1) as client:
        (worker,) = client.run(os.getpid).values()
        os.kill(worker, signal.SIGSTOP)
        try:
            started = time.monotonic()
            slow = functools.partial(be_slow, tmp_path / "begun")
            assert results(client, slow, 4, after(1)) == {}
            assert time.monotonic() - started < 40  # SILENT_SECONDS are 60, unless set
        finally:
            os.kill(worker, signal.SIGCONT)
    assert "shards are left unfinished: no worker is at them" in capsys.readouterr().err


def test_what_a_worker_of_another_machine_cannot_do_names_it(one_worker, monkeypatch):
    """The worker is of this machine, so it is the driver that says to be another."""
    host = socket.gethostname()
    with pytest.raises(StoreError, match=r"not there$"):
        results(one_worker, refuse, 1)
    monkeypatch.setattr(dask_tasks.socket, "gethostname", lambda: "head-node")
    message = rf"not there \(so on the worker {host}, which has to see the files of head-node"
    with pytest.raises(StoreError, match=message):
        results(one_worker, refuse, 1)


CTRL_C = """
import os, signal, sys, time
from pipeline.dask_clusters import local_client
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    with local_client(2) as client:
        futures = client.map(time.sleep, [4, 4.5])
        time.sleep(1)
        os.killpg(0, signal.SIGINT)
        client.gather(futures)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_is_the_drivers_alone():
    """A terminal sends it to the workers as well: their words would bury the driver's."""
    ended = subprocess.run(
        [sys.executable, "-c", CTRL_C],
        capture_output=True, text=True, check=False, start_new_session=True, timeout=60,
    )  # fmt: skip
    assert ended.stdout == "interrupted\n"
    assert ended.stderr == ""


def test_slurm_without_its_commands_is_one_line(tmp_path, monkeypatch):
    before = set(sys.modules)  # others try what happens without the package
    pytest.importorskip("dask_jobqueue")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StoreError, match="expected the command sbatch, found none") as refused:
        slurm_client(1, None).__enter__()
    for name in sys.modules.keys() - before:
        if name.startswith("dask_jobqueue"):
            del sys.modules[name]
    assert "\n" not in str(refused.value)
