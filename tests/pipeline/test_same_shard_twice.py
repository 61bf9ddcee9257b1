"""Two processes at one shard, of which the cluster gave one up: one writes, and nothing is lost."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline import attempts, audit
from pipeline.attempts import ClaimedError, attempts_path, claimed
from pipeline.errors import StoreError
from pipeline.preparation import prepared
from pipeline.records import done_path
from pipeline.shard_task import run_shard
from pipeline.shards import ShardResult
from tests.pipeline.null_stages import Slow, columns_of, null_plan

TWICE = """\
import sys, time
from pathlib import Path
from pipeline.shard_task import run_shard
from tests.pipeline.null_stages import Slow, null_plan
folder, plan = Path(sys.argv[1]), null_plan(Path(sys.argv[1]), num_items=120)
for shard in range(24):
    (folder / f"{sys.argv[2]}-{shard}").touch()
    while not (folder / f"{1 - int(sys.argv[2])}-{shard}").exists():
        time.sleep(0.0005)
    run_shard(plan, Slow(0.001), shard)
"""


@dataclass(frozen=True)
class WaitsFor:
    """Compute once a file is there; says by another that it is at it."""

    folder: Path

    def __call__(self, rows: range) -> ShardResult:
        (self.folder / "computing").touch()
        while not (self.folder / "go").exists():
            time.sleep(0.005)
        return ShardResult(columns=columns_of(rows))


def made(folder, **changes):
    plan = null_plan(folder, **changes)
    with prepared(plan, "never", "squares", None):
        pass
    return plan


def states(plan):
    return {state.shard: state.state for state in audit.verify(plan.store)}


def inodes(store):
    return {path: path.stat().st_ino for path in store.rglob("*") if path.is_file()}


def test_two_processes_at_every_shard_lose_none(tmp_path):
    plan = made(tmp_path, num_items=120)
    both = [
        subprocess.Popen([sys.executable, "-c", TWICE, str(tmp_path), str(i)]) for i in range(2)
    ]
    assert [process.wait(60) for process in both] == [0, 0]
    assert set(states(plan).values()) == {"done"}
    assert not list(attempts_path(plan.store, 0).parent.iterdir())


def test_who_comes_too_late_leaves_a_done_shard_alone(tmp_path):
    plan = made(tmp_path)
    receipts = []
    late = threading.Thread(
        target=lambda: receipts.append(run_shard(plan, WaitsFor(tmp_path), 1)), daemon=True
    )
    late.start()
    while not (tmp_path / "computing").exists():
        time.sleep(0.005)
    run_shard(plan, Slow(), 1)
    before = inodes(plan.store) | inodes(plan.store.with_suffix(".stage"))
    assert done_path(plan.store, 1) in before
    (tmp_path / "go").touch()
    late.join(30)
    assert receipts[0].problem is None
    assert inodes(plan.store) | inodes(plan.store.with_suffix(".stage")) == before


def test_a_writer_that_fails_late_takes_nothing_of_the_others_along(tmp_path):
    """Wrong columns are found when they are written, when the other has written them right."""
    plan = made(tmp_path)
    before = {}

    @dataclass(frozen=True)
    class Wrong:
        def __call__(self, rows: range) -> ShardResult:
            run_shard(plan, Slow(), 1)
            before.update(inodes(plan.store))
            return ShardResult(columns={})

    assert run_shard(plan, Wrong(), 1).problem is None
    assert inodes(plan.store) == before
    assert states(plan)[1] == "done"


def test_a_frozen_writer_costs_its_shard_and_is_named(tmp_path, monkeypatch):
    plan = made(tmp_path)
    code = (
        "import sys, time; from pathlib import Path; from pipeline.attempts import claimed\n"
        "with claimed(Path(sys.argv[1]), 1): print('held', flush=True); time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(plan.store)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as frozen:
        assert frozen.stdout.readline() == b"held\n"
        frozen.send_signal(signal.SIGSTOP)
        monkeypatch.setattr(attempts, "CLAIM_SECONDS", 0.2)
        receipt = run_shard(plan, Slow(), 1)
        assert f"still held by pid {frozen.pid} on" in receipt.problem
        assert run_shard(plan, Slow(), 2).problem is None
        frozen.kill()
    assert run_shard(plan, Slow(), 1).problem is None  # the kernel gave it back
    assert (states(plan)[1], states(plan)[2]) == ("done", "done")


def test_a_claim_excludes_threads_of_one_process_too(tmp_path, monkeypatch):
    plan = made(tmp_path)
    monkeypatch.setattr(attempts, "CLAIM_SECONDS", 0.05)
    held = pytest.raises(ClaimedError, match=f"by pid {os.getpid()}")
    with claimed(plan.store, 1), claimed(plan.store, 2), held:
        claimed(plan.store, 1).__enter__()
    with claimed(plan.store, 1):
        pass


def test_a_shard_whose_write_fails_leaves_no_half(tmp_path):
    plan = made(tmp_path)

    @dataclass(frozen=True)
    class Short:
        def __call__(self, rows: range) -> ShardResult:
            columns = columns_of(rows)
            return ShardResult(columns={**columns, "square": columns["square"][:-1]})

    with pytest.raises(StoreError, match="square shard 1 holds"):
        run_shard(plan, Short(), 1)
    assert not list(plan.store.rglob("c/1*"))
    assert not list(attempts_path(plan.store, 1).parent.glob("*.lock"))
