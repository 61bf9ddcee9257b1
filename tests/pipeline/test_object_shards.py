"""Shards in an object store: bytes as on a disk, whatever fails on the way."""

import functools
import hashlib
import json
import random
from contextlib import suppress
from dataclasses import dataclass

import cloudpickle
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from object_server import (
    DeathError,
    FailingMemory,
    holds_secret,
    make_bucket,
    objects,
    put,
    used_here,
)
from PIL import Image

from pipeline.audit import repair, verify, verify_store
from pipeline.errors import ItemError, StoreError
from pipeline.images import read_image
from pipeline.places import Place, delete, lengths_below, place, reaching, remove_tree
from pipeline.records import FailedItem, read_done, require_rows
from pipeline.runner import run_stage
from pipeline.shard_files import delete_shard, shard_files, write_shard
from pipeline.shard_task import run_shard
from pipeline.shards import ShardResult
from pipeline.store import PAYLOAD_CHUNK_BYTES, create_store
from tests.pipeline.null_stages import SPECS, Slow, columns_of, null_plan

STORE = "squares.zarr"
TROUBLES = {
    "slow down": OSError(16, "Slow Down"),
    "forbidden": PermissionError("Forbidden"),
    "time-out": TimeoutError("no answer"),
    "death": DeathError(),
}


def run(plan, work=None, **options):
    """Bring the store of squares to completion."""
    with reaching(plan.store):  # as every verb does
        return run_stage(plan, work or Slow(), made_by="squares", **options)


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    """The store as a run on a disk leaves it, and the fingerprints of its shards."""
    folder = tmp_path_factory.mktemp("disk")
    run(null_plan(folder))
    files = sorted(p for p in (folder / STORE).rglob("*") if p.is_file())
    return {f"{STORE}/{p.relative_to(folder / STORE).as_posix()}": p.read_bytes() for p in files}


@pytest.fixture
def run_dir(tmp_path):
    """A run directory in memory, without what the last case left."""
    found = place(f"memory://{tmp_path.name}/run")
    yield found
    remove_tree(found.parent)


def content(run_dir):
    """Give all objects of a run in memory."""
    start = run_dir.path + "/"
    store = MemoryFileSystem.store
    return {n[len(start) :]: store[n].getvalue() for n in list(store) if n.startswith(start)}


def stores(objects_):
    """Leave out what is not the store itself."""
    return {name: value for name, value in objects_.items() if name.startswith(STORE)}


def assert_proof_holds(plan):
    """Every shard with a done record is whole, by its hashes."""
    found = content(plan.store.parent)
    for shard in range(plan.num_shards):
        record = read_done(plan.store, shard, plan.fingerprint)
        for name, entry in record.files.items() if record else ():
            value = found.get(f"{STORE}/{name}", b"")
            assert hashlib.sha256(value).hexdigest() == entry["sha256"], (shard, name)


# -- bytes


def test_objects_are_the_files_of_a_disk(run_dir, on_disk):
    with FailingMemory():  # nothing is renamed, copied or linked
        summary = run(null_plan(run_dir))
    assert summary.complete
    assert stores(content(run_dir)) == on_disk
    assert not [name for name in content(run_dir) if "attempts" in name]


def test_a_written_shard_says_what_lies_there(run_dir):
    create_store(run_dir / STORE, SPECS, 60, 5, {})
    for shard in (1, 10, 11):
        rows = range(shard * 5, shard * 5 + 5)
        entries = write_shard(run_dir / STORE, SPECS, shard, rows, columns_of(rows))
        for name, entry in entries.items():
            value = content(run_dir / STORE)[name]
            assert entry == {"bytes": len(value), "sha256": hashlib.sha256(value).hexdigest()}
    before = lengths_below(run_dir / STORE)
    delete_shard(run_dir / STORE, SPECS, 1)  # not 10 and 11, which begin alike
    gone = before.keys() - lengths_below(run_dir / STORE).keys()
    assert gone == {"square/c/1", "row/c/1/0", "bytes/c/1/0"}


