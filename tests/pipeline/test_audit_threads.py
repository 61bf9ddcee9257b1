"""Verification and repair in threads: the same report, in bounds, whatever breaks on the way."""

import functools
import itertools
import json
import os
import signal
import sys
import threading
import time
from contextlib import closing, suppress

import pytest
from click.testing import CliRunner
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from object_server import (
    DeathError,
    FailingMemory,
    make_bucket,
    objects,
    put,
    start,
    used_here,
)

from pipeline import shard_audit
from pipeline.audit import repair, verify, verify_store
from pipeline.cli import inspect_shards
from pipeline.errors import StoreError
from pipeline.in_threads import default_threads, for_each, in_order
from pipeline.json_files import read_checked, write_checked
from pipeline.places import delete, is_local, place, reaching, relative_name, remove_tree
from pipeline.records import done_path, records_folder
from pipeline.runner import run_stage
from tests.pipeline.null_stages import Slow, null_plan

NUM_SHARDS = 12
THREADS = (1, 2, 8)


def run(plan, work=None):
    with reaching(plan.store):
        return run_stage(plan, work or Slow(), made_by="squares")


def plan_of(folder):
    return null_plan(folder, num_items=5 * NUM_SHARDS)


@functools.cache
def content_of_run(failing=()):
    """Make the run once, in memory; give its files."""
    run_dir = place("memory://made/run")
    run(plan_of(run_dir), Slow(failing=failing))
    found = content(run_dir)
    remove_tree(run_dir.parent)
    return found


def content(run_dir):
    """Give all objects of a run in memory but its lock's."""
    start = run_dir.path + "/"
    kept = {n[len(start) :]: v for n, v in MemoryFileSystem.store.items() if n.startswith(start)}
    return {name: v.getvalue() for name, v in kept.items() if not name.startswith(".lock")}


def made(run_dir, failing=()):
    """Put the run into a place without the requests that this would cost; give its plan."""
    for name, value in content_of_run(failing).items():
        if is_local(run_dir):
            (run_dir / name).parent.mkdir(parents=True, exist_ok=True)
            (run_dir / name).write_bytes(value)
        elif run_dir.protocol == "memory":
            run_dir.fs.pipe_file(f"{run_dir.path}/{name}", value)
        else:
            put(*f"{run_dir.path}/{name}".split("/", 1), value)
    return plan_of(run_dir)


# -- threads


@settings(max_examples=25)
@given(
    st.lists(st.integers(0, 3), max_size=30),
    st.sampled_from((1, 2, 3, 8)),
)
def test_results_come_in_the_order_of_the_items(waits, threads):
    def work(numbered):
        time.sleep(numbered[1] / 2000)
        return numbered

    items = list(enumerate(waits))
    assert list(in_order(work, iter(items), threads)) == items


@pytest.mark.parametrize("threads", [2, 5])
def test_no_more_is_in_flight_than_there_are_threads(threads):
    lock, running, most, taken, given_ = threading.Lock(), 0, 0, 0, 0
    ahead = 0

    def items():
        nonlocal taken
        for item in itertools.count():  # without end: never all of them are taken
            taken += 1
            yield item

    def work(item):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.002 if item % 7 else 0.01)
        with lock:
            running -= 1
        return item

    before = threading.active_count()
    with closing(in_order(work, items(), threads)) as results:
        for result in itertools.islice(results, 200):
            assert result == given_
            given_ += 1
            ahead = max(ahead, taken - given_)
    assert most == threads
    assert threads <= ahead <= 4 * threads
    wait_until(lambda: threading.active_count() <= before)


def wait_until(condition):
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    assert condition()


@pytest.mark.parametrize("threads", THREADS)
def test_an_error_comes_when_its_turn_has_come_and_what_waits_is_not_begun(threads):
    begun, seen = [], []

    def work(item):
        begun.append(item)
        time.sleep(0.02 if item == 5 else 0.001)
        if item >= 5:
            raise ValueError(f"item {item}")
        return item

    def consume():
        for result in in_order(work, range(10_000), threads):
            seen.append(result)  # noqa: PERF402 - what came before the error is kept

    with pytest.raises(ValueError, match="item 5"):
        consume()
    assert seen == [0, 1, 2, 3, 4]
    time.sleep(0.05)
    assert len(begun) <= 5 + 4 * threads


