"""The whole job in object stores: by its function in memory, by its verbs on a real server.

On the server every stage is disturbed once, in another way, and started again. What is there in
the end are the bytes of an undisturbed job on a disk.
"""

import hashlib
import json
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import file_hashes
from fsspec.implementations.memory import MemoryFileSystem
from object_server import (
    ACCESS_KEY,
    SECRET_KEY,
    DeathError,
    Ended,
    FailingMemory,
    holds_secret,
    make_bucket,
    object_server,
    objects,
    put,
    run,
    start,
    used_here,
    verb,
)

from benchmarks.null_runs import workers_of
from pipeline.cli import inspect_shards
from pipeline.places import place, remove_tree

RUN = "runs/a"
FLOORS = {"refine_labels": "refine", "prepare_data": "pipeline", "sam_candidates": "pipeline"}
"""Where a verb lives; others in `train`."""
WRONG_KEY = "AKIAWRONGWRONG"
ONE_LINE = re.compile(r"error: s3://\S+: the object store cannot be used \(.*\); check address")


def hashes(found: dict[str, bytes], like: dict[str, str]) -> dict[str, str]:
    """Hash those objects that must not depend on how they were made."""
    kinds = re.compile(r"(.*\.zarr/|(.*/)?student/|manifest/)")
    chosen = {name for name in found if kinds.match(name)} | (like.keys() & found.keys())
    return {name: hashlib.sha256(found[name]).hexdigest() for name in sorted(chosen)}


# -- in memory


def test_the_job_in_memory_leaves_the_bytes_of_a_disk(
    finished_run, small_config, tmp_path, monkeypatch
):
    from pipeline.commands import Settings
    from train.cli import job_config
    from train.rounds import run_rounds

    monkeypatch.setenv("SEMIRES_CACHE", str(tmp_path / "cache"))
    run_dir = place(f"memory://{tmp_path.name}/run")
    job = job_config(Settings(small_config, run_dir, ()))
    with FailingMemory():  # whatever renames, copies or links fails
        summary = run_rounds(job, run_dir, say=lambda _: None)
    assert summary.rows == finished_run[1].rows
    start_, store = run_dir.path + "/", MemoryFileSystem.store
    found = {n[len(start_) :]: store[n].getvalue() for n in store if n.startswith(start_)}
    expected = file_hashes(finished_run[0])
    assert hashes(found, expected) == expected
    before = {name: store[name].modified for name in store if ".zarr/" in name}
    again = run_rounds(job, run_dir, say=lambda _: None)
    assert again.rows == summary.rows
    assert before == {name: store[name].modified for name in store if ".zarr/" in name}
    remove_tree(run_dir.parent)


@pytest.mark.parametrize("error", [DeathError(), OSError(16, "Slow Down")], ids=["death", "fails"])
def test_data_are_prepared_again_after_any_failing_request(
    finished_run, small_config, tmp_path, monkeypatch, error
):
    from pipeline.commands import Settings
    from pipeline.data_config import DataConfig
    from pipeline.errors import SemiresError
    from pipeline.prepare import prepare_data

    monkeypatch.setenv("SEMIRES_CACHE", str(tmp_path / "cache"))
    run_dir = place(f"memory://{tmp_path.name}/run")
    config = Settings(small_config, run_dir, ()).section("data", DataConfig)
    expected = {n: h for n, h in file_hashes(finished_run[0]).items() if n.startswith("manifest/")}
    with FailingMemory() as counted:
        prepare_data(config, run_dir)
    assert sum(asked.startswith("put_file") for asked in counted.asked) > 20
    for at in range(0, counted.count, 11):
        remove_tree(run_dir)
        with FailingMemory(at, error) as memory, suppress(SemiresError, OSError, DeathError):
            prepare_data(config, run_dir)
        prepare_data(config, run_dir)
        found = {n: (run_dir / n).read_bytes() for n in expected}
        assert hashes(found, expected) == expected, memory.asked[at]
    remove_tree(run_dir.parent)


# -- on a server, by the verbs


@dataclass
class Seen:
    """How many requests there were; several threads of the server count at once."""

    count: int = 0
    turn: threading.Lock = field(default_factory=threading.Lock)

    def one_more(self) -> int:
        """Count one, and give the number of it, from 1."""
        with self.turn:
            self.count += 1
            return self.count


