"""One driver per run directory; what a dead one leaves is taken over."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
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


def wait_until(holds):
    limit = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.01)


@pytest.fixture
def watchful(monkeypatch):
    """Let whoever waits for a sign of life look often."""
    monkeypatch.setattr(lock_holders, "_LOOK_SECONDS", 0.02)


@pytest.fixture
def soon(monkeypatch, watchful):
    """Wait for a sign of life 0.6 s; what this process holds stays fresh as long as ever."""
    monkeypatch.setattr(lock_holders, "STALE_SECONDS", 0.6)
    monkeypatch.setattr(locks, "_SETTLE_SECONDS", 0.0)


@pytest.fixture
def beating():
    """Let a file's time of change be a heartbeat, as of a driver on another machine."""
    done = threading.Event()
    threads = []

    def start(path, offset=0.0):
        def beat():
            while not done.wait(0.01):
                os.utime(path, (time.time() + offset,) * 2)

        threads.append(threading.Thread(target=beat))
        threads[-1].start()

    yield start
    done.set()
    for thread in threads:
        thread.join()


LOCKS = pytest.mark.parametrize("name", [".lock", ".lock-0-of-2"])
DAYS = 86400.0


@LOCKS
@pytest.mark.parametrize("offset", [0.0, 3 * DAYS], ids=["same-clock", "clock-ahead"])
def test_another_machines_lock_holds_as_long_as_its_heart_beats(
    tmp_path, watchful, beating, name, offset
):
    (tmp_path / name).write_text(elsewhere())
    os.utime(tmp_path / name, (time.time() + offset,) * 2)
    beating(tmp_path / name, offset)
    with pytest.raises(StoreError, match="in use by pid 12 on node7 since yesterday"):
        run_lock(tmp_path).__enter__()
    assert [holder.host for holder in holders(tmp_path)] == ["node7"]


@LOCKS
@pytest.mark.parametrize("age", [0.1, -3 * DAYS], ids=["fresh", "in-the-future"])
@pytest.mark.parametrize("flock", [True, None], ids=["flock", "no-flock"])
def test_a_driver_that_ended_with_its_machine_is_waited_for(
    tmp_path, soon, monkeypatch, capsys, name, age, flock
):
    if flock is None:
        monkeypatch.setattr(locks, "_flock", lambda _descriptor, _kind: None)
    (tmp_path / name).write_text(elsewhere())
    started = time.monotonic()
    os.utime(tmp_path / name, (time.time() - age,) * 2)
    with run_lock(tmp_path):
        assert holders(tmp_path)[0].pid == os.getpid()
    assert time.monotonic() - started >= 0.45  # of the 0.5 or 0.6 that are left
    line = capsys.readouterr().err
    assert "held by pid 12 on node7" in line
    assert line.count("\n") == 1


@LOCKS
def test_a_driver_that_is_long_gone_is_not_waited_for(tmp_path, name, capsys):
    (tmp_path / name).write_text(elsewhere())
    os.utime(tmp_path / name, (time.time() - 2 * lock_holders.STALE_SECONDS,) * 2)
    with run_lock(tmp_path):
        assert holders(tmp_path)[0].pid == os.getpid()
    assert capsys.readouterr().err == ""


def test_a_lock_that_is_released_while_waited_for_is_free_at_once(tmp_path, watchful):
    path = tmp_path / ".lock"
    path.write_text(elsewhere())
    release = threading.Timer(0.2, lambda: path.write_text(""))
    release.start()
    with run_lock(tmp_path):
        assert holders(tmp_path)[0].pid == os.getpid()
    release.join()


def test_the_heart_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_holders, "HEARTBEAT_SECONDS", 0.02)
    with run_lock(tmp_path):
        os.utime(tmp_path / ".lock", (0, 0))
        wait_until(lambda: (tmp_path / ".lock").stat().st_mtime > 0)


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), ValueError("x"), SystemExit(75)], ids=["ctrl-C", "error", "exit"]
)
@pytest.mark.parametrize("part", [None, Part(0, 2)], ids=["alone", "part"])
def test_a_driver_that_ends_with_an_error_leaves_no_lock_to_wait_for(
    tmp_path, soon, monkeypatch, capsys, error, part
):
    with pytest.raises(type(error)), run_lock(tmp_path, part):
        assert [holder.pid for holder in holders(tmp_path)] == [os.getpid()]
        raise error
    left = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert left == dict.fromkeys((".lock", *([f".lock-{part}"] if part else [])), "")
    for module in (locks, lock_holders):  # a driver of another machine comes
        monkeypatch.setattr(module, "this_boot", lambda: "other")
    assert holders(tmp_path) == []
    with run_lock(tmp_path, part):
        assert [holder.boot for holder in holders(tmp_path)] == ["other"]
    assert capsys.readouterr().err == ""  # it waited for nobody