def test_what_hangs_does_not_hold_up_the_end():
    release, begun = threading.Event(), []

    def work(item):
        begun.append(item)
        if item == 3:
            release.wait(60)
        return item

    def interrupted():
        with closing(in_order(work, itertools.count(), 2)) as results:
            for result in results:
                if result == 2:
                    raise KeyboardInterrupt

    before, began = threading.active_count(), time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - began < 5
    last = max(begun)
    release.set()
    wait_until(lambda: threading.active_count() <= before)
    assert max(begun) <= last + 1


def test_for_each_does_all_and_tells_the_first_error():
    done = []
    for_each(done.append, range(100), 3)
    assert sorted(done) == list(range(100))
    with pytest.raises(ZeroDivisionError):
        for_each(lambda item: 1 // (50 - item), range(100), 3)


def test_a_disk_takes_a_thread_per_core_and_an_object_store_eight(tmp_path):
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert default_threads(tmp_path) == min(8, cores)
    assert default_threads(place("memory://anywhere/run")) == 8


# -- the same report, wherever the store lies


@pytest.fixture(params=["disk", "memory", "S3"])
def run_dir(request, tmp_path):
    """A run directory on a disk, in memory, or on a real server."""
    if request.param == "disk":
        yield tmp_path / "run"
    elif request.param == "memory":
        found = place(f"memory://{tmp_path.name}/run")
        yield found
        remove_tree(found.parent)
    else:
        with used_here(tmp_path / "cache"):
            yield place(f"s3://{make_bucket()}/run")


def flip(content):
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 4
    return bytes(changed)


def altered(**changes):
    """Rewrite a done record, its hash included."""

    def alter(file):
        write_checked(file, {**read_checked(file), **changes})

    return alter


def rewrite(change):
    """Change the content of a file."""

    def alter(file):
        content = file.read_bytes()
        file.write_bytes(change(content))

    return alter


UNREADABLE = "done record unreadable or of another plan"
RECORD = "squares.stage/done/{:05d}.json"
DAMAGE = {
    1: ("squares.zarr/square/c/1", rewrite(flip), "square/c/1: sha256 differs"),
    2: ("squares.zarr/row/c/2/0", rewrite(lambda c: c[:-3]), "row/c/2/0: length differs"),
    3: ("squares.zarr/bytes/c/3/0", delete, "cannot be read back"),
    4: ("squares.zarr/square/c/4", rewrite(lambda _: b""), "square/c/4: length differs"),
    5: (RECORD.format(5), rewrite(flip), UNREADABLE),
    6: (RECORD.format(6), rewrite(lambda _: b""), UNREADABLE),
    7: (RECORD.format(7), altered(fingerprint="0" * 64), UNREADABLE),
    8: (RECORD.format(8), delete, "no done record"),
}
"""By shard: what is damaged, how, and what is said of it."""


def hurt(run_dir):
    for name, damage, _ in DAMAGE.values():
        damage(run_dir / name)


@pytest.fixture
def damaged(run_dir):
    """A store of which eight shards of twelve are damaged or missing."""
    plan = made(run_dir)
    hurt(run_dir)
    return plan


def files_of(folder):
    """List the files of a run in any place."""
    if is_local(folder):
        names = {relative_name(p, folder) for p in folder.rglob("*") if p.is_file()}
    else:
        names = {name[len(folder.path) + 1 :] for name in folder.fs.find(folder.path)}
    return {name for name in names if ".lock" not in name}


def test_the_report_does_not_depend_on_the_number_of_threads(damaged):
    reports = [verify_store(damaged.store, threads) for threads in THREADS]
    assert reports[0] == reports[1] == reports[2]
    assert reports[0].intact == NUM_SHARDS - len(DAMAGE)
    assert reports[0].total == NUM_SHARDS
    assert [problem.what for problem in reports[0].problems] == [f"shard {n}" for n in DAMAGE]
    for problem, (shard, (_, _, reason)) in zip(reports[0].problems, DAMAGE.items(), strict=True):
        assert reason in problem.reason
        assert problem.state == ("missing" if shard == 8 else "damaged")
    states = verify(damaged.store)
    assert [state.shard for state in states] == list(range(NUM_SHARDS))


def test_repair_deletes_what_is_damaged_and_nothing_else(damaged):
    run_dir = damaged.store.parent
    before = files_of(run_dir)
    removed = repair(damaged.store, threads=8)
    assert [state.shard for state in removed] == [1, 2, 3, 4, 5, 6, 7]
    gone = before - files_of(run_dir)
    expected = {RECORD.format(shard) for shard in (1, 2, 3, 4, 5, 6, 7)}
    for shard in (1, 2, 3, 4, 7):  # the files of 5 and 6 nobody names any more
        chunks = (f"square/c/{shard}", f"row/c/{shard}/0", f"bytes/c/{shard}/0")
        expected |= {f"squares.zarr/{name}" for name in chunks}
    assert gone == expected - {DAMAGE[3][0]}
    assert run(damaged).complete
    assert verify_store(damaged.store).problems == ()


def test_failed_shards_lose_their_proof_and_keep_their_files(run_dir):
    plan = made(run_dir, failing=(7, 8, 31))
    before = files_of(run_dir)
    removed = repair(plan.store, failed=True, threads=5)
    assert [(s.shard, s.state, s.reason) for s in removed] == [
        (1, "failed", "2 failed items"), (6, "failed", "1 failed items"),
    ]  # fmt: skip
    after = files_of(run_dir)
    assert before - after == {RECORD.format(1), RECORD.format(6)}
    assert after - before == {f"squares.stage/attempts/{shard:05d}.json" for shard in (1, 6)}
    attempts = json.loads((run_dir / "squares.stage/attempts/00001.json").read_bytes())
    assert attempts["items"] == {"7": 1, "8": 1}
    assert run(plan).shards_done_now == 2


def test_a_lost_plan_is_repaired_by_the_records(tmp_path):
    run_dir = place(f"memory://{tmp_path.name}/run")
    plan = made(run_dir)
    (records_folder(plan.store) / "plan.json").write_bytes(b"{")
    DAMAGE[1][1](run_dir / DAMAGE[1][0])
    assert [state.shard for state in repair(plan.store, threads=4)] == [-1, 1]
    assert run(plan).shards_done_now == 1
    assert verify_store(plan.store).problems == ()
    remove_tree(run_dir.parent)


OUTSIDE = [
    "../../victim", "../squares.stage/plan.json", "{absolute}", "a//b", "./victim",
    "a/../../../victim", "", "nul\0",
]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_record_that_names_files_out_of_the_store_deletes_none(tmp_path, name):
    plan = made(tmp_path / "run")
    victim = tmp_path / "victim"
    victim.write_bytes(b"keep")
    named = name.format(absolute=victim)
    record = done_path(plan.store, 1)
    entry = {"bytes": 1, "sha256": "0" * 64}
    altered(files={**read_checked(record)["files"], named: entry})(record)
    before = files_of(tmp_path)
    found = verify_store(plan.store).problems
    assert [str(problem) for problem in found] == [f"shard 1 damaged: {UNREADABLE}"]
    assert [state.shard for state in repair(plan.store, failed=True)] == [1]
    assert files_of(tmp_path) == before - {relative_name(record, tmp_path)}
    assert victim.read_bytes() == b"keep"
    assert run(plan).shards_done_now == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"files": ["square/c/1"]}, {"files": {"square/c/1": 3}}, {"files": {"square/c/1": {}}},
        {"attempts": [1]}, {"failures": [{"item": ["x"], "reason": ""}]}, {"failures": 3},
        {"files": None},
    ],
    ids=str,
)  # fmt: skip
def test_a_record_of_another_shape_is_damage(tmp_path, changes):
    plan = made(tmp_path)
    altered(**changes)(done_path(plan.store, 1))
    assert [problem.what for problem in verify_store(plan.store).problems] == ["shard 1"]
    assert [state.state for state in repair(plan.store, failed=True)] == ["damaged"]
    assert run(plan).complete


