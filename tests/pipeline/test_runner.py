"""A stage is resumable, refuses other configs, and does not depend on how it is run."""

import dataclasses
import hashlib
import itertools
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from pipeline.audit import repair, verify, verify_store
from pipeline.budget import parse_budget
from pipeline.engines import Engine
from pipeline.errors import StoreError
from pipeline.locks import Part
from pipeline.records import (
    FailedItem,
    Plan,
    done_path,
    read_done,
    records_folder,
    require_rows,
    write_done,
)
from pipeline.run_contents import describe, read_arrays
from pipeline.runner import ShardResult, run_stage
from pipeline.shard_task import run_shard
from pipeline.shards import join_results
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
            raise StoreError("exploded")
        return Squares()(rows)


def test_resuming_after_a_crash_gives_the_same_bytes(tmp_path):
    run(tmp_path / "whole", plan_=plan(tmp_path / "whole"))
    part = plan(tmp_path / "part")
    with pytest.raises(StoreError, match="exploded"):
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
    with pytest.raises(StoreError, match="exploded"):
        run(tmp_path, plan_=other, work=Explode(), replace="differing")
    assert digest(tmp_path / "squares.zarr") == before
    assert run(tmp_path).shards_done_now == 0
    with pytest.raises(StoreError, match="exploded"):  # this one made a shard: it is kept
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


@pytest.mark.parametrize("content", [None, b"{", b'{"fingerprint": 3}'])
def test_a_lost_or_damaged_plan_is_written_anew_by_what_the_shards_prove(tmp_path, content):
    run(tmp_path)
    store = tmp_path / "squares.zarr"
    path = records_folder(store) / "plan.json"
    whole, files = path.read_bytes(), digest(store)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    assert run(tmp_path).shards_done_now == 0
    assert path.read_bytes() == whole
    path.unlink()
    other = plan(tmp_path, decides={"power": 3})  # which the shards are not of
    with pytest.raises(StoreError, match=r"holds shards, but .* no plan .* add --force"):
        run(tmp_path, plan_=other)
    assert digest(store) == files
    assert run(tmp_path, plan_=other, replace="always").shards_done_now == 5
    assert digest(store) == files  # the null model knows no power


def test_a_flipped_bit_in_a_plan_is_damage(tmp_path):
    run(tmp_path)
    store = tmp_path / "squares.zarr"
    path = records_folder(store) / "plan.json"
    whole = path.read_bytes()
    for position in [*range(8 * 90), *range(720, 8 * len(whole), 97)]:
        content = bytearray(whole)
        content[position // 8] ^= 1 << position % 8
        path.write_bytes(bytes(content))
        assert verify_store(store).damaged, position
    assert [state.state for state in repair(store)] == ["damaged"]
    assert run(tmp_path).shards_done_now == 0
    assert path.read_bytes() == whole


def test_no_items_is_a_complete_stage(tmp_path):
    summary = run(tmp_path, plan_=plan(tmp_path, num_items=0))
    assert summary.complete
    assert require_rows(tmp_path / "squares.zarr", "squares")


def test_the_done_record_says_what_was_done(tmp_path):
    run(tmp_path)
    record = json.loads(done_path(tmp_path / "squares.zarr", 1).read_text())
    assert (record["start"], record["stop"]) == (5, 10)
    assert record["failures"] == [{"item": "7", "reason": "broken"}]
    assert set(record["files"]) == {"square/c/1", "row/c/1/0", "bytes/c/1/0"}
    assert next(iter(record)) == "check"
    others = {
        "PIL": "pillow", "pycocotools": "pycocotools", "scipy": "scipy", "skimage": "scikit-image",
        "torch": "torch", "segment_anything": "segment-anything", "transformers": "transformers",
    }  # fmt: skip
    loaded = {name for module, name in others.items() if module in sys.modules}
    device = {"device"} if "torch" in loaded else set()
    assert set(record["versions"]) == {"python", "numpy", "zarr", "numcodecs"} | loaded | device


@pytest.mark.parametrize("load", ["import torch", "pass"])
def test_the_done_record_says_on_what_it_was_computed(load):
    code = f"""if True:
        {load}
        import json
        from pipeline.records import versions
        print(json.dumps([versions(), versions(here=False)]))
    """
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, check=True, capture_output=True, text=True)
    here, elsewhere = json.loads(ended.stdout)
    assert "device" not in elsewhere
    assert ("device" in here) == ("torch" in here) == (load != "pass")
    if "device" in here:
        torch = pytest.importorskip("torch")
        assert here["device"] == f"cpu {torch.backends.cpu.get_cpu_capability()}"


