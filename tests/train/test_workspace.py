"""A training in an object store: what was sent can always be gone on with."""

import hashlib
import json
import random
import shutil
from contextlib import suppress

import pytest
import torch
from conftest import file_hashes
from fsspec.implementations.memory import MemoryFileSystem
from object_server import DeathError, FailingMemory

from pipeline.columns import file_sha256
from pipeline.errors import StoreError
from pipeline.places import lengths_below, place, remove_tree
from train.checkpoint import Checkpoint, latest, save_checkpoint
from train.workspace import drop, fetch, publish, workspace

KEEP = 2


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Where this machine keeps its workspaces."""
    monkeypatch.setenv("SEMIRES_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def student(tmp_path):
    """The folder of a training in memory."""
    found = place(f"memory://{tmp_path.name}/run/round-0/student")
    yield found
    remove_tree(found.parent.parent.parent)


def content(folder):
    """Give all objects below a folder in memory."""
    start = folder.path.rstrip("/") + "/"
    store = MemoryFileSystem.store
    return {n[len(start) :]: store[n].getvalue() for n in list(store) if n.startswith(start)}


def save(student, step, value=None):
    """Save a checkpoint into the workspace, as a training does, and send it."""
    value = step if value is None else value
    checkpoint = Checkpoint(
        step=step,
        weights={"student": {"w": torch.full((40,), float(value))}},
        state={"loss": float(value)},
        about={},
    )
    folder = workspace(student)
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(folder / "checkpoints", checkpoint, keep=KEEP)
    with (folder / "log.csv").open("a") as log:
        log.write(f"{step}\n")


def finish(student):
    """Write what a training leaves, the description last, and drop the checkpoints."""
    folder = workspace(student)
    (folder / "teacher.safetensors").write_bytes(b"weights")
    (folder / "student.json").write_text(
        json.dumps({"files": {"teacher.safetensors": file_sha256(folder / "teacher.safetensors")}})
    )
    shutil.rmtree(folder / "checkpoints")


def newest(student):
    """Give the step that a training would go on from, as another machine sees it; None: anew."""
    drop(student)
    fetch(student)
    found = latest(workspace(student) / "checkpoints")
    drop(student)
    return None if found is None else int(found.name.removeprefix("step-"))


def assert_usable(student):
    """If there is a description, the weights that it names are there."""
    there = content(student)
    if "student.json" in there:
        assert there["teacher.safetensors"] == b"weights"


def test_on_a_disk_the_folder_is_its_own_workspace(tmp_path):
    folder = tmp_path / "student"
    folder.mkdir()
    (folder / "log.csv").write_text("1\n")
    assert workspace(folder) == folder
    fetch(folder)
    publish(folder)
    drop(folder)
    assert (folder / "log.csv").read_text() == "1\n"


def test_two_trainings_have_two_workspaces():
    assert workspace(place("memory://b/a/student")) != workspace(place("memory://b/c/student"))
    assert workspace(place("memory://b/a/student")) == workspace(place("memory://b/a/student"))


def test_what_is_published_is_fetched(student):
    save(student, 3)
    save(student, 6)
    publish(student)
    folder = workspace(student)
    sent = {name: (folder / name).read_bytes() for name in lengths_below(student)}
    assert content(student) == sent
    drop(student)
    assert not folder.exists()
    fetch(student)
    assert {name: (folder / name).read_bytes() for name in sent} == sent
    assert latest(folder / "checkpoints").name == "step-00000006"


def test_checkpoints_are_sent_once_and_old_ones_deleted(student):
    for step in (3, 6):
        save(student, step)
        publish(student)
    save(student, 9)
    with FailingMemory() as memory:
        publish(student)
    sent = [asked for asked in memory.asked if asked.startswith("put_file")]
    assert not [name for name in sent if "step-00000006" in name]
    steps = {name.split("/")[1] for name in content(student) if name.startswith("checkpoints/")}
    assert steps == {"step-00000006", "step-00000009"}
    finish(student)
    publish(student)
    assert sorted(content(student)) == ["log.csv", "student.json", "teacher.safetensors"]


@pytest.mark.parametrize("error", [DeathError(), OSError(16, "Slow Down")], ids=["death", "fails"])
def test_any_failing_request_leaves_the_old_or_the_new_checkpoint(student, error):
    def prepare():
        remove_tree(student)
        drop(student)
        for step in (3, 6):
            save(student, step)
        publish(student)
        save(student, 9)

    prepare()
    with FailingMemory() as counted:
        publish(student)
    assert counted.count >= 10
    for at in range(counted.count):
        prepare()
        with FailingMemory(at, error), pytest.raises((StoreError, DeathError)):
            publish(student)
        assert newest(student) in (6, 9), counted.asked[at]


@pytest.mark.parametrize("error", [DeathError(), OSError(16, "Slow Down")], ids=["death", "fails"])
def test_a_description_never_comes_before_its_weights(student, error):
    def prepare():
        remove_tree(student)
        drop(student)
        save(student, 3)
        publish(student)
        finish(student)

    prepare()
    with FailingMemory() as counted:
        publish(student)
    for at in range(counted.count):
        prepare()
        with FailingMemory(at, error), pytest.raises((StoreError, DeathError)):
            publish(student)
        assert_usable(student)
        if "student.json" not in content(student):
            assert newest(student) == 3, counted.asked[at]


def test_a_checkpoint_that_was_half_sent_is_sent_anew_whole(student):
    """Trained again on another machine, the same step may have other bytes."""
    save(student, 3)
    publish(student)
    save(student, 6)
    with FailingMemory() as counted:
        publish(student)
    for at in range(counted.count):
        remove_tree(student)
        drop(student)
        save(student, 3)
        publish(student)
        save(student, 6)
        with FailingMemory(at, DeathError()), pytest.raises(DeathError):
            publish(student)
        drop(student)  # another machine
        fetch(student)
        found = latest(workspace(student) / "checkpoints")
        if found.name == "step-00000003":
            save(student, 6, value=6.5)
            publish(student)
        assert newest(student) == 6, counted.asked[at]


@pytest.mark.parametrize("name", ["student.safetensors", "checkpoint.json", "state.pt", "done"])
def test_a_damaged_checkpoint_is_not_gone_on_with_and_its_name_is_free(student, name):
    for step in (3, 6):
        save(student, step)
    publish(student)
    drop(student)
    damaged = student / "checkpoints" / "step-00000006" / name
    content_ = bytearray(damaged.read_bytes())
    content_[len(content_) // 2] ^= 1
    damaged.write_bytes(bytes(content_))
    assert newest(student) == 3
    fetch(student)
    save(student, 6)
    publish(student)
    assert newest(student) == 6


@pytest.mark.parametrize("error", [OSError(16, "Slow Down"), PermissionError("Forbidden")])
def test_a_finished_training_survives_any_failing_request(
    finished_run, small_config, in_memory, error
):
    """What cannot be read for a moment is not trained again, and not deleted."""
    run_dir, train = in_memory
    before = content(run_dir / "round-0" / "student")
    with FailingMemory() as counted:
        assert train().already_done
    for at in range(counted.count):
        with FailingMemory(at, error), suppress(StoreError, OSError):
            assert train().already_done, counted.asked[at]
        assert content(run_dir / "round-0" / "student") == before, counted.asked[at]


@pytest.fixture
def in_memory(finished_run, small_config, tmp_path):
    """The finished small run in memory, and what trains its round 0 there."""
    from pipeline.commands import Settings
    from train.cli import job_config
    from train.student import train_student

    run_dir = place(f"memory://{tmp_path.name}-run/run")
    run_dir.fs.put(str(finished_run[0]), run_dir.path, recursive=True)
    config = job_config(Settings(small_config, run_dir, ())).train
    yield run_dir, lambda: train_student(config, run_dir, 0)
    remove_tree(run_dir.parent)


def test_a_training_that_dies_at_any_request_ends_as_undisturbed(finished_run, in_memory):
    run_dir, train = in_memory
    student = run_dir / "round-0" / "student"
    whole = finished_run[0]
    start, died = "round-0/student/", 0
    hashes = file_hashes(whole).items()
    expected = {name.removeprefix(start): h for name, h in hashes if name.startswith(start)}
    remove_tree(student)
    with FailingMemory() as counted:
        train()
    rng = random.Random(11)
    first = next(n for n, asked in enumerate(counted.asked) if "student/plan.json" in asked)
    remove_tree(student)
    for _ in range(4):
        at = rng.randrange(first, first + 20)
        with FailingMemory(at, DeathError()), suppress(DeathError):  # gone on with, it asks less
            train()
            died -= 1
        died += 1
        drop(student)  # the next machine has no workspace
    assert died >= 3
    train()
    found = {name: hashlib.sha256(value).hexdigest() for name, value in content(student).items()}
    assert found == expected