def test_a_shorter_payload_leaves_no_chunk_behind(run_dir):
    rows, path = range(5, 10), run_dir / STORE
    create_store(path, SPECS, 23, 5, {})
    long = columns_of(rows) | {"bytes": np.ones(2 * PAYLOAD_CHUNK_BYTES + 1, np.uint8)}
    neighbour = write_shard(
        path, SPECS, 0, range(5), columns_of(range(5)) | {"bytes": long["bytes"]}
    )
    assert len(write_shard(path, SPECS, 1, rows, long)) == 5
    short = write_shard(path, SPECS, 1, rows, columns_of(rows))
    assert len(short) == 3
    assert {str(f.path) for f in shard_files(path, SPECS, 1)} == {f"{path.path}/{n}" for n in short}
    assert neighbour.keys() <= lengths_below(path).keys()


def test_a_real_server_holds_the_files_of_a_disk(tmp_path, on_disk):
    with used_here(tmp_path / "cache") as server:
        bucket = make_bucket()
        run_dir = place(f"s3://{bucket}/run")
        began = len(server.log)
        run(null_plan(run_dir))
        log = server.since(began)
        assert stores(objects(bucket, "run")) == on_disk
        assert not [str(request) for request in log if request.copies]
        buckets = [r for r in log if "/" not in r.key and r.method in ("PUT", "DELETE")]
        assert buckets == []


# -- requests: milliseconds each, a hundred thousand times


def requests_of(run_dir, function):
    """Count the requests of a call on a real server, by method."""
    from object_server import object_server

    began = len(object_server().log)
    function()
    return [str(request) for request in object_server().since(began)]


def test_a_shard_costs_few_requests_and_a_finished_stage_costs_none_per_shard(tmp_path):
    with used_here(tmp_path / "cache"):
        run_dir = place(f"s3://{make_bucket()}/run")
        few, many = (null_plan(run_dir / name, num_items=n) for name, n in (("a", 10), ("b", 60)))
        first = requests_of(run_dir, lambda: run(few))
        second = requests_of(run_dir, lambda: run(many))
        per_shard = (len(second) - len(first)) / 10
        assert per_shard <= 20, requests_of(run_dir, lambda: run_shard(many, Slow(), 3))
        again = [requests_of(run_dir, lambda p=p: run(p)) for p in (few, many)]
        extra = len(again[1]) - len(again[0])
        assert extra <= 10  # a record each, many at a time, and no request for the files
        listings = [
            r for r in again[1] if "list-type" in r and "prefix=run%2Fb%2Fsquares.zarr" in r
        ]
        assert len(listings) <= 10


# -- trouble


@pytest.mark.parametrize("kind", list(TROUBLES))
def test_after_any_failing_request_nothing_wrong_is_proven_and_the_rest_is_made(
    run_dir, on_disk, kind
):
    """Let the k-th request fail, for every k: then run again."""
    plan = null_plan(run_dir, num_items=8, shard_size=5)
    with FailingMemory() as counted:
        run(plan)
    expected, failures = stores(content(run_dir)), 0
    for at in range(0, counted.count, 1 if kind in ("slow down", "death") else 3):
        remove_tree(run_dir)
        with FailingMemory(at, TROUBLES[kind]) as memory:
            failures += 1
            with suppress(StoreError, DeathError):
                run(plan)
                failures -= 1
        assert memory.failed
        assert_proof_holds(plan)
        assert run(plan).complete
        assert stores(content(run_dir)) == expected, memory.asked[at]
    assert failures > 10