@dataclass
class Job:
    """A job on the server, and all that was said meanwhile."""

    config: Path
    folder: Path
    bucket: str
    said: list[tuple[str, Ended]] = field(default_factory=list)
    began: int = 0

    @property
    def cache(self) -> Path:
        """Where this machine keeps copies."""
        return self.folder / "cache"

    @property
    def url(self) -> str:
        """The run directory."""
        return f"s3://{self.bucket}/{RUN}"

    def arguments(self, name: str, *options: str) -> list[str]:
        """Give the command line of a stage."""
        common = ["--config", str(self.config), "--run-dir", self.url]
        return [*verb(FLOORS.get(name, "train"), name), *common, *options]

    def do(self, name: str, *options: str, **changes: str | None) -> Ended:
        """Run a stage to its end: in this process, which is quicker, unless it needs changes."""
        if changes:
            ended = run(self.arguments(name, *options), self.cache, **changes)
        else:
            command = getattr(import_module(f"{FLOORS.get(name, 'train')}.cli"), name)
            with used_here(self.cache):
                found = CliRunner().invoke(command, self.arguments(name, *options)[3:])
            ended = Ended(found.exit_code, found.stdout, found.stderr)
        self.said.append((name, ended))
        return ended

    def inspect(self, what: str, *options: str, place: str = "", **changes: str) -> Ended:
        """Run a verb of inspect-shards."""
        target = f"{self.url}/{place}" if place else self.url
        if changes:
            command = [*verb("pipeline", "inspect_shards"), what, target, *options]
            ended = run(command, self.cache, **changes)
        else:
            with used_here(self.cache):
                found = CliRunner().invoke(inspect_shards, [what, target, *options])
            ended = Ended(found.exit_code, found.stdout, found.stderr)
        self.said.append((what, ended))
        return ended

    def disturbed(
        self, name: str, *options: str, at: str, times: int, do: Callable[[int], object]
    ) -> Ended:
        """Run a stage; at its n-th PUT of such a key call `do` with its pid."""
        server, seen, began = object_server(), Seen(), time.monotonic()
        process = start(self.arguments(name, *options), self.cache)

        def trouble(method: str, key: str):
            if method == "PUT" and re.search(at, key) and seen.one_more() == times:
                do(process.pid)
            return

        server.trouble = trouble
        try:
            out, err = process.communicate(timeout=200)
        finally:
            server.trouble = lambda _method, _key: None
        seconds = time.monotonic() - began
        self.said.append((name, Ended(process.returncode, out, err, seconds)))
        assert seen.count >= times, f"{name} never got there: {err}"
        return self.said[-1][1]


def kill(pid: int) -> None:
    """End a driver at once; not its workers, which notice."""
    os.kill(pid, signal.SIGKILL)


def stop(pid: int) -> None:
    """Ask a driver to stop."""
    os.kill(pid, signal.SIGTERM)


def kill_a_worker(pid: int) -> None:
    """End one worker of a driver at once."""
    os.kill(workers_of(pid)[0], signal.SIGKILL)


def stop_server(_pid: int) -> None:
    """Let the server be gone, in a thread: this one has a request to answer."""
    object_server().stop()


@pytest.fixture(scope="module")
def job(small_config, tmp_path_factory):
    """One round on the server, each stage disturbed and started again."""
    made = Job(small_config, tmp_path_factory.mktemp("job"), make_bucket())
    server = object_server()
    made.began = len(server.log)
    codes = [made.do("prepare_data", AWS_ACCESS_KEY_ID=WRONG_KEY).code]
    codes.append(made.do("prepare_data").code)
    begun = r"candidates\.stage/attempts"
    codes.append(
        made.disturbed("sam_candidates", "--workers", "2", at=begun, times=1, do=kill_a_worker).code
    )
    checkpoint = r"student/checkpoints/.*/done"
    burn_in = ("--round", "0")
    codes.append(made.disturbed("train_student", *burn_in, at=checkpoint, times=1, do=stop).code)
    codes.append(made.do("train_student", *burn_in).code)
    codes.append(made.do("predict_teacher").code)
    at = r"labels\.zarr/.*/c/1"
    codes.append(made.disturbed("refine_labels", at=at, times=1, do=stop_server).code)
    server.start()
    codes.append(made.do("refine_labels").code)
    codes.append(made.do("train_student", "--round", "1", "--set", "train.loader_workers=1").code)
    codes.append(made.do("evaluate_student", "--round", "1").code)
    assert codes == [1, 0, 0, 75, 0, 0, 1, 0, 0, 0], [
        (name, ended.code, ended.last_line) for name, ended in made.said
    ]
    return made


