"""The same store by every engine; what ends a worker is isolated; parts share a run."""

import dataclasses
import os
import signal
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from pipeline import dask_clusters
from pipeline.attempts import Attempts, write_attempts
from pipeline.commands import stage_options
from pipeline.dask_clusters import lifetime_arguments
from pipeline.engines import ENGINES, Engine, run_tasks, shared_workers
from pipeline.errors import ConfigError, StoreError
from pipeline.gpus import VISIBLE, gpu_of_worker, take_gpu
from pipeline.locks import Part, run_lock
from pipeline.records import done_path, read_done
from pipeline.runner import run_stage
from tests.pipeline.null_stages import Avoidable, Loads, Poison, Slow, digest, null_plan


def run(folder, work=None, engine=None, **changes):
    plan = null_plan(folder, **changes)
    return run_stage(plan, work or Slow(), engine=engine, made_by="squares")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return digest(folder / "squares.zarr")


@pytest.fixture(scope="module")
def two_workers():
    """Keep two workers for the tests of this module."""
    with shared_workers():
        yield Engine(workers=2)


@pytest.mark.dask
def test_workers_do_not_change_a_byte_and_load_once(tmp_path, undisturbed, two_workers):
    run(tmp_path, Loads(tmp_path / "loads"), two_workers)
    assert digest(tmp_path / "squares.zarr") == undisturbed
    assert len(list((tmp_path / "loads").iterdir())) == 2  # exist_ok=False: once per process


@pytest.mark.dask
def test_an_item_that_kills_its_worker_is_given_up_alone(tmp_path, two_workers):
    summary = run(tmp_path, Avoidable(deadly=(7,)), two_workers)
    assert summary.complete
    (failure,) = summary.failures
    assert failure.item == "7"
    assert failure.reason == "given up: its process was ended by SIGKILL (out of memory?)"
    assert summary.counters == {"items": 22, "failed": 1}
    # The same store as where the items were merely bad: the neighbours are whole.
    calm = tmp_path / "calm"
    run(calm)
    found = digest(tmp_path / "squares.zarr")
    differing = {
        name for name, value in digest(calm / "squares.zarr").items() if found[name] != value
    }
    assert differing == {"row/c/1/0"}
    record = read_done(tmp_path / "squares.zarr", 1, null_plan(tmp_path).fingerprint)
    assert record.attempts == {"7": 5}


@pytest.mark.dask
def test_an_item_that_raises_is_given_up_with_its_reason(tmp_path, two_workers):
    summary = run(tmp_path, Avoidable(raising=(3,)), two_workers)
    (failure,) = summary.failures
    assert failure.reason == "given up: MemoryError: the item is too large"


@pytest.mark.dask
def test_where_an_item_cannot_be_left_out_all_other_shards_are_done(tmp_path, two_workers):
    message = r"shard 1: row 7 fails on its own \(its process was ended by SIGKILL"
    with pytest.raises(StoreError, match=message):
        run(tmp_path, Poison(deadly=(7,)), two_workers)
    store = tmp_path / "squares.zarr"
    assert [done_path(store, shard).exists() for shard in range(5)] == [True, False] + [True] * 3


@pytest.mark.dask
def test_many_bad_items_are_a_bad_setting(tmp_path, two_workers):
    with pytest.raises(StoreError, match="more than 8 items fail one by one"):
        run(tmp_path, Avoidable(raising=tuple(range(20))), two_workers, shard_size=20)


def forget(folder, shard, attempts):
    """Make a shard one to do, that was tried before."""
    done_path(folder / "squares.zarr", shard).unlink()
    write_attempts(folder / "squares.zarr", shard, attempts)


def test_several_items_of_a_shard_are_found(tmp_path):
    run(tmp_path, shard_size=12)
    forget(tmp_path, 0, Attempts(shard=3))
    work = Avoidable(deadly=(10,), raising=(3, 11), signal_number=signal.SIGSEGV)
    summary = run(tmp_path, work, shard_size=12)
    assert [failure.item for failure in summary.failures] == ["3", "10", "11"]
    assert "SIGSEGV" in summary.failures[1].reason
    assert "MemoryError" in summary.failures[2].reason