@pytest.mark.parametrize("kind", list(TROUBLES))
@pytest.mark.parametrize("what", ["run", "repair", "verify", "require"])
def test_what_is_done_survives_any_failing_request(run_dir, kind, what):
    """A store that cannot be reached for a moment must not be taken for a damaged one."""
    plan = null_plan(run_dir, num_items=8, shard_size=5)
    run(plan)
    calls = {
        "run": lambda: run(plan),
        "repair": lambda: repair(plan.store),
        "verify": lambda: verify(plan.store),
        "require": lambda: require_rows(plan.store, "squares"),
    }
    whole = content(run_dir)
    with FailingMemory() as counted:
        found = calls[what]()
    assert what != "repair" or found == []
    for at in range(counted.count):
        remove_tree(run_dir / ".lock")  # of the one that died: this process lives on
        with FailingMemory(at, TROUBLES[kind]) as memory:
            try:
                result = calls[what]()
                if what == "verify":
                    assert {state.state for state in result} == {"done"}, memory.asked[at]
            except (StoreError, OSError, DeathError):
                pass
        left = {n: v for n, v in content(run_dir).items() if not n.startswith(".lock")}
        assert left == {n: v for n, v in whole.items() if not n.startswith(".lock")}, memory.asked[
            at
        ]


def test_an_image_that_cannot_be_fetched_is_no_failed_item(run_dir):
    from io import BytesIO

    buffer = BytesIO()
    Image.new("RGB", (6, 4), (1, 2, 3)).save(buffer, "PNG")
    (run_dir / "a.png").write_bytes(buffer.getvalue())
    (run_dir / "empty.png").write_bytes(b"")
    (run_dir / "cut.png").write_bytes(buffer.getvalue()[:40])
    assert read_image(run_dir / "a.png", canvas=None).shape == (4, 6, 3)
    for name in ("none.png", "empty.png", "cut.png"):
        with pytest.raises(ItemError, match=name):
            read_image(run_dir / name, canvas=None)
    for error in (OSError(16, "Slow Down"), PermissionError("Forbidden"), TimeoutError()):
        with FailingMemory(0, error), pytest.raises(type(error)) as raised:
            read_image(run_dir / "a.png", canvas=None)
        assert raised.value is error


def test_force_makes_a_store_anew(run_dir):
    run(null_plan(run_dir, decides={"power": 2}))
    other = null_plan(run_dir, decides={"power": 3}, num_items=8)
    with pytest.raises(StoreError, match="made otherwise"):
        run(other)
    assert run(other, replace="always").complete
    assert sorted(n for n in content(run_dir) if "/done/" in n) == [
        "squares.stage/done/00000.json", "squares.stage/done/00001.json",
    ]  # fmt: skip
    assert not [name for name in content(run_dir) if "/c/4" in name]


# -- damage


def flip(value, rng):
    """Flip one bit."""
    changed = bytearray(value)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


DAMAGE = {
    "flipped bit": flip,
    "cut": lambda value, rng: value[: rng.randrange(len(value))],
    "emptied": lambda _value, _rng: b"",
    "deleted": lambda _value, _rng: None,
}


@pytest.mark.parametrize("kind", list(DAMAGE))
def test_damage_of_any_object_is_found_and_mended(run_dir, kind):
    rng = random.Random(f"{kind}")
    plan = null_plan(run_dir, num_items=8, shard_size=5)
    run(plan)
    whole = content(run_dir)
    names = sorted(name for name in whole if name.startswith("squares."))
    assert len(names) == 4 + 6 + 3
    for name in names:
        changed = DAMAGE[kind](whole[name], rng)
        if changed is None:
            delete(run_dir / name)
        else:
            (run_dir / name).write_bytes(changed)
        assert verify_store(plan.store).problems, name
        if kind != "deleted":  # a shard without a record is not done, which is no damage
            assert verify_store(plan.store).damaged, name
        if not (kind == "deleted" and name.endswith("plan.json")):
            repair(plan.store)
        assert run(plan).complete
        assert stores(content(run_dir)) == stores(whole), name
        assert not verify_store(plan.store).problems, name