@pytest.fixture(scope="module")
def one_round(finished_run):
    """Hashes of a job on a disk, up to the student of round 1."""
    return {n: h for n, h in file_hashes(finished_run[0]).items() if not n.startswith("round-2")}


def test_the_disturbed_job_on_a_server_leaves_the_bytes_of_a_disk(job, one_round):
    found = hashes(objects(job.bucket, RUN), one_round)
    assert [name for name in one_round if found.get(name) != one_round[name]] == []
    assert found.keys() == one_round.keys()


def test_no_object_is_copied_and_no_bucket_made_or_dropped(job):
    log = object_server().since(job.began)
    assert len(log) > 300
    assert [str(request) for request in log if request.copies] == []
    assert [str(r) for r in log if "/" not in r.key and r.method in ("PUT", "DELETE")] == []


def test_a_bucket_that_is_not_there_is_one_line_and_is_not_made(job):
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    command = [*verb("pipeline", "prepare_data"), "--config", str(job.config),
               "--run-dir", "s3://no-such-bucket/x"]  # fmt: skip
    ended = run(command, job.cache)
    job.said.append(("prepare_data", ended))
    assert ended.code == 1
    assert "specified bucket does not exist" in ended.last_line
    assert ended.err.strip().count("\n") == 0
    assert "no-such-bucket" not in s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets


def test_trouble_with_the_server_is_one_line(job):
    refused = [ended for _, ended in job.said if ended.code == 1]
    assert len(refused) >= 2
    for ended in refused:
        assert "Traceback" not in ended.err
        assert ended.err.count("error: ") == 1
        assert ONE_LINE.match(ended.last_line), ended.last_line


def test_an_interrupted_training_says_how_to_go_on(job):
    (ended,) = [ended for _, ended in job.said if ended.code == 75]
    said = re.search(r"stopped after step (\d+), which is saved; run the same", ended.last_line)
    assert said, ended.last_line
    resumed = [e for name, e in job.said if name == "train_student" and e.code == 0]
    assert re.search(rf"resumed at step +│ +{said[1]} ", resumed[0].out), resumed[0].out


def test_the_stores_are_inspected_as_on_a_disk(job, finished_run, tmp_path):
    labels = "round-1/labels.zarr"
    with used_here(job.cache):
        for what in ("status", "summary"):
            found = CliRunner().invoke(inspect_shards, [what, job.url])
            assert found.exit_code == 0, found.output
            assert "sam-candidates" in found.output or "candidates.zarr" in found.output
        for kind, options in (("show", ["--row", "1"]), ("export", [])):
            for place_, name in (
                (f"{job.url}/{labels}", "there"),
                (finished_run[0] / labels, "here"),
            ):
                target = ["--out", str(tmp_path / f"{kind}-{name}")]
                ended = CliRunner().invoke(inspect_shards, [kind, str(place_), *options, *target])
                assert ended.exit_code == 0, ended.output
            here, there = (tmp_path / f"{kind}-{name}" for name in ("here", "there"))
            assert here.read_bytes() == there.read_bytes()


def test_damage_is_found_repaired_and_made_again(job, one_round):
    found = objects(job.bucket, RUN)
    rng = random.Random(3)
    labels = [n for n in sorted(found) if re.match(r"round-1/labels\.zarr/.*/c/", n)]
    chosen = rng.sample(labels, 2)
    for name, damage in zip(chosen, ("flip", "delete"), strict=True):
        content = bytearray(found[name])
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        put(job.bucket, f"{RUN}/{name}", bytes(content) if damage == "flip" else None)
    shards = {int(re.search(r"/c/(\d+)", name)[1]) for name in chosen}
    ended = job.inspect("verify")
    assert ended.code == 1
    assert {int(n) for n in re.findall(r"labels.zarr: shard (\d+) damaged", ended.out)} == shards
    assert f"{len(shards)} damaged shards removed" in job.inspect("repair", place="").out
    assert job.do("refine_labels").code == 0
    assert hashes(objects(job.bucket, RUN), one_round) == one_round