def test_the_record_of_another_shard_proves_nothing_and_costs_that_one_nothing(tmp_path):
    plan = made(tmp_path)
    done_path(plan.store, 1).write_bytes(done_path(plan.store, 2).read_bytes())
    assert [problem.what for problem in verify_store(plan.store).problems] == ["shard 1"]
    assert [state.shard for state in repair(plan.store)] == [1]
    assert run(plan).shards_done_now == 1
    assert verify_store(plan.store).problems == ()


# -- trouble on the way


@pytest.mark.parametrize(
    "error", [OSError(16, "Slow Down"), PermissionError("Forbidden"), TimeoutError(), DeathError()]
)
def test_what_cannot_be_reached_is_no_damage_in_any_thread(tmp_path, error):
    run_dir = place(f"memory://{tmp_path.name}/run")
    plan = made(run_dir)
    whole = files_of(run_dir)
    with FailingMemory() as counted:
        repair(plan.store, threads=4)
    told = 0
    for at in range(0, counted.count, 3):
        for call in (verify, repair):
            remove_tree(run_dir / ".lock")  # of the one that died: this process lives on
            with FailingMemory(at, error) as memory:
                try:
                    found = call(plan.store, threads=4)
                    assert {state.state for state in found} <= {"done"}, memory.asked[at]
                except (StoreError, OSError, DeathError) as raised:
                    told += isinstance(raised, StoreError) or raised is error
        assert files_of(run_dir) == whole
    assert told > 5
    remove_tree(run_dir.parent)