def test_a_shard_that_was_merely_unlucky_keeps_its_bytes(tmp_path, undisturbed):
    run(tmp_path)
    forget(tmp_path, 2, Attempts(shard=3))
    assert run(tmp_path).failures == ()
    assert digest(tmp_path / "squares.zarr") == undisturbed


def test_here_an_item_that_kills_is_isolated_when_started_again(tmp_path):
    code = (
        "import sys; from pathlib import Path; from pipeline.runner import run_stage\n"
        "from tests.pipeline.null_stages import Avoidable, null_plan\n"
        "plan = null_plan(Path(sys.argv[1]))\n"
        "run_stage(plan, Avoidable(deadly=(7,)), made_by='squares')\n"
    )
    codes = []
    while 0 not in codes and len(codes) < 6:
        ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
        codes.append(ended.returncode)
    assert codes == [-signal.SIGKILL] * 3 + [0]


@pytest.mark.parametrize("what", [{"raising": (7,)}, {"exiting": (7,)}])
def test_here_an_item_that_raises_is_given_up_in_the_same_start(tmp_path, capfd, what):
    summary = run(tmp_path, Avoidable(**what))
    assert [failure.item for failure in summary.failures] == ["7"]
    assert summary.counters == {"items": 22, "failed": 1}
    said = capfd.readouterr().err
    assert said.count("squares: shard 1 is tried again after") == 3
    assert "Traceback" not in said
    reason = {
        "raising": "MemoryError: the item is too large",
        "exiting": "RuntimeError: its computation asks to exit with 5",
    }[next(iter(what))]
    assert summary.failures[0].reason == f"given up: {reason}"


def test_here_a_stop_is_not_kept_waiting_by_a_shard_that_raises(tmp_path):
    tried = []

    def fail(task):
        tried.append(task)
        raise RuntimeError("bad")

    assert list(run_tasks(Engine(), fail, [1, 2], "squares", lambda: bool(tried))) == []
    assert tried == [1]


def test_here_an_item_that_hangs_is_isolated_when_started_again(tmp_path):
    code = (
        "import sys; from pathlib import Path; from pipeline.runner import run_stage\n"
        "from pipeline.engines import Engine\n"
        "from tests.pipeline.null_stages import Avoidable, null_plan\n"
        "plan, engine = null_plan(Path(sys.argv[1])), Engine(max_shard_seconds=2)\n"
        "run_stage(plan, Avoidable(hanging=(7,)), made_by='squares', engine=engine)\n"
    )
    command, codes = [sys.executable, "-c", code, str(tmp_path)], []
    while 0 not in codes and len(codes) < 6:
        ended = subprocess.run(command, check=False, capture_output=True, text=True)
        codes.append(ended.returncode)
        assert codes[-1] == 0 or "squares: shard 1 took longer than 2 s" in ended.stderr
    assert codes == [75] * 3 + [0]
    record = read_done(tmp_path / "squares.zarr", 1, null_plan(tmp_path).fingerprint)
    assert [(f.item, f.reason) for f in record.failures] == [
        ("7", "given up: took longer than 2 s")
    ]


@pytest.mark.slow
@pytest.mark.dask
def test_an_item_that_hangs_its_worker_is_given_up_alone(tmp_path, two_workers):
    engine = dataclasses.replace(two_workers, max_shard_seconds=0.7)
    summary = run(tmp_path, Avoidable(hanging=(7,)), engine)
    assert [failure.item for failure in summary.failures] == ["7"]
    assert summary.counters == {"items": 22, "failed": 1}


HOLDS = """\
import ctypes, threading
from pipeline import time_limit
{before}
def quick():
    with time_limit.at_most(9, 'y'): pass
with time_limit.at_most(0.2, '90 % of x'):
    {holds}
"""