def test_credentials_of_a_settings_file_are_used_and_not_told(job, tmp_path):
    settings = {"s3": {"key": ACCESS_KEY, "secret": SECRET_KEY,
                       "endpoint_url": object_server().url}}  # fmt: skip
    (tmp_path / "conf.json").write_text(json.dumps(settings))
    nothing: dict[str, str | None] = dict.fromkeys(
        ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL")
    )
    command = [*verb("pipeline", "inspect_shards"), "status", job.url]
    ended = run(command, job.cache, FSSPEC_CONFIG_DIR=str(tmp_path), **nothing)
    assert ended.code == 0, ended.err
    object_server().trouble = lambda _method, _key: "403 Forbidden"  # quotes both in its answer
    try:
        refused = run(command, job.cache, FSSPEC_CONFIG_DIR=str(tmp_path), **nothing)
    finally:
        object_server().trouble = lambda _method, _key: None
    assert refused.code != 0
    job.said += [("status", ended), ("status", refused)]


def test_no_credential_is_ever_told_or_kept(job):
    """After all of the above."""
    assert len(job.said) >= 11
    told = [name for name, e in job.said if holds_secret(e.out) or holds_secret(e.err)]
    assert told == []
    assert not [name for name, e in job.said if WRONG_KEY in e.out + e.err]
    everything = objects(job.bucket)
    assert [name for name, value in everything.items() if holds_secret(value)] == []
    files = [path for path in job.folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if holds_secret(path.read_bytes())] == []


@pytest.mark.parametrize(
    "signal_", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)]
)
def test_the_end_while_objects_are_sent_leaves_no_half_shard(job, one_round, signal_):
    """Ctrl-C, or the end, in the middle of an upload that takes long."""
    server = object_server()
    put(job.bucket, f"{RUN}/round-1/labels.stage/done/00002.json", None)
    seen = Seen()
    process = start(job.arguments("refine_labels"), job.cache)

    def slow(method: str, key: str):
        if method == "PUT" and re.search(r"labels\.zarr/.*/c/2", key):
            if seen.one_more() == 2:
                os.kill(process.pid, signal_)
            return 0.5
        return None

    server.trouble = slow
    try:
        out, err = process.communicate(timeout=100)
    finally:
        server.trouble = lambda _method, _key: None
    job.said.append(("refine_labels", Ended(process.returncode, out, err)))
    assert process.returncode == (75 if signal_ == signal.SIGINT else -9), err
    assert "Traceback" not in err
    time.sleep(0.6)  # what was on its way arrives
    assert f"{RUN}/round-1/labels.stage/done/00002.json" not in objects(job.bucket)
    assert job.do("refine_labels").code == 0
    assert hashes(objects(job.bucket, RUN), one_round) == one_round


# -- for long


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_sigkill_at_many_random_requests_costs_nothing(small_config, one_round, tmp_path):
    """Every stage is killed at random requests, the driver or a worker, until twelve are."""
    rng = random.Random(17)
    made = Job(small_config, tmp_path, make_bucket())
    stages = [("prepare_data", ()), ("sam_candidates", ("--workers", "2")),
              ("train_student", ("--round", "0")), ("predict_teacher", ("--workers", "2")),
              ("refine_labels", ()), ("train_student", ("--round", "1"))]  # fmt: skip
    kills = 0
    for name, options in stages:
        for _ in range(3):
            victim = kill_a_worker if "--workers" in options and rng.random() < 0.5 else kill
            stop_at = rng.randrange(1, 12)
            kills += _killed(made, name, options, stop_at, victim)
        assert made.do(name, *options).code == 0
    assert kills >= 12
    found = hashes(objects(made.bucket, RUN), one_round)
    assert found == one_round
    assert not [name for name, e in made.said if holds_secret(e.out) or holds_secret(e.err)]


def _killed(made, name, options, stop_at, victim):
    """Run a stage with a kill at one of its PUTs; give 1 if it came to that."""
    hit = []

    def end(pid: int) -> None:
        try:
            victim(pid)
            hit.append(pid)
        except IndexError:  # no worker is there yet, or any more
            pass

    try:
        made.disturbed(name, *options, at=r"(zarr|stage|student|manifest)/", times=stop_at, do=end)
    except AssertionError:
        return 0
    return len(hit)