def test_damage_on_a_real_server_is_found_and_mended(tmp_path):
    rng = random.Random(5)
    with used_here(tmp_path / "cache"):
        bucket = make_bucket()
        plan = null_plan(place(f"s3://{bucket}/run"))
        run(plan)
        whole = objects(bucket, "run")
        hurt = dict(
            zip(("square/c/0", "row/c/1/0", "bytes/c/2/0", "square/c/3"), DAMAGE, strict=True)
        )
        for name, kind in hurt.items():
            put(bucket, f"run/{STORE}/{name}", DAMAGE[kind](whole[f"{STORE}/{name}"], rng))
        put(bucket, "run/squares.stage/done/00004.json", b"")
        found = {problem.what for problem in verify_store(plan.store).problems}
        assert found == {f"shard {shard}" for shard in range(5)}
        assert {state.shard for state in repair(plan.store)} == set(range(5))
        assert run(plan).complete
        assert stores(objects(bucket, "run")) == stores(whole)
        assert not verify_store(plan.store).problems


# -- credentials


def test_what_travels_to_workers_and_stays_in_the_store_holds_no_credential(tmp_path):
    with used_here(tmp_path / "cache"):
        bucket = make_bucket()
        plan = null_plan(place(f"s3://{bucket}/run"))
        run(plan, Slow(failing=(3,)))
        task = cloudpickle.dumps(functools.partial(run_shard, plan, Slow()))
        assert not holds_secret(task)
        found = objects(bucket, "run")
        assert len(found) > 20
        assert not [name for name, value in found.items() if holds_secret(value)]
        assert json.loads(found["squares.stage/done/00000.json"])["failures"]


@pytest.mark.parametrize("answer", ["403 Forbidden", "drop"])
def test_a_server_in_trouble_is_one_line_without_credentials(tmp_path, answer):
    from pipeline.places import redacted

    with used_here(tmp_path / "cache") as server:
        bucket = make_bucket()
        plan = null_plan(place(f"s3://{bucket}/run"))
        server.trouble = lambda method, key: answer if "/row/" in key and method == "PUT" else None
        with pytest.raises(StoreError, match="check address, credentials and rights") as error:
            run(plan)
        assert "\n" not in str(error.value)
        assert not holds_secret(redacted(str(error.value)))
        assert not [name for name in objects(bucket, "run") if "/done/" in name]
        server.trouble = lambda _method, _key: None
        assert run(plan).complete


@dataclass(frozen=True)
class Reads:
    """Needs an object; an item can be left out."""

    run_dir: Place

    def __call__(self, rows: range) -> ShardResult:
        (self.run_dir / "input").read_bytes()
        return ShardResult(columns=columns_of(rows))

    def failed_row(self, row: int, reason: str) -> ShardResult:
        failure = FailedItem(item=str(row), reason=reason)
        return ShardResult(columns=columns_of(range(row, row + 1)), failures=(failure,))


@pytest.mark.parametrize("tried", [0, 3])
def test_trouble_with_the_server_is_never_the_fault_of_an_item(tmp_path, tried):
    """However often, and also where the items of a shard are isolated."""
    with used_here(tmp_path / "cache") as server:
        bucket = make_bucket()
        run_dir = place(f"s3://{bucket}/run")
        put(bucket, "run/input", b"x")
        plan = null_plan(run_dir, num_items=2, shard_size=2)
        attempts = {"shard": tried, "items": {}}
        server.trouble = lambda _method, key: "503 Slow Down" if key.endswith("input") else None
        for _ in range(4 - tried):
            if tried:
                put(bucket, "run/squares.stage/attempts/00000.json", json.dumps(attempts).encode())
            with pytest.raises(StoreError, match="cannot be used"):
                run(plan, Reads(run_dir))
        server.trouble = lambda _method, _key: None
        assert run(plan, Reads(run_dir)).failures == ()
