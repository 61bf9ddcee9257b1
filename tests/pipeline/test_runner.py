"""A stage is resumable, refuses other configs, and does not depend on how it is run."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pipeline.audit import repair, verify
from pipeline.engines import Engine
from pipeline.errors import StoreError
from pipeline.records import FailedItem, Plan, done_path, records_folder, require_rows, run_lock
from pipeline.runner import ShardResult, run_shard, run_stage
from pipeline.store import ArraySpec, open_store

SPECS = (
    ArraySpec(name="square", dtype="int64"),
    ArraySpec(name="row", dtype="uint8", row_shape=(16,), chunk_rows=1),
    ArraySpec(name="bytes", dtype="uint8", payload=True),
)


@dataclass(frozen=True)
class Squares:
    """Write i * i; item 7 fails."""

    broken: int | None = 7

    def __call__(self, rows: range) -> ShardResult:
        values = np.array(rows, np.int64)
        failures = [FailedItem(item=str(i), reason="broken") for i in rows if i == self.broken]
        return ShardResult(
            columns={
                "square": values**2,
                "row": np.repeat(values[:, None], 16, axis=1),
                "bytes": np.arange(rows.start, dtype=np.uint8),
            },
            failures=tuple(failures),
            counters={"items": len(rows), "sum": float(values.sum())},
        )


def plan(tmp_path, **changes) -> Plan:
    fields = {
        "stage": "squares", "store": tmp_path / "squares.zarr", "specs": SPECS, "num_items": 23,
        "shard_size": 5, "unit": "items", "decides": {"power": 2},
    }  # fmt: skip
    return Plan(**{**fields, **changes})


def digest(store: Path) -> dict[str, str]:
    files = sorted(path for path in store.rglob("*") if path.is_file())
    return {
        path.relative_to(store).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def run(tmp_path, work=None, plan_=None, **options):
    return run_stage(plan_ or plan(tmp_path), work or Squares(), made_by="squares", **options)


def test_values_failures_and_sums_come_back(tmp_path):
    summary = run(tmp_path)
    group = open_store(tmp_path / "squares.zarr")
    assert np.array_equal(group["square"][:], np.arange(23) ** 2)
    assert group["row"][22].tolist() == [22] * 16
    assert group["bytes"][4, :20].tolist() == list(range(20))
    assert summary.failures == (FailedItem(item="7", reason="broken"),)
    assert summary.counters == {"items": 23, "sum": 253.0}
    assert (summary.shards_done_now, summary.shards_done_before) == (5, 0)


def test_a_second_run_does_nothing_and_reports_the_same(tmp_path):
    first = run(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    second = run(tmp_path, work=Explode())
    assert (second.shards_done_now, second.shards_done_before) == (0, 5)
    assert (second.counters, second.failures) == (first.counters, first.failures)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}


@dataclass(frozen=True)
class Explode:
    """Fail from shard `at` on."""

    at: int = 0

    def __call__(self, rows: range) -> ShardResult:
        if rows.start >= self.at:
            raise RuntimeError("exploded")
        return Squares()(rows)


def test_resuming_after_a_crash_gives_the_same_bytes(tmp_path):
    run(tmp_path / "whole", plan_=plan(tmp_path / "whole"))
    part = plan(tmp_path / "part")
    with pytest.raises(RuntimeError, match="exploded"):
        run(tmp_path, work=Explode(at=12), plan_=part)
    # What a killed writer leaves: a shard without its record, and a half-written file.
    done_path(part.store, 1).unlink()
    (part.store / "square" / "c" / "3.abc.partial").write_bytes(b"half")
    summary = run(tmp_path, plan_=part)
    assert (summary.shards_done_now, summary.shards_done_before) == (3, 2)
    assert digest(part.store) == digest(tmp_path / "whole" / "squares.zarr")


def test_limit_does_whole_shards_and_the_rest_later(tmp_path):
    summary = run(tmp_path, limit=6)
    assert summary.shards_done_now == 2
    assert not summary.complete
    store = tmp_path / "squares.zarr"
    assert require_rows(store, "squares", range(10)) == plan(tmp_path).fingerprint
    with pytest.raises(StoreError, match=r"3 of 5 shards are not done \(first: 2\); run 'squares'"):
        require_rows(store, "squares")
    assert run(tmp_path).complete


def test_another_config_is_refused_with_the_difference(tmp_path):
    run(tmp_path)
    before = digest(tmp_path / "squares.zarr")
    other = plan(tmp_path, decides={"power": 3}, shard_size=6)
    with pytest.raises(StoreError, match=r"power: 2, now 3; shard_size: 5, now 6.*--force"):
        run(tmp_path, plan_=other)
    assert digest(tmp_path / "squares.zarr") == before
    assert run(tmp_path, plan_=other, replace="differing").shards_done_now == 4
    assert run(tmp_path, plan_=other, replace="differing").shards_done_now == 0
    assert run(tmp_path, plan_=other, replace="always").shards_done_now == 4
    assert not list(tmp_path.glob("*.replaced"))


def test_a_replacement_that_fails_at_once_gives_the_old_store_back(tmp_path):
    run(tmp_path)
    before = digest(tmp_path / "squares.zarr")
    other = plan(tmp_path, decides={"power": 3})
    with pytest.raises(RuntimeError, match="exploded"):
        run(tmp_path, plan_=other, work=Explode(), replace="differing")
    assert digest(tmp_path / "squares.zarr") == before
    assert run(tmp_path).shards_done_now == 0
    with pytest.raises(RuntimeError, match="exploded"):  # this one made a shard: it is kept
        run(tmp_path, plan_=other, work=Explode(at=10), replace="differing")
    assert run(tmp_path, plan_=other).shards_done_before == 2


def test_damaged_metadata_is_restored_and_the_shards_are_kept(tmp_path):
    run(tmp_path)
    before = digest(tmp_path / "squares.zarr")
    (tmp_path / "squares.zarr" / "row" / "zarr.json").write_text("{")
    (tmp_path / "squares.zarr" / "zarr.json").unlink()
    assert run(tmp_path).shards_done_now == 0
    assert digest(tmp_path / "squares.zarr") == before


def test_a_worker_of_a_replaced_plan_writes_nothing(tmp_path):
    old, new = plan(tmp_path), plan(tmp_path, decides={"power": 3})
    run(tmp_path, plan_=new)
    before = digest(tmp_path / "squares.zarr")
    with pytest.raises(StoreError, match="power: 3, now 2"):
        run_shard(old, Squares(), 0)
    assert digest(tmp_path / "squares.zarr") == before


def test_a_truncated_shard_is_done_again(tmp_path):
    run(tmp_path)
    whole = digest(tmp_path / "squares.zarr")
    victim = tmp_path / "squares.zarr" / "row" / "c" / "2" / "0"
    victim.write_bytes(victim.read_bytes()[:-3])
    assert run(tmp_path).shards_done_now == 1
    assert digest(tmp_path / "squares.zarr") == whole


def test_flipped_bits_are_found_and_mended(tmp_path):
    run(tmp_path)
    store = tmp_path / "squares.zarr"
    whole = digest(store)
    rng = np.random.default_rng(0)
    files = sorted(path for path in store.rglob("c/**/*") if path.is_file())
    for victim in files:
        content = bytearray(victim.read_bytes())
        content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
        victim.write_bytes(bytes(content))
        damaged = [state.shard for state in verify(store) if state.state == "damaged"]
        assert damaged == [int(victim.relative_to(store).parts[2])], victim
        assert [state.shard for state in repair(store)] == damaged
        assert run(tmp_path).shards_done_now == 1
        assert digest(store) == whole


def test_a_damaged_done_record_counts_as_not_done(tmp_path):
    run(tmp_path)
    done_path(tmp_path / "squares.zarr", 0).write_text("{")
    assert run(tmp_path).shards_done_now == 1


def test_a_store_without_its_plan_is_made_anew(tmp_path):
    run(tmp_path)
    (records_folder(tmp_path / "squares.zarr") / "plan.json").unlink()
    assert run(tmp_path).shards_done_now == 5


def test_no_items_is_a_complete_stage(tmp_path):
    summary = run(tmp_path, plan_=plan(tmp_path, num_items=0))
    assert summary.complete
    assert require_rows(tmp_path / "squares.zarr", "squares")


@pytest.mark.dask
def test_workers_and_their_number_do_not_change_a_byte(tmp_path):
    run(tmp_path, plan_=plan(tmp_path / "one"))
    run(tmp_path, plan_=plan(tmp_path / "two"), engine=Engine(workers=2))
    assert digest(tmp_path / "one" / "squares.zarr") == digest(tmp_path / "two" / "squares.zarr")


@pytest.mark.dask
def test_a_task_that_always_fails_stops_the_stage_with_its_reason(tmp_path):
    with pytest.raises(StoreError, match=r"task [2-4] failed 3 times, last with Runtime"):
        run(tmp_path, work=Explode(at=10), engine=Engine(workers=2))


@pytest.mark.dask
def test_a_running_cluster_gives_the_same_bytes(tmp_path):
    from distributed import LocalCluster

    run(tmp_path, plan_=plan(tmp_path / "here"))
    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(host="127.0.0.1", silence_logs=50, **options) as cluster:
        engine = Engine(cluster=cluster.scheduler_address)
        run(tmp_path, plan_=plan(tmp_path / "there"), engine=engine)
    assert digest(tmp_path / "here" / "squares.zarr") == digest(tmp_path / "there" / "squares.zarr")


def test_a_cluster_that_does_not_answer_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.engines.CONNECT_SECONDS", 1)
    with pytest.raises(StoreError, match=r"--cluster tcp://127.0.0.1:9: no Dask scheduler answers"):
        run(tmp_path, engine=Engine(cluster="tcp://127.0.0.1:9"))


def test_two_drivers_do_not_share_a_run_directory(tmp_path):
    # flock is per open file, so a second open in this process stands for another driver.
    with run_lock(tmp_path), pytest.raises(StoreError, match=r"in use by pid \d+ on "):
        run_lock(tmp_path).__enter__()
    with run_lock(tmp_path):
        pass


def test_the_done_record_says_what_was_done(tmp_path):
    run(tmp_path)
    record = json.loads(done_path(tmp_path / "squares.zarr", 1).read_text())
    assert (record["start"], record["stop"]) == (5, 10)
    assert record["failures"] == [{"item": "7", "reason": "broken"}]
    assert set(record["files"]) == {"square/c/1", "row/c/1/0", "bytes/c/1/0"}
    assert set(record["versions"]) == {"python", "numpy", "zarr", "numcodecs"}
