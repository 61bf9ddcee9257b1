"""What is no item's fault is not blamed on one, and no process outlives its parent."""

import errno
import operator
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.attempts import Attempts, read_attempts, write_attempts
from pipeline.engines import Engine
from pipeline.errors import StoreError
from pipeline.isolation import Death, probing
from pipeline.records import done_path
from pipeline.runner import run_stage
from tests.pipeline.null_stages import Avoidable, Slow, SlowToLoad, digest, null_plan


def run(folder, work=None, engine=None, **changes):
    plan = null_plan(folder, **changes)
    return run_stage(plan, work or Slow(), engine=engine, made_by="squares")


def to_isolate(folder, shard, **changes):
    """Make a store of which one shard is to do, that was preempted three times."""
    run(folder, **changes)
    done_path(folder / "squares.zarr", shard).unlink()
    write_attempts(folder / "squares.zarr", shard, Attempts(shard=3))


def test_a_full_folder_for_temporary_files_is_in_nobodys_way(tmp_path, monkeypatch):
    to_isolate(tmp_path, 2)
    before = digest(tmp_path / "squares.zarr")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "not" / "there"))  # nothing can be written to it
    monkeypatch.setattr("tempfile.tempdir", None)
    assert run(tmp_path).failures == ()
    assert digest(tmp_path / "squares.zarr") == before


@dataclass(frozen=True)
class Raises(Avoidable):
    """Raise for some rows, or for all."""

    error: Exception | None = None
    rows: range = range(1000)

    def __call__(self, rows):
        if set(rows) & set(self.rows):
            raise self.error or RuntimeError("no GPU")
        return super().__call__(rows)


def test_a_full_disk_is_no_fault_of_an_item(tmp_path):
    to_isolate(tmp_path, 2)
    with pytest.raises(StoreError, match=r"cannot be written .*No space left on device"):
        run(tmp_path, Raises(error=OSError(errno.ENOSPC, "No space left on device")))
    assert read_attempts(tmp_path / "squares.zarr", 2) == Attempts(shard=3)
    assert run(tmp_path).failures == ()


def test_a_bad_machine_is_told_from_bad_items_by_one_of_another_shard(tmp_path):
    to_isolate(tmp_path, 2)
    with pytest.raises(StoreError, match=r"all its items fail, and row 20 of another shard, too"):
        run(tmp_path, Raises())
    assert not done_path(tmp_path / "squares.zarr", 2).exists()
    summary = run(tmp_path, Raises(rows=range(10, 15)))  # these really are
    assert [failure.item for failure in summary.failures] == [str(i) for i in range(10, 15)]


def test_the_limit_of_an_item_does_not_count_what_is_loaded_first(tmp_path):
    to_isolate(tmp_path, 3, shard_size=2)
    work, engine = SlowToLoad(load_seconds=1.0, hanging=(7,)), Engine(max_shard_seconds=0.5)
    summary = run(tmp_path, work, engine, shard_size=2)
    assert [(f.item, f.reason) for f in summary.failures] == [
        ("7", "given up: took longer than 0.5 s")
    ]


def test_an_item_elsewhere_that_fails_warms_up_nothing_and_harms_nothing():
    work = Avoidable(deadly=(20,), raising=(21,))
    for elsewhere in (range(20, 21), range(21, 22)):
        with probing(work, 5.0, elsewhere) as probe:
            assert probe(range(3)).counters == {"items": 3}
            assert isinstance(probe(range(20, 21)), Death)
            assert probe(range(3)).counters == {"items": 3}


class Unloadable(Avoidable):
    """Cannot be unpickled, as where a package of the environment is gone."""

    def __reduce__(self):
        return operator.truediv, (1, 0)


def test_a_process_that_cannot_start_is_no_fault_of_an_item(tmp_path):
    to_isolate(tmp_path, 2)
    with pytest.raises(StoreError, match=r"looks for bad items cannot start: .* exit code 1"):
        run(tmp_path, Unloadable())
    assert read_attempts(tmp_path / "squares.zarr", 2) == Attempts(shard=3)


def test_large_results_come_through_the_pipe_whole():
    with probing(Slow()) as probe:
        assert len(probe(range(300_000)).columns["bytes"]) == 300_000


ISOLATES = """\
import sys
from pathlib import Path
from pipeline.commands import verb
from pipeline.runner import run_stage
from tests.pipeline.null_stages import Hangs, null_plan

@verb
def stage():
    folder, holds_lock = Path(sys.argv[1]), sys.argv[2] == "holds"
    work = Hangs(note=folder / "note", holds_lock=holds_lock)
    return len(run_stage(null_plan(folder), work, made_by="squares").failures)
stage()
"""


@pytest.mark.parametrize(
    ("signals", "code", "how"),
    [
        ([signal.SIGINT], 75, "sleeps"),
        ([signal.SIGTERM, signal.SIGTERM], 75, "holds"),
        ([signal.SIGKILL], -signal.SIGKILL, "holds"),
    ],
)
def test_whatever_ends_the_driver_ends_what_it_isolates(tmp_path, signals, code, how):
    to_isolate(tmp_path, 1)
    command = [sys.executable, "-c", ISOLATES, str(tmp_path), how]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as driver:
        wait_until((tmp_path / "note").exists)
        child = int((tmp_path / "note").read_text())
        assert child != driver.pid
        driver.send_signal(signals[0])
        for number in signals[1:]:  # sent before the first was seen, both would be one
            assert any(b"once more to stop" in line for line in driver.stderr)
            driver.send_signal(number)
        assert driver.wait(60) == code
    wait_until(lambda: not runs(child))


def wait_until(holds):
    limit = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.02)


def runs(pid):
    """Tell whether a process runs; one that has ended may be listed for ever where none waits."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
