"""Halves of files that killed writers leave: gone when a stage ends, not looked for per shard."""

import functools
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.engines import Engine
from pipeline.errors import StoreError
from pipeline.locks import Part
from pipeline.records import done_path
from pipeline.runner import run_stage
from pipeline.shards import ShardResult
from tests.pipeline.null_stages import Slow, columns_of, digest, null_plan


def leave(plan, shard):
    """Leave what a writer of a shard leaves that is killed while zarr has its file half written."""
    path = plan.store / "square" / "c" / f"{shard}.0123456789abcdef.partial"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"half")
    return path


def left_in(store):
    return sorted(path.name.split(".")[0] for path in store.rglob("*.partial"))


@pytest.fixture
def whole(tmp_path):
    """The digest of an undisturbed run."""
    plan = null_plan(tmp_path / "whole")
    run_stage(plan, Slow(), made_by="squares")
    return digest(plan.store)


def test_what_the_last_start_left_is_gone_whether_its_shard_is_done_or_not(tmp_path, whole):
    plan = null_plan(tmp_path)
    run_stage(plan, Slow(), limit=10, made_by="squares")
    left = [leave(plan, shard) for shard in (0, 3)]
    run_stage(plan, Slow(), limit=10, made_by="squares")
    assert not any(path.exists() for path in left)
    run_stage(plan, Slow(), made_by="squares")
    assert digest(plan.store) == whole


@dataclass(frozen=True)
class Leaving:
    """Leave half a file of each shard before it is written, as one whose worker was lost."""

    folder: Path

    def __call__(self, rows: range) -> ShardResult:
        plan = null_plan(self.folder)
        leave(plan, rows.start // plan.shard_size)
        return ShardResult(columns=columns_of(rows))


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.dask)])
def test_what_workers_leave_that_are_lost_on_the_way_is_gone_at_the_end(tmp_path, whole, workers):
    plan = null_plan(tmp_path)
    run_stage(plan, Leaving(tmp_path), engine=Engine(workers=workers), made_by="squares")
    assert left_in(plan.store) == []
    assert digest(plan.store) == whole


def test_a_part_leaves_what_others_may_be_writing(tmp_path, whole):
    plan = null_plan(tmp_path)
    parts = [Engine(name="static", part=Part(index, 2)) for index in range(2)]
    run_stage(plan, Slow(), engine=parts[0], made_by="squares")
    for shard in (0, 1, 3, 4):
        leave(plan, shard)
    run_stage(plan, Slow(), engine=parts[0], made_by="squares")
    assert left_in(plan.store) == ["1", "3"]
    run_stage(plan, Slow(), engine=parts[1], made_by="squares")
    assert digest(plan.store) == whole


@dataclass(frozen=True)
class Refusing:
    """Leave half a file of the first shard, do it, and refuse the others."""

    folder: Path

    def __call__(self, rows: range) -> ShardResult:
        if rows.start:
            raise StoreError("refused")
        return Leaving(self.folder)(rows)


def test_what_a_refused_stage_leaves_is_gone_after_the_next(tmp_path, whole):
    plan = null_plan(tmp_path)
    with pytest.raises(StoreError, match="refused"):
        run_stage(plan, Refusing(tmp_path), made_by="squares")
    leave(plan, 1)
    run_stage(plan, Slow(), made_by="squares")
    assert digest(plan.store) == whole


def test_names_that_are_no_halves_stay(tmp_path):
    plan = null_plan(tmp_path)
    run_stage(plan, Slow(), made_by="squares")
    folder = plan.store / "square" / "c"
    for name in ("notes.partial", "0.partial.txt", "x0.abc.partial"):
        (folder / name).write_text("mine")
    run_stage(plan, Slow(), made_by="squares")
    assert {"notes.partial", "0.partial.txt", "x0.abc.partial"} <= {
        path.name for path in folder.iterdir()
    }


@functools.cache
def note_listings() -> list[list[str]]:
    """Have this process note what it lists; such a hook cannot be taken away, so it is one."""
    notes: list[list[str]] = []

    def note(event, arguments):
        if notes and event in ("os.listdir", "os.scandir"):
            notes[0].append(str(arguments[0]))

    sys.addaudithook(note)
    return notes


@pytest.fixture
def listed():
    """The folders that this process lists from now on."""
    notes = note_listings()
    notes.append([])
    yield notes[0]
    notes.clear()


@pytest.mark.parametrize("start", ["first", "again"])
def test_no_folder_that_grows_with_the_shards_is_listed_for_every_shard(tmp_path, listed, start):
    """At a million shards, listing one folder takes longer than writing a shard."""
    counts = []
    for num_shards in (3, 9):
        plan = null_plan(tmp_path / f"{num_shards}", num_items=5 * num_shards)
        if start == "again":
            run_stage(plan, Slow(), made_by="squares")
            for shard in range(num_shards):
                done_path(plan.store, shard).unlink()
        listed.clear()
        summary = run_stage(plan, Slow(), made_by="squares")
        assert summary.shards_done_now == num_shards
        grows = [path for path in listed if Path(path).name in ("c", "done", "attempts")]
        counts.append(len(grows))
    assert counts[0] == counts[1] > 0