def test_who_lost_the_lock_is_interrupted(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_holders, "HEARTBEAT_SECONDS", 0.02)
    (tmp_path / "other").write_text(elsewhere())
    with pytest.raises(KeyboardInterrupt), run_lock(tmp_path):
        (tmp_path / "other").replace(tmp_path / ".lock")  # whole, however soon it is noticed
        time.sleep(60)
    assert "node7" in (tmp_path / ".lock").read_text()  # the other's stays


def test_a_disk_that_fails_for_a_while_does_not_end_the_driver(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_holders, "HEARTBEAT_SECONDS", 0.02)
    failures = []

    def fail(_path):
        failures.append(1)
        raise OSError(errno.ESTALE, "Stale file handle")

    with run_lock(tmp_path):
        with monkeypatch.context() as patched:
            patched.setattr(locks.os, "utime", fail)
            wait_until(lambda: len(failures) >= 3)
        os.utime(tmp_path / ".lock", (0, 0))
        wait_until(lambda: (tmp_path / ".lock").stat().st_mtime > 0)  # it beats again


def test_a_disk_that_fails_for_long_ends_the_driver(tmp_path, monkeypatch):
    for module in (locks, lock_holders):
        monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr(locks, "STALE_SECONDS", 0.5)

    def fail(_path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(locks.os, "utime", fail)
    lost = pytest.raises(KeyboardInterrupt, match="lock of the run directory is lost")
    with lost, run_lock(tmp_path):
        time.sleep(60)
    assert holders(tmp_path) == []
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()  # not ours to touch


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_heartbeat_that_breaks_down_ends_the_driver(monkeypatch):
    monkeypatch.setattr(lock_holders, "HEARTBEAT_SECONDS", 0.02)
    with pytest.raises(KeyboardInterrupt), lock_holders.heartbeat(lambda: 1 // 0):
        time.sleep(60)


@pytest.fixture
def own_handler():
    """Handle the signal that says a lock is lost, whose default ends the process; give what came.

    A handler of heartbeats that is not put back makes the tests that use this fail.
    """
    came = []
    before = signal.signal(lock_holders._LOST, lambda number, _frame: came.append(number))
    own = signal.getsignal(lock_holders._LOST)
    yield came
    left = signal.signal(lock_holders._LOST, before)
    assert left is own


def test_two_checks_that_see_the_loss_at_once_send_one_signal(monkeypatch, own_handler):
    """A second could arrive after the handler was put back, and end the process without a word."""
    both = threading.Barrier(2)

    class Slow(threading.Event):
        def is_set(self):
            found = super().is_set()
            if threading.current_thread().name == "heartbeat":
                with suppress(threading.BrokenBarrierError):
                    both.wait(1)  # as if both asked at the same instant, if they can
            return found

    sent = []
    monkeypatch.setattr(lock_holders, "HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr(lock_holders.threading, "Event", Slow)
    monkeypatch.setattr(lock_holders.os, "kill", lambda _pid, number: sent.append(number))
    with lock_holders.heartbeat(lambda: False, lambda: False):
        hearts = [t for t in threading.enumerate() if t.name == "heartbeat"]
        for heart in hearts:
            heart.join(30)
    assert sent == [lock_holders._LOST]


def test_a_signal_that_comes_at_the_end_finds_its_handler(monkeypatch, own_handler):
    real, sending, over = os.kill, threading.Event(), threading.Event()

    def kill(pid, number):
        sending.set()
        over.wait(1)  # meanwhile the block ends, which must not go by without us
        real(pid, number)

    monkeypatch.setattr(lock_holders, "HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr(lock_holders.os, "kill", kill)
    with pytest.raises(KeyboardInterrupt), lock_holders.heartbeat(lambda: False):
        assert sending.wait(30)
    over.set()
    assert own_handler == []


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