@pytest.mark.parametrize(
    ("before", "holds"),
    [
        ("", "ctypes.PyDLL(None).sleep(60)"),  # keeps Python's lock to itself
        ("", "threading.Event().wait(60)"),
        ("time_limit._TIMER = ('no_such_function',) * 3", "threading.Event().wait(60)"),
        # One that ends in time, in another thread, disarms no other.
        ("", "threading.Thread(target=quick).start(); ctypes.PyDLL(None).sleep(60)"),
    ],
)  # fmt: skip
def test_what_takes_too_long_is_ended_with_a_line(before, holds):
    code = HOLDS.format(before=before, holds=holds)
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, check=False, timeout=30, capture_output=True, text=True)
    assert ended.returncode == 75
    assert ended.stderr.endswith("90 % of x took longer than 0.2 s; its process ends\n")
    assert ended.stderr.count("\n") == 1


def test_what_ends_in_time_goes_on():
    code = (
        "import time; from pipeline.time_limit import at_most\n"
        "with at_most(30, 'longer'):\n"
        "    for _ in range(300):\n"
        "        with at_most(3, 'x'): time.sleep(0.001)\n"
        "time.sleep(3.5)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.dask
def test_a_running_cluster_gives_the_same_bytes(tmp_path, undisturbed):
    from distributed import LocalCluster

    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(host="127.0.0.1", silence_logs=50, **options) as cluster:
        run(tmp_path, engine=Engine(cluster=cluster.scheduler_address))
    assert digest(tmp_path / "squares.zarr") == undisturbed


def test_a_cluster_that_does_not_answer_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(dask_clusters, "CONNECT_SECONDS", 1)
    with pytest.raises(StoreError, match=r"--cluster tcp://127.0.0.1:9: no Dask scheduler answers"):
        run(tmp_path, engine=Engine(cluster="tcp://127.0.0.1:9"))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_parts_in_any_order_make_the_store(tmp_path, undisturbed, order):
    for index in order:
        run(tmp_path, engine=Engine(part=Part(index, 3)))
    assert digest(tmp_path / "squares.zarr") == undisturbed
    assert run(tmp_path).shards_done_now == 0


@pytest.mark.timeout(60)
@pytest.mark.parametrize("left", [False, True], ids=["", "one-was-killed-before"])
def test_parts_at_once_make_the_store(tmp_path, left):
    if left:  # while it made the store
        (tmp_path / "squares.stage").mkdir()
        (tmp_path / "squares.stage" / "preparing").touch()
    code = (
        "from pipeline import preparation; preparation.PREPARE_SECONDS = 1e6\n"
        "import sys; from pathlib import Path; from pipeline.runner import run_stage\n"
        "from pipeline.engines import Engine; from pipeline.locks import Part, run_lock\n"
        "from tests.pipeline.null_stages import Slow, null_plan\n"
        "folder, part = Path(sys.argv[1]), Part(int(sys.argv[2]), 3)\n"
        "with run_lock(folder, part):\n"
        "    plan, engine = null_plan(folder, num_items=90), Engine(part=part)\n"
        "    run_stage(plan, Slow(0.02), engine=engine, made_by='')\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen([*command, str(index)]) for index in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    run(tmp_path / "whole", num_items=90)
    assert digest(tmp_path / "squares.zarr") == digest(tmp_path / "whole" / "squares.zarr")


def test_a_part_of_another_plan_is_refused_and_none_replaces(tmp_path):
    part = Engine(part=Part(0, 2))
    run(tmp_path, engine=part)
    with pytest.raises(StoreError, match="power: 2, now 3"):
        run(tmp_path, engine=Engine(part=Part(1, 2)), decides={"power": 3})
    with pytest.raises(StoreError, match="--force would delete what the other parts do"):
        run_stage(null_plan(tmp_path), Slow(), engine=part, replace="always", made_by="squares")


def test_parts_share_a_run_that_a_driver_does_not(tmp_path):
    with run_lock(tmp_path, Part(0, 2)), run_lock(tmp_path, Part(1, 2)):
        for part, who in ((None, "another process"), (Part(1, 2), "pid"), (Part(0, 3), "pid")):
            with pytest.raises(StoreError, match=f"in use by {who}"):
                run_lock(tmp_path, part).__enter__()
    with run_lock(tmp_path), pytest.raises(StoreError, match="in use by pid"):
        run_lock(tmp_path, Part(0, 2)).__enter__()
    with run_lock(tmp_path, Part(0, 3)):
        pass


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ([], "inline"),
        (["--workers", "3"], "processes"),
        (["--engine", "processes"], "processes"),
        (["--cluster", "tcp://h:1"], "address"),
        (["--shard-index", "0", "--num-shards", "2"], "static"),
        (["--engine", "slurm", "--workers", "9", "--lifetime", "55m"], "slurm"),
    ],
)
def test_options_choose_the_engine(options, kind):
    @click.command()
    @stage_options
    def stage(**arguments):
        click.echo(arguments["engine"].kind)

    assert kind in ENGINES
    assert CliRunner().invoke(stage, options).stdout.strip() == kind


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "address"], "--cluster ADDRESS goes with --engine address"),
        (["--engine", "static"], "--shard-index and --num-shards go with --engine static"),
        (["--shard-index", "0"], "--shard-index and --num-shards need each other"),
        (
            ["--shard-index", "2", "--num-shards", "2"],
            "expected --shard-index from 0 to 1, found 2",
        ),
        (["--lifetime", "5m"], "--lifetime goes with --engine slurm"),
        (["--cluster", "x", "--workers", "2"], "--workers 2 means nothing to --engine address"),
        (["--max-shard-seconds", "nan"], "above 0 and at most 1e+08, found nan"),
        (["--max-shard-seconds", "inf"], "above 0 and at most 1e+08, found inf"),
        (["--max-shard-seconds", "1e300"], "above 0 and at most 1e+08, found 1e+300"),
        (["--max-shard-seconds", "0"], "above 0 and at most 1e+08, found 0"),
        (["--max-failures", "many"], "expected a number of items or 0% to 100%, found 'many'"),
    ],
)
def test_options_that_do_not_fit_are_exit_2(options, message):
    @click.command()
    @stage_options
    def stage(**_arguments):
        raise AssertionError

    result = CliRunner().invoke(stage, options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("index", "visible", "count", "expected"),
    [
        (0, None, 2, "0"),
        (3, None, 2, "1"),
        (1, "4,6", 8, "6"),
        (2, "4,6", 8, "4"),
        (0, "GPU-a, GPU-b", 1, "GPU-a"),
        (0, None, 0, None),
        (0, "", 8, None),
    ],
)
def test_each_worker_takes_one_gpu(index, visible, count, expected, monkeypatch):
    assert gpu_of_worker(index, visible, count) == expected
    monkeypatch.setenv(VISIBLE, "before")
    take_gpu(index, visible, count)
    assert os.environ[VISIBLE] == (expected or "before")
    take_gpu("tcp://127.0.0.1:1", "7", 1)
    assert os.environ[VISIBLE] == (expected or "before")


