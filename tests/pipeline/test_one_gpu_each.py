"""Workers of this machine run one task each, on a GPU of their own, also after one has died."""

import os
import signal
import time

import pytest

from pipeline import dask_clusters
from pipeline.dask_clusters import local_client
from pipeline.gpus import VISIBLE

pytestmark = pytest.mark.dask

GIVE_UP_SECONDS = 120.0


def visible():
    return os.environ.get(VISIBLE)


def threads(dask_worker):
    return dask_worker.state.nthreads


def until_replaced(client, dead):
    """Wait until two workers answer, none of them `dead`; give their process ids."""
    limit = time.monotonic() + GIVE_UP_SECONDS
    while time.monotonic() < limit:
        found = set(client.run(os.getpid, on_error="ignore").values())
        if len(found) == 2 and dead not in found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"no worker took the place of {dead} in {GIVE_UP_SECONDS} s")


@pytest.mark.parametrize(
    ("driver", "devices"), [(None, ["0", "1"]), ("4,GPU-a", ["4", "GPU-a"])], ids=["all", "some"]
)
def test_each_worker_has_its_gpu_and_so_has_what_replaces_it(monkeypatch, driver, devices):
    monkeypatch.delenv(VISIBLE, raising=False)
    if driver is not None:
        monkeypatch.setenv(VISIBLE, driver)
    monkeypatch.setattr(dask_clusters, "count_gpus", lambda: 2)
    with local_client(2) as client:
        assert sorted(client.run(visible).values()) == devices
        assert set(client.run(threads).values()) == {1}
        before = set(client.run(os.getpid).values())
        killed = min(before)
        os.kill(killed, signal.SIGKILL)
        after = until_replaced(client, killed)
        assert len(after & before) == 1
        assert sorted(client.run(visible).values()) == devices
        assert set(client.run(threads).values()) == {1}
