"""The lock of a run directory in an object store: one driver, whoever comes when."""

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import timedelta

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from object_server import FailingMemory, make_bucket, put, start, used_here

from pipeline import lock_holders, object_locks
from pipeline.errors import StoreError
from pipeline.lock_holders import STALE_SECONDS, Holder, Part
from pipeline.locks import holders, run_lock
from pipeline.places import lengths_below, place, remove_tree

HOLD = """
import sys
from pipeline.errors import StoreError
from pipeline.locks import Part, run_lock
from pipeline.places import place
for line in sys.stdin:
    try:
        with run_lock(place(sys.argv[1])):
            print("won", flush=True)
            sys.stdin.readline()
    except StoreError as error:
        print(error, flush=True)
        sys.stdin.readline()
"""


@pytest.fixture
def run_dir(tmp_path):
    """A run directory in memory."""
    found = place(f"memory://{tmp_path.name}/run")
    yield found
    remove_tree(found.parent)


def elsewhere(**changes):
    """Give what the driver of another machine writes into its entry."""
    fields = {"host": "node7", "pid": 12, "boot": "other", "token": "t", "since": "yesterday",
              "command": "sam-candidates"}  # fmt: skip
    released = changes.pop("released", False)
    document = {**asdict(Holder(**{**fields, **changes})), "released": released}
    return json.dumps(document).encode()