@pytest.mark.parametrize(("threads", "step"), [(1, 2), (4, 5)])
def test_a_proof_never_outlives_a_file(tmp_path, threads, step):
    """Let a repair of everything die at its k-th request, for many k; then do it again."""
    run_dir = place(f"memory://{tmp_path.name}/run")
    plan = null_plan(run_dir, num_items=20)
    run(plan, Slow(failing=(19,)))
    for shard in range(3):
        rewrite(flip)(run_dir / f"squares.zarr/square/c/{shard}")
    hurt_run = content(run_dir)
    names = {shard: list(read_checked(done_path(plan.store, shard))["files"]) for shard in range(4)}
    with FailingMemory() as counted:
        assert len(repair(plan.store, failed=True, threads=threads)) == 4
    deaths = 0
    for at in range(0, counted.count, step):
        remove_tree(run_dir)
        for name, value in hurt_run.items():
            run_dir.fs.pipe_file(f"{run_dir.path}/{name}", value)
        running = threading.active_count()
        with FailingMemory(at, DeathError()):
            with suppress(DeathError):
                deaths += 1
                repair(plan.store, failed=True, threads=threads)
                deaths -= 1
            wait_until(lambda: threading.active_count() <= running)  # noqa: B023 - called here
        left = files_of(run_dir)
        for shard, files in names.items():
            if RECORD.format(shard) in left:
                assert {f"squares.zarr/{name}" for name in files} <= left, shard
            elif shard == 3:
                assert "squares.stage/attempts/00003.json" in left
        remove_tree(run_dir / ".lock")
        repair(plan.store, failed=True, threads=threads)
        assert not verify_store(plan.store).damaged
        if at % 10 == 0:
            assert run(plan).complete
            assert verify_store(plan.store).problems == ()
    assert deaths > 5
    remove_tree(run_dir.parent)


def test_a_server_that_goes_in_the_middle_is_one_line_and_no_damage(tmp_path):
    with used_here(tmp_path / "cache") as server:
        bucket = make_bucket()
        plan = made(place(f"s3://{bucket}/run"))
        whole = objects(bucket, "run")
        server.trouble = lambda _m, key: "403 Forbidden" if "/square/c/7" in key else None
        for arguments in (["verify"], ["repair"]):
            ended = CliRunner().invoke(inspect_shards, [*arguments, str(plan.store)])
            assert ended.exit_code == 1
            assert ended.stdout == ""
            assert ended.stderr.startswith(f"error: {plan.store}: the object store cannot be used")
            assert ended.stderr.count("\n") == 1
        server.trouble = lambda _m, _k: None
        left = {name: value for name, value in objects(bucket, "run").items() if "lock" not in name}
        assert left == whole
        assert verify_store(plan.store).intact == NUM_SHARDS


# -- requests