@pytest.mark.parametrize(
    ("lifetime", "walltime", "seconds", "stagger"),
    [
        ("55m", "01:00:00", 3300, 240),
        ("2h", "01:00:00", 7200, 240),
        ("90s", "30", 90, 9),
        (None, "01:00:00", 3240, 240),
        (None, "30", 1620, 162),
        (None, "10:00", 540, 54),
        (None, "1-12:00:00", 116640, 240),
    ],
)
def test_a_slurm_worker_ends_before_its_job(lifetime, walltime, seconds, stagger):
    expected = ["--lifetime", f"{seconds}s", "--lifetime-stagger", f"{stagger}s"]
    assert lifetime_arguments(lifetime, walltime) == expected


@pytest.mark.parametrize("lifetime", ["", "55", "0m", "m", "1d"])
def test_a_lifetime_is_a_number_and_a_unit(lifetime):
    with pytest.raises(ConfigError, match="expected a number and s, m or h"):
        lifetime_arguments(lifetime, "01:00:00")


def test_slurm_without_its_package_is_one_line(tmp_path, monkeypatch):
    for name in ("dask_jobqueue", "dask_jobqueue.slurm"):  # the second may be imported by now
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(StoreError, match=r"run pip install -e '\.\[slurm\]'"):
        run(tmp_path, engine=Engine(name="slurm"))