def dead():
    """Give what a driver of this machine left that is no more."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return elsewhere(host="here", pid=process.pid, boot=object_locks._this_place())


def age(where, seconds):
    """Let an object be as old as this, by the clock of the store."""
    file = MemoryFileSystem.store[where.path]
    file.modified -= timedelta(seconds=seconds)


# -- one after the other


def test_a_second_driver_is_refused_with_the_first_ones_name(run_dir):
    host, pid = os.uname().nodename, os.getpid()
    message = rf"in use by pid {pid} on {host} since 2.* UTC \(.*\); wait for it or stop it"
    with run_lock(run_dir):
        assert [holder.pid for holder in holders(run_dir)] == [pid]
        with pytest.raises(StoreError, match=message):
            run_lock(run_dir).__enter__()
    assert holders(run_dir) == []


def test_a_released_lock_is_free_at_once_and_leaves_one_small_object(run_dir):
    for _ in range(3):
        with run_lock(run_dir):
            pass
    assert list(lengths_below(run_dir)) == [".lock/00000003.json"]


def test_what_a_dead_driver_of_this_machine_left_is_taken_over_at_once(run_dir):
    (run_dir / ".lock" / "00000007.json").write_bytes(dead())
    assert holders(run_dir) == []
    with run_lock(run_dir):
        assert list(lengths_below(run_dir)) == [".lock/00000008.json"]


@pytest.mark.parametrize("name", [".lock", ".lock-0-of-2"])
@pytest.mark.parametrize("boot", ["other", "this"])
def test_the_heartbeat_decides_by_the_clock_of_the_store(run_dir, monkeypatch, name, boot):
    """A living process of the same number on this machine may be quite another."""
    boot = object_locks._this_place() if boot == "this" else boot
    entry = run_dir / name / "00000007.json"
    entry.write_bytes(elsewhere(boot=boot, pid=os.getppid()))
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + 3600)  # ours is wrong
    age(entry, STALE_SECONDS - 30)
    with pytest.raises(StoreError, match=r"in use by pid \d+ on node7 since yesterday"):
        run_lock(run_dir).__enter__()
    age(entry, 60)
    with run_lock(run_dir):
        assert [holder.pid for holder in holders(run_dir)] == [os.getpid()]
    assert not [key for key in lengths_below(run_dir) if "now-" in key]


@pytest.mark.parametrize("left", [b"", b"{", b"[]", b'{"pid": 3}', b'{"released": true}'])
def test_damaged_entries_hold_nobody(run_dir, left):
    (run_dir / ".lock" / "00000004.json").write_bytes(left)
    assert holders(run_dir) == []
    with run_lock(run_dir):
        pass


def test_parts_of_one_run_go_together(run_dir):
    with run_lock(run_dir, Part(0, 2)), run_lock(run_dir, Part(1, 2)):
        assert len(holders(run_dir)) == 2
        for refused in (Part(0, 2), Part(0, 3), None):
            with pytest.raises(StoreError, match="in use by"):
                run_lock(run_dir, refused).__enter__()
    with run_lock(run_dir):
        with pytest.raises(StoreError, match="in use by"):
            run_lock(run_dir, Part(1, 2)).__enter__()
        assert len(holders(run_dir)) == 1
    with run_lock(run_dir, Part(0, 3)):
        pass


def test_whoever_is_refused_leaves_no_lock_behind(run_dir):
    with run_lock(run_dir), pytest.raises(StoreError):
        run_lock(run_dir, Part(0, 2)).__enter__()
    with run_lock(run_dir, Part(0, 2)), pytest.raises(StoreError):
        run_lock(run_dir).__enter__()
    assert holders(run_dir) == []


# -- the heart


@pytest.fixture
def quick(monkeypatch):
    """Let hearts beat fast, and go stale no faster than any machine beats."""
    monkeypatch.setattr(lock_holders, "HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr(object_locks, "HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr(object_locks, "STALE_SECONDS", 30.0)


def wait_until(holds):
    limit = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_the_heart_beats(run_dir, quick):
    with run_lock(run_dir):
        entry = run_dir / ".lock" / "00000001.json"
        first = object_locks.modified_at(entry)
        wait_until(lambda: object_locks.modified_at(entry) != first)


def test_who_lost_the_lock_is_interrupted_and_leaves_the_others(run_dir, quick):
    other = run_dir / ".lock" / "00000002.json"
    with pytest.raises(KeyboardInterrupt, match="lock"), run_lock(run_dir):
        other.fs.pipe_file(other.path, elsewhere())  # whole, however soon it is noticed
        time.sleep(60)
    assert other.read_bytes() == elsewhere()


def test_a_store_that_let_two_create_the_same_entry_is_noticed(run_dir, quick):
    entry = run_dir / ".lock" / "00000001.json"
    with pytest.raises(KeyboardInterrupt), run_lock(run_dir):
        for _ in range(3000):
            entry.write_bytes(elsewhere())
            time.sleep(0.01)


@pytest.mark.parametrize("kind", ["fails", "hangs", "breaks"])
def test_without_heartbeats_the_driver_stops_before_others_may_come(
    run_dir, quick, monkeypatch, kind
):
    real, over = MemoryFileSystem.ls, threading.Event()
    trouble = []

    def ls(self, path, *arguments, **options):
        if trouble and threading.current_thread().name == "heartbeat":
            if kind == "hangs":
                over.wait(60)
            raise {"fails": OSError, "hangs": OSError, "breaks": RuntimeError}[kind]("away")
        return real(self, path, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "ls", ls)
    with pytest.raises(KeyboardInterrupt), run_lock(run_dir):
        began = time.monotonic()
        trouble.append(1)
        monkeypatch.setattr(object_locks, "STALE_SECONDS", 0.34)
        time.sleep(60)
    seconds = time.monotonic() - began
    over.set()
    assert seconds < 30


def test_a_short_trouble_does_no_harm(run_dir, quick, monkeypatch):
    real, failed = MemoryFileSystem.ls, []

    def ls(self, path, *arguments, **options):
        if threading.current_thread().name == "heartbeat" and len(failed) < 5:
            failed.append(1)
            raise OSError("away")
        return real(self, path, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "ls", ls)
    with run_lock(run_dir):
        entry = run_dir / ".lock" / "00000001.json"
        wait_until(lambda: len(failed) == 5)
        last = object_locks.modified_at(entry)
        wait_until(lambda: object_locks.modified_at(entry) != last)  # it beats again


def test_an_answer_that_was_lost_does_not_lock_us_out(run_dir, monkeypatch):
    """The request is sent again by the library, and finds what the first one created."""
    real, lost = object_locks.create_once, []

    def create(where, content):
        made = real(where, content)
        lost.append(made)
        return made and len(lost) > 1

    monkeypatch.setattr(object_locks, "create_once", create)
    with run_lock(run_dir):
        assert lost[0]


def test_a_lock_that_is_not_taken_for_trouble_is_not_kept(run_dir):
    with FailingMemory() as counted, run_lock(run_dir):
        pass
    for at in range(counted.count):
        with (
            suppress(StoreError),
            FailingMemory(at) as memory,
            run_lock(run_dir),
        ):
            pass
        held = holders(run_dir)
        assert memory.failed
        assert not held or at >= counted.count - 3, memory.asked[at]  # those of the release
        remove_tree(run_dir)


def test_a_store_that_cannot_create_once_is_refused(run_dir, monkeypatch):
    real = MemoryFileSystem.pipe_file
    monkeypatch.setattr(
        MemoryFileSystem, "pipe_file", lambda self, path, value, **_: real(self, path, value)
    )
    with pytest.raises(StoreError, match="one that replaces it: two drivers could not be told"):
        run_lock(run_dir).__enter__()


# -- at the same time: all that takers do, in every order


class Takers:
    """Drivers that take the lock and release it, one step at a time in a given order.

    A step is one request; between two steps any other driver may do any number of its own.
    """

    def __init__(self, run_dir, count):
        self.run_dir = run_dir
        self.holding: set[int] = set()
        self.won = 0
        self.most = 0
        self._running = {}
        self._go = [threading.Semaphore(0) for _ in range(count)]
        self._arrived = threading.Semaphore(0)
        self._live = set(range(count))
        self.errors = []

    def step(self):
        """Wait for one's turn, in a taker's thread; others pass."""
        number = self._running.get(threading.get_ident())
        if number is not None:
            self._arrived.release()
            self._go[number].acquire()

    def drive(self, number):
        """Take and release, in a thread of its own."""
        self._running[threading.get_ident()] = number
        self._go[number].acquire()
        try:
            entry = object_locks._take(self.run_dir / ".lock", self.run_dir)
            self.holding.add(number)
            self.won += 1
            self.most = max(self.most, len(self.holding))
            self.step()  # works
            self.holding.remove(number)
            entry.release()
        except StoreError:
            pass
        except BaseException as error:
            self.errors.append(error)
        finally:
            self._live.discard(number)
            self._arrived.release()

    def run(self, order):
        """Let takers make steps in this order, and to the end when it ends."""
        count = len(self._go)
        threads = [threading.Thread(target=self.drive, args=(n,)) for n in range(count)]
        for thread in threads:
            thread.start()
        for number in itertools.chain(order, itertools.repeat(None)):
            if not self._live:
                break
            chosen = min(self._live) if number is None else number
            if chosen in self._live:
                self._go[chosen].release()
                self._arrived.acquire()
        for thread in threads:
            thread.join()
        assert not self.errors, self.errors


@contextmanager
def in_steps(takers):
    """Make a step of every request of the lock."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("names_in", "create_once", "delete", "modified_at", "_read"):
            real = getattr(object_locks, name)

            def stepped(*arguments, real=real):
                takers.step()
                return real(*arguments)

            patch.setattr(object_locks, name, stepped)
        write = object_locks._Entry.write

        def stepped_write(entry, **options):
            takers.step()
            write(entry, **options)

        patch.setattr(object_locks._Entry, "write", stepped_write)
        yield