def test_verification_asks_for_every_object_once_with_any_number_of_threads(tmp_path):
    with used_here(tmp_path / "cache") as server:
        plan = made(place(f"s3://{make_bucket()}/run"))
        asked = []
        for threads in THREADS:
            began = len(server.log)
            assert verify_store(plan.store, threads).intact == NUM_SHARDS
            asked.append(sorted(str(request) for request in server.since(began)))
        assert asked[0] == asked[1] == asked[2]
        shards = [request for request in asked[0] if "/c/" in request or "/done/" in request]
        assert len(shards) == 4 * NUM_SHARDS
        assert all(request.startswith("GET ") for request in shards)


def test_repair_sends_one_request_for_each_deletion_proofs_first(tmp_path):
    with used_here(tmp_path / "cache") as server:
        plan = made(place(f"s3://{make_bucket()}/run"), failing=(57,))
        run_dir = plan.store.parent
        for shard in (1, 2, 4):
            DAMAGE[shard][1](run_dir / DAMAGE[shard][0])
        began = len(server.log)
        assert len(repair(plan.store, failed=True)) == 4
        log = [r for r in server.since(began) if ".lock" not in str(r)]
        deleted = [r.key.split("/run/")[1] for r in log if r.method == "DELETE"]
        proofs, files = deleted[:4], deleted[4:]
        assert set(proofs) == {RECORD.format(shard) for shard in (1, 2, 4, 11)}
        assert len(files) == len(set(files)) == 3 * 3
        assert {name.split("/c/")[1].split("/")[0] for name in files} == {"1", "2", "4"}
        first = next(at for at, request in enumerate(log) if request.method == "DELETE")
        assert all(request.method == "DELETE" for request in log[first:])
        remembered = [r.key for r in log[:first] if r.method == "PUT"]
        assert [key.rsplit("/", 1)[1] for key in remembered] == ["00011.json"]
        reads = [r for r in log if "/done/" in r.key and r.method != "DELETE"]
        assert len(reads) == NUM_SHARDS  # each record once, though all are looked at for failures


# -- the command


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_command_whose_store_does_not_answer_ends_at_once(tmp_path, number):
    release, asked = threading.Event(), threading.Event()

    def trouble(_method, key):
        if "/c/" in key:
            asked.set()
            release.wait(120)

    with used_here(tmp_path / "cache") as server:
        plan = made(place(f"s3://{make_bucket()}/run"))
        server.trouble = trouble
        code = "from pipeline.cli import inspect_shards; inspect_shards()"
        command = [sys.executable, "-c", code, "verify", str(plan.store), "--threads", "6"]
        process = start(command, tmp_path / "cache")
        try:
            assert asked.wait(100)
            began = time.monotonic()
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
        finally:
            release.set()
            process.kill()
        assert time.monotonic() - began < 10
        assert process.returncode == 75
        assert out == ""
        assert err == "interrupted; run the same command again to go on\n"


def test_the_command_says_the_same_with_any_number_and_nothing_of_what_is_quick(tmp_path):
    plan = made(tmp_path / "run")
    hurt(tmp_path / "run")
    ended = [
        CliRunner().invoke(inspect_shards, ["verify", str(plan.store), *threads])
        for threads in ([], ["--threads", "1"], ["--threads", "5"])
    ]
    assert [(e.exit_code, e.stderr) for e in ended] == [(1, "")] * 3
    assert ended[0].stdout == ended[1].stdout == ended[2].stdout
    lines = ended[0].stdout.splitlines()
    assert len(lines) == len(DAMAGE) + 1
    assert lines[-1] == f"{plan.store}: 4 of 12 shards intact"


def test_no_threads_are_an_unusable_argument(tmp_path):
    for name in ("verify", "repair", "retry-failed"):
        ended = CliRunner().invoke(inspect_shards, [name, str(tmp_path), "--threads", "0"])
        assert ended.exit_code == 2


def test_what_takes_long_shows_how_far_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shard_audit, "_SILENT_SECONDS", 0.0)
    plan = made(tmp_path / "run")
    delete(done_path(plan.store, 3))
    capsys.readouterr()
    verify_store(plan.store)
    shown = capsys.readouterr().err
    assert "run/squares.zarr" in shown
    assert f"{NUM_SHARDS - 1}/{NUM_SHARDS - 1}" in shown
