"""Several processes train together what one trains alone, and end together."""

import csv
import functools
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.train.ranks import kill_at, run_ranks, terminate_after, train
from train.batch_norm import SyncedBatchNorm2d

pytestmark = pytest.mark.ddp
FILES = ("teacher.safetensors", "log.csv", "student.json", "vocab.txt")


@pytest.fixture
def run_dir(finished_run, tmp_path):
    """The finished run without what round 1's training and all later steps made."""
    path = tmp_path / "run"
    shutil.copytree(finished_run[0], path)
    shutil.rmtree(path / "round-2")
    shutil.rmtree(path / "round-1" / "student")
    return path


def losses(student: Path):
    with (student / "log.csv").open() as handle:
        return np.array(
            [[float(v) for v in list(row.values())[1:]] for row in csv.DictReader(handle)]
        )


GENTLE = ("train.student.learning_rate=1.0e-4",)
"""AdamW enlarges the rounding of gradients that are almost 0; a small rate keeps it small."""


def assert_same_training(mine: Path, alone: Path):
    ours, theirs = losses(mine), losses(alone)
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5, abs=1e-6)  # before any update
    assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)
    ours, theirs = (load_file(path / "teacher.safetensors") for path in (mine, alone))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.allclose(tensor, theirs[name], rtol=1e-4, atol=2e-4), name


@pytest.fixture
def alone(small_config, run_dir, tmp_path):
    """The same round trained gently in one process."""
    path = tmp_path / "alone"
    shutil.copytree(run_dir, path)
    assert run_ranks(1, train, (small_config, path, 1, GENTLE), tmp_path)[0].code == 0
    return path / "round-1" / "student"


def test_two_processes_equal_one_with_twice_the_batch(small_config, alone, run_dir, tmp_path):
    ended = run_ranks(2, train, (small_config, run_dir, 1, GENTLE), tmp_path)
    assert [one.code for one in ended] == [0, 0], ended
    assert ended[1].text == ""
    assert "train-1" in ended[0].text
    assert_same_training(run_dir / "round-1" / "student", alone)


def test_ragged_shares_and_micro_batches_of_two_processes_equal_one(
    small_config, run_dir, tmp_path
):
    """Three labelled and two other samples: micro-batches of 3 and 2, shared 2 + 1 and 1 + 1."""
    sets = (
        "train.accumulate=2", "train.student.labelled_batch=3", "train.student.unlabelled_batch=2",
        "train.student.steps=4", "train.dice=1.0", "train.balance=branch", *GENTLE,
    )  # fmt: skip
    alone = tmp_path / "alone"
    shutil.copytree(run_dir, alone)
    assert run_ranks(1, train, (small_config, alone, 1, sets), tmp_path)[0].code == 0
    ended = run_ranks(2, train, (small_config, run_dir, 1, sets), tmp_path)
    assert [one.code for one in ended] == [0, 0], ended
    assert_same_training(run_dir / "round-1" / "student", alone / "round-1" / "student")


def test_one_sample_for_each_process_trains_and_fewer_are_refused(small_config, run_dir, tmp_path):
    sets = ["train.student.labelled_batch=1", "train.student.unlabelled_batch=1",
            "train.student.steps=2", "train.student.warmup_steps=0"]  # fmt: skip
    ended = run_ranks(2, train, (small_config, run_dir, 1, (*sets, "train.accumulate=2")), tmp_path)
    assert [one.code for one in ended] == [1, 1], ended
    assert "expected at least 4 samples per step" in ended[0].text
    assert "on 2 processes, found 2" in ended[0].text
    assert ended[1].text == ""
    ended = run_ranks(2, train, (small_config, run_dir, 1, sets), tmp_path)
    assert [one.code for one in ended] == [0, 0], ended


