"""One driver per run directory; what a dead one leaves is taken over."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import pytest

from pipeline import lock_holders, locks
from pipeline.errors import StoreError
from pipeline.lock_holders import Holder
from pipeline.locks import Part, holders, run_lock

HOLD = (
    "import sys, time; from pathlib import Path; from pipeline.locks import run_lock\n"
    "with run_lock(Path(sys.argv[1])):\n"
    "    print('held', flush=True); time.sleep(60)\n"
)


@pytest.fixture
def other_driver(tmp_path):
    """A process that holds the run directory."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_driver_is_refused_with_the_first_ones_name(tmp_path, other_driver):
    host = os.uname().nodename
    message = rf"in use by pid {other_driver.pid} on {host} since 2.* UTC \(-c\); wait for it"
    with pytest.raises(StoreError, match=message):
        run_lock(tmp_path).__enter__()
    assert [holder.pid for holder in holders(tmp_path)] == [other_driver.pid]


def test_what_a_killed_driver_leaves_is_taken_over(tmp_path, other_driver):
    other_driver.send_signal(signal.SIGKILL)
    other_driver.wait()
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == other_driver.pid
    assert holders(tmp_path) == []
    with run_lock(tmp_path):
        assert [holder.pid for holder in holders(tmp_path)] == [os.getpid()]
    assert (tmp_path / ".lock").read_text() == ""


def elsewhere(**changes):
    """Give a driver on a machine that started at another time."""
    fields = {"host": "node7", "pid": 12, "boot": "other", "token": "t", "since": "yesterday",
              "command": "sam-candidates"}  # fmt: skip
    return json.dumps(asdict(Holder(**{**fields, **changes}))) + "\n"


@pytest.mark.parametrize("name", [".lock", ".lock-0-of-2"])
def test_another_machines_lock_holds_as_long_as_its_heart_beats(tmp_path, name):
    path = tmp_path / name
    path.write_text(elsewhere())
    os.utime(path, (time.time() - 60,) * 2)
    with pytest.raises(StoreError, match="in use by pid 12 on node7 since yesterday"):
        run_lock(tmp_path).__enter__()
    assert [holder.host for holder in holders(tmp_path)] == ["node7"]
    os.utime(path, (time.time() - 2 * lock_holders.STALE_SECONDS,) * 2)
    with run_lock(tmp_path):
        assert holders(tmp_path)[0].pid == os.getpid()


def test_the_heart_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_holders, "HEARTBEAT_SECONDS", 0.02)
    with run_lock(tmp_path):
        os.utime(tmp_path / ".lock", (0, 0))
        limit = time.monotonic() + 10
        while (tmp_path / ".lock").stat().st_mtime == 0:
            assert time.monotonic() < limit
            time.sleep(0.01)


def test_who_lost_the_lock_is_interrupted(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_holders, "HEARTBEAT_SECONDS", 0.02)
    with pytest.raises(KeyboardInterrupt), run_lock(tmp_path):
        (tmp_path / ".lock").write_text(elsewhere())
        time.sleep(10)
    assert "node7" in (tmp_path / ".lock").read_text()  # the other's stays


@pytest.mark.parametrize("left", ["", "pid 12 on node7\n", "{", "[]", '{"pid": 3}'])
def test_locks_of_older_versions_and_damaged_ones_hold_nobody(tmp_path, left):
    (tmp_path / ".lock").write_text(left)
    assert holders(tmp_path) == []
    with run_lock(tmp_path):
        pass


def test_without_flock_the_pid_decides(tmp_path, monkeypatch, other_driver):
    monkeypatch.setattr(locks, "_flock", lambda _descriptor, _kind: None)
    with pytest.raises(StoreError, match=f"in use by pid {other_driver.pid}"):
        run_lock(tmp_path).__enter__()
    other_driver.kill()
    other_driver.wait()
    with run_lock(tmp_path):
        pass


def test_a_part_is_named_by_index_and_count():
    assert str(Part(3, 8)) == "3-of-8"
