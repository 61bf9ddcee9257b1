"""What the runner promises: a driver that holds little, a disk that holds all, and no surprise."""

import os
import pickle
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import zarr
from click.testing import CliRunner

from benchmarks import scale
from pipeline.budget import parse_budget
from pipeline.cli import sam_candidates
from pipeline.dask_clusters import local_client
from pipeline.dask_tasks import run_on
from pipeline.engines import Engine
from pipeline.locks import Part
from pipeline.preparation import prepared
from pipeline.records import FailedItem, done_path, read_done, records_folder
from pipeline.runner import run_stage
from pipeline.shard_files import write_shard
from pipeline.shard_task import run_shard
from pipeline.shards import ShardResult
from pipeline.store import ArraySpec, create_store
from refine.cli import refine_labels
from tests.pipeline.null_stages import Slow, columns_of, digest, null_plan
from train.cli import predict_teacher


def twice(task):
    return 2 * task


@pytest.mark.dask
def test_a_driver_takes_tasks_only_as_workers_come_free():
    """A million shards must not be a million tasks; two per worker keep it busy."""
    taken, seen, waiting = [], [], []

    def tasks():
        for task in range(30):
            taken.append(task)
            waiting.append(len(taken) - len(seen))
            yield task

    with local_client(1) as client:
        for task, result in run_on(client, twice, tasks(), "null", lambda: False):
            assert result == 2 * task
            seen.append(task)
    assert sorted(seen) == taken == list(range(30))
    assert max(waiting) == 2


MEGABYTES = (
    ArraySpec(name="wide", dtype="uint8", row_shape=(512, 1024)),
    ArraySpec(name="bytes", dtype="uint8", payload=True),
)


@dataclass(frozen=True)
class Megabytes:
    """Four rows of half a megabyte that zstd cannot make smaller; one fails."""

    def __call__(self, rows: range) -> ShardResult:
        rng = np.random.default_rng(rows.start)
        return ShardResult(
            columns={
                "wide": rng.integers(0, 256, (len(rows), 512, 1024), np.uint8),
                "bytes": rng.integers(0, 256, 1 << 20, np.uint8),
            },
            failures=(FailedItem(item=f"images/{rows.start}.jpg", reason="cannot be decoded"),),
            counters={"images": len(rows), "bytes": 3 << 20},
        )


def test_what_a_task_gives_back_is_a_receipt_and_no_array(tmp_path):
    plan = null_plan(tmp_path, specs=MEGABYTES, num_items=8, shard_size=4)
    with prepared(plan, "never", "squares", None):
        computed, found = (run_shard(plan, Megabytes(), 1) for _ in range(2))
    files = read_done(plan.store, 1, plan.fingerprint).files
    assert sum(entry["bytes"] for entry in files.values()) > 3e6
    assert computed == found  # the second time it is read from its record
    assert computed.counters == {"images": 4, "bytes": 3 << 20}
    assert len(pickle.dumps(computed)) < 2000


@dataclass(frozen=True)
class Timed:
    """Take some time for a shard, and count."""

    seconds: float

    def __call__(self, rows: range) -> ShardResult:
        time.sleep(self.seconds)
        counters = {"items": len(rows), "sum": float(sum(rows))}
        return ShardResult(columns=columns_of(rows), counters=counters)


def test_a_done_record_says_how_long_its_shard_took_and_what_was_counted(tmp_path):
    plan = null_plan(tmp_path, num_items=10)
    started = time.monotonic()
    summary = run_stage(plan, Timed(0.05), made_by="squares")
    elapsed = time.monotonic() - started
    records = [read_done(plan.store, shard, plan.fingerprint) for shard in (0, 1)]
    assert min(record.seconds for record in records) >= 0.05
    assert sum(record.seconds for record in records) <= elapsed + 0.001
    assert [record.counters for record in records] == [
        {"items": 5, "sum": 10.0},
        {"items": 5, "sum": 35.0},
    ]
    assert summary.counters == {"items": 10, "sum": 45.0}


HOW_IT_RUNS = (
    Engine(),
    Engine(workers=2),
    Engine(name="static", part=Part(0, 2)),
    Engine(max_failures=parse_budget("50%")),
    Engine(max_shard_seconds=600),
)


@pytest.mark.dask
def test_how_a_stage_is_run_may_change_from_start_to_start(tmp_path):
    """Each start finds what those before have done, and does one shard more."""
    plan, whole = null_plan(tmp_path / "run"), null_plan(tmp_path / "whole")
    run_stage(whole, Slow(), made_by="squares")
    written = (records_folder(whole.store) / "plan.json").read_bytes()
    for shard, engine in enumerate(HOW_IT_RUNS):
        limit = plan.rows(shard).stop
        summary = run_stage(plan, Slow(), engine=engine, limit=limit, made_by="squares")
        assert (summary.shards_done_before, summary.shards_done_now) == (shard, 1), engine
        assert (records_folder(plan.store) / "plan.json").read_bytes() == written
    assert summary.complete
    assert digest(plan.store) == digest(whole.store)


OPTIONS = (
    ("--workers", "2"),
    ("--engine", "processes"),
    ("--shard-index", "0", "--num-shards", "2"),
    ("--max-failures", "3"),
    ("--max-shard-seconds", "600"),
)