@pytest.mark.parametrize("rank", [0, 1])
def test_sigterm_to_any_process_saves_and_resuming_equals_not_stopping(
    small_config, run_dir, tmp_path, rank
):
    whole = tmp_path / "whole"
    shutil.copytree(run_dir, whole)
    ended = run_ranks(2, train, (small_config, whole, 1), tmp_path)
    assert [one.code for one in ended] == [0, 0], ended
    stop = functools.partial(terminate_after, step=4, rank=rank)
    ended = run_ranks(2, train, (small_config, run_dir, 1, (), stop), tmp_path)
    assert [one.code for one in ended] == [75, 75], ended
    said = [line for line in ended[0].text.splitlines() if "run the same command again" in line]
    assert len(said) == 1
    assert ended[1].text == ""
    kept = sorted(path.name for path in (run_dir / "round-1/student/checkpoints").iterdir())
    assert kept == ["step-00000003", "step-00000005"]
    ended = run_ranks(2, train, (small_config, run_dir, 1), tmp_path)
    assert [one.code for one in ended] == [0, 0], ended
    for name in FILES:
        mine = (run_dir / "round-1" / "student" / name).read_bytes()
        assert mine == (whole / "round-1" / "student" / name).read_bytes(), name


def test_a_killed_process_ends_the_others_and_costs_at_most_the_interval(
    small_config, run_dir, tmp_path
):
    die = functools.partial(kill_at, step=5, rank=1)
    ended = run_ranks(2, train, (small_config, run_dir, 1, (), die), tmp_path)
    assert [one.code for one in ended] == [1, 9], ended
    assert "lost another one" in ended[0].text
    kept = [path.name for path in (run_dir / "round-1/student/checkpoints").iterdir()]
    assert kept == ["step-00000003"]
    ended = run_ranks(2, train, (small_config, run_dir, 1), tmp_path)
    assert [one.code for one in ended] == [0, 0], ended


def test_a_mistake_is_told_once_and_nobody_waits(small_config, run_dir, tmp_path):
    """A label that one process alone cannot read, a loss that is infinite."""
    store = run_dir / "round-1" / "labels.zarr"
    for shard in (store / "mask" / "c").rglob("*"):
        if shard.is_file():
            shard.write_bytes(b"damaged" + shard.read_bytes()[7:])
    cases = {
        "row 29 cannot be read": (),
        "loss is inf at step 0": ("train.damaged=skip", "train.labelled_weight=1.0e+300"),
    }
    for message, sets in cases.items():
        shutil.rmtree(run_dir / "round-1" / "student", ignore_errors=True)
        ended = run_ranks(2, train, (small_config, run_dir, 1, sets), tmp_path)
        assert [one.code for one in ended] == [1, 1], ended
        text = "".join(one.text for one in ended)
        assert len([line for line in text.splitlines() if line.startswith("error: ")]) == 1, text
        assert message in text
    assert not (run_dir / "round-1" / "student" / "student.json").exists()


def test_torchrun_starts_the_verb(small_config, run_dir, alone, tmp_path):
    script = tmp_path / "verb.py"
    script.write_text("from train.cli import train_student\ntrain_student()\n")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        str(script), "--config", str(small_config), "--run-dir", str(run_dir), "--round", "1",
        "--set", *GENTLE,
    ]  # fmt: skip
    found = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("train-1") == 1
    assert_same_training(run_dir / "round-1" / "student", alone)


def normalise(folder):
    """Run five images, three and two on a process, through the layer and back."""
    from train.processes import joined

    with joined() as processes:
        torch.manual_seed(0)
        images = torch.randn(5, 3, 4, 4, dtype=torch.float64)
        layer = SyncedBatchNorm2d(3).double()
        mine = images[processes.rank :: 2].requires_grad_()
        factors = (1 + torch.arange(5.0))[processes.rank :: 2, None, None, None]
        (layer(mine) * factors).square().sum().backward()
        found = {"grad": mine.grad, "mean": layer.running_mean, "var": layer.running_var}
        count = {"count": layer.num_batches_tracked}
        torch.save(found | count, folder / f"{processes.rank}.pt")


def test_batch_normalisation_over_processes_equals_one_batch(tmp_path):
    ended = run_ranks(2, normalise, (tmp_path,), tmp_path)
    assert [one.code for one in ended] == [0, 0], ended
    torch.manual_seed(0)
    images = torch.randn(5, 3, 4, 4, dtype=torch.float64).requires_grad_()
    layer = torch.nn.BatchNorm2d(3).double()
    (layer(images) * (1 + torch.arange(5.0)[:, None, None, None])).square().sum().backward()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.allclose(found["grad"], images.grad[rank::2])
        assert torch.allclose(found["mean"], layer.running_mean)
        assert torch.allclose(found["var"], layer.running_var)
        assert found["count"] == 1