BEFORE = {
    "nothing": None,
    "released": elsewhere(released=True),
    "dead": dead(),
    "stale": elsewhere(),
}


def contest(before, order, count):
    """Let takers meet in a fresh folder; give how many won."""
    run_dir = place("memory://contest/run")
    remove_tree(run_dir)
    if BEFORE[before] is not None:
        entry = run_dir / ".lock" / "00000007.json"
        entry.write_bytes(BEFORE[before])
        age(entry, 2 * STALE_SECONDS)
    takers = Takers(run_dir, count)
    with in_steps(takers):
        takers.run(order)
    assert takers.most <= 1, f"two held it at once: {before}, {order}"
    assert takers.won >= 1, f"nobody got it: {before}, {order}"
    assert holders(run_dir) == []
    return takers.won


MOST_STEPS = 16
"""Steps that a taker makes, and some more."""


@pytest.mark.parametrize("before", list(BEFORE))
def test_two_takers_with_every_two_changes_of_turn(before):
    for first in range(MOST_STEPS):
        for second in range(1, MOST_STEPS):
            contest(before, [0] * first + [1] * second, 2)


@settings(max_examples=120)
@given(
    before=st.sampled_from(list(BEFORE)),
    runs=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9)), max_size=20),
)
def test_three_takers_in_any_order(before, runs):
    contest(before, [number for number, steps in runs for _ in range(steps)], 3)


def test_a_slow_taker_who_saw_an_old_state_never_gets_it():
    """It looked, another took and released, and a third took it and holds it."""
    for looked, holds in itertools.product(range(1, 5), range(8, 18)):
        order = [0] * looked + [1] * 40 + [2] * holds + [0] * 20
        assert contest("released", order, 3) >= 2


# -- on a real server


@pytest.fixture
def bucket(tmp_path):
    """A bucket of a real server, used here and by others."""
    with used_here(tmp_path / "cache"):
        yield make_bucket()


def ask(process, text="go"):
    """Say a line to a driver."""
    process.stdin.write(text + "\n")
    process.stdin.flush()


def test_of_many_processes_at_once_one_wins(bucket, tmp_path):
    url = f"s3://{bucket}/run"
    command = [sys.executable, "-c", HOLD, url]
    drivers = [start(command, tmp_path, stdin=True) for _ in range(6)]
    try:
        for number in range(20):
            for driver in drivers:
                ask(driver)
            answers = [driver.stdout.readline().strip() for driver in drivers]
            won = [d for d, answer in zip(drivers, answers, strict=True) if answer == "won"]
            assert len(won) == 1, answers
            others = [answer for answer in answers if answer != "won"]
            assert [answer for answer in others if "in use by" not in answer] == []
            if number == 10:  # what it leaves is taken over at once
                won[0].kill()
                won[0].communicate()
                drivers.remove(won[0])
            for driver in drivers:
                ask(driver)
    finally:
        for driver in drivers:
            driver.kill()
            driver.communicate()


def test_another_machines_driver_by_the_servers_clock(bucket):
    run_dir = place(f"s3://{bucket}/run")
    put(bucket, "run/.lock/00000003.json", elsewhere())
    with pytest.raises(StoreError, match="in use by pid 12 on node7"):
        run_lock(run_dir).__enter__()
    _set_age(bucket, "run/.lock/00000003.json", STALE_SECONDS + 5)
    with run_lock(run_dir):
        assert list(lengths_below(run_dir)) == [".lock/00000004.json"]
    assert holders(run_dir) == []


def _set_age(bucket, key, seconds):
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    found = s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets[bucket].keys[key]
    found.last_modified -= timedelta(seconds=seconds)