VERBS = {
    "sam-candidates": (sam_candidates, ()),
    "predict-teacher": (predict_teacher, ("--round", "1")),
    "refine-labels": (refine_labels, ("--round", "1")),
}


@pytest.mark.parametrize("name", VERBS)
def test_no_verb_refuses_what_was_made_by_other_workers(finished_run, small_config, tmp_path, name):
    verb, more = VERBS[name]
    run_dir = tmp_path / "run"
    shutil.copytree(finished_run[0], run_dir)
    before = digest(run_dir)
    for options in OPTIONS:
        arguments = ["--config", str(small_config), "--run-dir", str(run_dir), *more, *options]
        result = CliRunner().invoke(verb, arguments)
        assert result.exit_code == 0, result.stderr
        assert "0 done now" in result.stdout, options
    after = {name: value for name, value in digest(run_dir).items() if ".lock" not in name}
    assert after == before


@pytest.fixture
def noted(monkeypatch):
    """What was forced to the disk and what got a name, in order: (what, path) each."""
    events = []

    def noting(function, note):
        def noted(*arguments, **options):
            result = function(*arguments, **options)
            events.append(note(*arguments))
            return result

        return noted

    def opened(descriptor):
        return "sync", str(Path(f"/proc/self/fd/{descriptor}").readlink())

    for name, note in {
        "fsync": opened,
        "replace": lambda _source, target: ("named", str(target)),
        "rename": lambda _source, target: ("named", str(target)),
        "mkdir": lambda folder, _mode=0: ("named", str(folder)),
    }.items():
        monkeypatch.setattr(os, name, noting(getattr(os, name), note))
    return events


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc/self/fd")
@pytest.mark.parametrize("start", ["first", "part", "again"])
def test_a_shard_is_on_the_disk_before_its_record_and_that_before_it_counts(tmp_path, noted, start):
    """Else a power cut could leave the proof of a shard whose bytes, or names, are gone."""
    plan = null_plan(tmp_path)
    engine = Engine(name="static", part=Part(0, 1)) if start == "part" else None
    run_stage(plan, Slow(), engine=engine, made_by="squares")
    if start == "again":
        for shard in range(plan.num_shards):
            done_path(plan.store, shard).unlink()
        noted.clear()
        run_stage(plan, Slow(), made_by="squares")
    for shard in range(plan.num_shards):
        record = done_path(plan.store, shard)
        proven = noted.index(("named", str(record)))
        partial = f"{record.parent}/.{record.name}.{os.getpid()}.partial"
        assert ("sync", partial) in noted[:proven]
        assert ("sync", str(record.parent)) in noted[proven:]
        for name in read_done(plan.store, shard, plan.fingerprint).files:
            file = plan.store / name
            after = noted[last_naming(noted, file) : proven]
            assert ("sync", str(file)) in after, name
            for folder in file.parents[: len(Path(name).parts)]:  # up to the store
                assert ("sync", str(folder)) in after, f"{name}: the names in {folder}"
    first = noted.index(("named", str(done_path(plan.store, 0))))
    made = (plan.store, records_folder(plan.store), done_path(plan.store, 0).parent)
    for folder in () if start == "again" else made:
        assert ("sync", str(folder.parent)) in noted[last_naming(noted, folder) : first], folder


def last_naming(noted, path):
    """Give when a file or folder got its name, for the last time."""
    return max(i for i, event in enumerate(noted) if event == ("named", str(path)))


@pytest.mark.filterwarnings("ignore:Numcodecs codecs")
@pytest.mark.parametrize("filtered", [False, True], ids=["plain", "filtered"])
def test_the_memory_order_of_a_column_changes_no_byte(tmp_path, filtered):
    """Zarr's filters see the memory as it lies, and would store an F-ordered column transposed."""
    from zarr.codecs import numcodecs

    filters = [numcodecs.Delta(dtype="<i4")] if filtered else None
    specs = (
        ArraySpec(name="logit", dtype="int32", row_shape=(7, 5)),
        ArraySpec(name="box", dtype="int32", row_shape=(4,)),
    )
    rng = np.random.default_rng(0)
    columns = {spec.name: rng.integers(0, 999, (4, *spec.row_shape), np.int32) for spec in specs}
    entries = {}
    for order in ("C", "F"):
        store = tmp_path / order
        create_store(store, specs, num_rows=8, shard_rows=4, attributes={})
        for spec in specs:
            shape, chunks = (8, *spec.row_shape), (4, *spec.row_shape)
            zarr.create_array(
                store / spec.name, shape=shape, chunks=chunks, dtype=spec.dtype, filters=filters,
                overwrite=True,
            )  # fmt: skip
        ordered = {name: np.array(column, order=order) for name, column in columns.items()}
        entries[order] = write_shard(store, specs, 1, range(4, 8), ordered)
        for spec in specs:
            read = zarr.open_array(store / spec.name, mode="r")[4:]
            assert np.array_equal(read, columns[spec.name]), (order, spec.name)
    assert entries["F"] == entries["C"]


def test_goals_of_a_million_images_that_are_missed_are_named():
    good = {what: 0.99 * goal for what, (goal, _) in scale.GOALS.items()}
    assert scale.missed_goals(good) == []
    for what, (goal, unit) in scale.GOALS.items():
        for value in (goal, float("nan")):
            (line,) = scale.missed_goals({**good, what: value})
            assert line.startswith(
                f"goal missed: {what}: expected less than {goal:g} {unit}, found"
            )