def test_a_store_says_with_what_it_was_made(tmp_path):
    run(tmp_path)
    store = tmp_path / "squares.zarr"
    record = read_done(store, 1, plan(tmp_path).fingerprint)
    changed = {**record.versions, "zarr": "0.1", "device": "NVIDIA H200"}
    write_done(store, dataclasses.replace(record, versions=changed))
    made_with = describe(store)["made with"]
    assert f"zarr 0.1 (shards: 1) / {record.versions['zarr']} (shards: 4)" in made_with
    assert f"python {record.versions['python']}" in made_with
    assert "NVIDIA H200" in made_with


def test_a_record_of_before_hashes_and_attempts_still_counts(tmp_path):
    run(tmp_path)
    store = tmp_path / "squares.zarr"
    for path in [*records_folder(store).glob("done/*"), records_folder(store) / "plan.json"]:
        document = json.loads(path.read_text())
        for name in ("check", "attempts"):
            document.pop(name, None)
        path.write_text(json.dumps(document, indent=1, sort_keys=True))
    assert run(tmp_path, work=Explode()).shards_done_before == 5
    assert not verify_store(store).problems


@pytest.mark.parametrize("position", [*range(3, 700, 47), *range(700, 4000, 211)])
def test_a_flipped_bit_in_a_done_record_is_found_and_mended(tmp_path, position):
    run(tmp_path)
    store = tmp_path / "squares.zarr"
    path = done_path(store, 1)
    content = bytearray(path.read_bytes())
    content[position // 8 % len(content)] ^= 1 << position % 8
    path.write_bytes(bytes(content))
    assert [(state.shard, state.state) for state in repair(store)] == [(1, "damaged")]
    assert run(tmp_path).shards_done_now == 1


@dataclass(frozen=True)
class Failing:
    """Every item from `first` on fails, in its own way."""

    first: int

    def __call__(self, rows: range) -> ShardResult:
        result = Squares(broken=None)(rows)
        failures = tuple(FailedItem(item=str(i), reason="bad") for i in rows if i >= self.first)
        return ShardResult(columns=result.columns, failures=failures)


@pytest.mark.parametrize(("budget", "allowed"), [("3", 3), ("50%", 11), ("0", 0), ("0%", 0)])
def test_more_failed_items_than_the_budget_stop_the_stage(tmp_path, budget, allowed):
    engine = Engine(max_failures=parse_budget(budget))
    first = 23 - allowed
    assert len(run(tmp_path, work=Failing(first), engine=engine).failures) == allowed
    part = plan(tmp_path / "more")
    with pytest.raises(StoreError, match=rf"items failed, more than --max-failures {budget}"):
        run(tmp_path, plan_=part, work=Failing(0), engine=engine)
    done = len(list(records_folder(part.store).glob("done/*.json")))
    assert done == allowed // 5 + 1  # no shard more than it took to know
    with pytest.raises(StoreError, match="more than --max-failures"):  # a second time, at once
        run(tmp_path, plan_=part, work=Explode(), engine=engine)
    assert len(run(tmp_path, plan_=part, work=Failing(0)).failures) == 23


@pytest.mark.parametrize("text", ["", "-1", "1.5", "101%", "x%", "3 %%", "%"])
def test_a_budget_is_a_number_or_a_share(text):
    with pytest.raises(ValueError, match="expected a number of items or 0% to 100%"):
        parse_budget(text)


def test_items_that_are_tried_again_are_counted(tmp_path):
    run(tmp_path)
    store = tmp_path / "squares.zarr"
    for attempts in (2, 3):
        repair(store, failed=True)
        run(tmp_path)
        assert json.loads(done_path(store, 1).read_text())["attempts"] == {"7": attempts}
    repair(store, failed=True)
    run(tmp_path, work=Squares(broken=None))  # now alone in its process; it has healed
    assert json.loads(done_path(store, 1).read_text())["attempts"] == {}
    assert not list(records_folder(store).glob("attempts/*"))


def test_a_worker_of_a_replaced_plan_deletes_no_proof(tmp_path):
    run(tmp_path, plan_=plan(tmp_path, decides={"power": 3}))
    with pytest.raises(StoreError, match="made otherwise"):
        run_shard(plan(tmp_path), Squares(), 0)
    assert done_path(tmp_path / "squares.zarr", 0).exists()


@dataclass(frozen=True)
class Two:
    """Ragged bytes per row, with offsets, as candidates have them."""

    def __call__(self, rows: range) -> ShardResult:
        lengths = np.array(rows, np.int64) % 4
        return ShardResult(
            columns={
                "bytes": np.concatenate([np.full(n, n, np.uint8) for n in lengths]),
                "bytes_offset": np.cumsum([0, *lengths[:-1]]),
            },
            counters={"bytes": float(lengths.sum())},
        )


@pytest.mark.parametrize("cuts", [(10,), (1, 2, 3), (13, 14)])
def test_pieces_of_a_shard_are_the_shard(cuts):
    specs = (
        ArraySpec(name="bytes", dtype="uint8", payload=True),
        ArraySpec(name="bytes_offset", dtype="int64"),
    )
    edges = [0, *cuts, 16]
    pieces = [Two()(range(a, b)) for a, b in itertools.pairwise(edges)]
    joined, whole = join_results(specs, pieces), Two()(range(16))
    for name, column in whole.columns.items():
        assert np.array_equal(joined.columns[name], column), name
    assert joined.counters == whole.counters


def test_a_damaged_plan_does_not_hide_damaged_shards(tmp_path):
    run(tmp_path)
    store = tmp_path / "squares.zarr"
    whole = digest(store)
    (records_folder(store) / "plan.json").write_text("{")
    victim = store / "row" / "c" / "3" / "0"
    content = bytearray(victim.read_bytes())
    content[9] ^= 1
    victim.write_bytes(bytes(content))
    done_path(store, 1).write_text("{")
    assert [state.shard for state in repair(store)] == [-1, 1, 3]
    assert run(tmp_path).shards_done_now == 2
    assert digest(store) == whole


def test_arrays_are_told_of_only_where_nothing_else_differs(tmp_path):
    wider = (SPECS[0], dataclasses.replace(SPECS[1], row_shape=(32,)), SPECS[2])
    run_stage(plan(tmp_path), Squares(), made_by="squares")
    with pytest.raises(StoreError, match=r"\(power: 2, now 3\)"):
        run_stage(plan(tmp_path, specs=wider, decides={"power": 3}), Squares(), made_by="squares")
    with pytest.raises(StoreError, match=r"\(arrays\[1\]\.row_shape\[0\]: 16, now 32\)"):
        run_stage(plan(tmp_path, specs=wider), Squares(), made_by="squares")


def test_force_of_one_part_says_what_to_delete_instead(tmp_path):
    first = plan(tmp_path)
    run_stage(first, Squares(), made_by="squares")
    before = digest(first.store)
    engine = Engine(name="static", part=Part(0, 2))
    with pytest.raises(StoreError) as caught:
        run_stage(first, Squares(), engine=engine, replace="always", made_by="squares")
    for folder in ("squares.zarr", "squares.stage"):
        assert f"{tmp_path / folder}" in str(caught.value)
    assert "start the parts of 'squares' without --force" in str(caught.value)
    assert digest(first.store) == before
    shutil.rmtree(first.store)  # what it says
    shutil.rmtree(records_folder(first.store))
    for index in (0, 1):
        part = Engine(name="static", part=Part(index, 2))
        summary = run_stage(first, Squares(), engine=part, made_by="squares")
    assert summary.complete
    assert digest(first.store) == before


def test_a_payload_is_described_as_ragged_not_by_what_it_declares(tmp_path):
    run_stage(plan(tmp_path), Squares(), made_by="squares")
    shapes = {row[0]: row[2] for row in describe(tmp_path / "squares.zarr")["arrays"]}
    assert shapes == {"square": "23", "row": "23x16", "bytes": "5 x ragged"}


def test_a_folder_of_stores_is_not_taken_for_one(tmp_path):
    run_stage(plan(tmp_path), Squares(), made_by="squares")
    with pytest.raises(StoreError, match=r"found a folder with 1 of them; give .*squares\.zarr"):
        read_arrays(tmp_path)
    with pytest.raises(StoreError, match="no readable Zarr group"):
        read_arrays(tmp_path / "elsewhere")
