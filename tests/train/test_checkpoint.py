import copy
import json

import pytest
import torch
from torch import nn

from pipeline.errors import StoreError
from train.checkpoint import (
    Checkpoint,
    latest,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    verify_checkpoint,
)


def make_checkpoint(step=3, seed=0):
    torch.manual_seed(seed)
    student = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.1)
    student(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    state = {"optimizer": optimizer.state_dict(), "generator": torch.get_rng_state(), "loss": 0.5}
    return Checkpoint(
        step=step,
        weights={"student": student.state_dict(), "teacher": nn.Linear(2, 2).state_dict()},
        state=state,
        about={"round": 1, "config": {"lr": 0.1}},
    )


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_round_trip(tmp_path):
    saved = make_checkpoint()
    loaded = load_checkpoint(save_checkpoint(tmp_path / "deep" / "root", saved))
    assert (loaded.step, loaded.about) == (3, {"round": 1, "config": {"lr": 0.1}})
    assert set(loaded.weights) == {"student", "teacher"}
    for name, tensor in saved.weights["student"].items():
        assert torch.equal(loaded.weights["student"][name], tensor)
        assert loaded.weights["student"][name].dtype == tensor.dtype
    assert loaded.state["loss"] == 0.5
    assert torch.equal(loaded.state["generator"], saved.state["generator"])
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
    optimizer.load_state_dict(loaded.state["optimizer"])
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_same_contents_give_the_same_bytes(tmp_path):
    saved = make_checkpoint()
    again = copy.deepcopy(saved)
    first = files_of(save_checkpoint(tmp_path / "a", saved))
    assert first == files_of(save_checkpoint(tmp_path / "b", again))
    assert first == files_of(save_checkpoint(tmp_path / "a", saved))  # over itself


def test_latest_is_the_newest_and_old_ones_are_dropped(tmp_path):
    assert latest(tmp_path / "none") is None
    for step in (5, 20, 100):
        save_checkpoint(tmp_path, make_checkpoint(step), keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000020", "step-00000100"]
    assert latest(tmp_path).name == "step-00000100"


@pytest.mark.parametrize("name", ["student.safetensors", "state.pt", "checkpoint.json"])
def test_a_truncated_file_is_found_and_passed_over(tmp_path, name):
    good = save_checkpoint(tmp_path, make_checkpoint(1))
    bad = save_checkpoint(tmp_path, make_checkpoint(2))
    (bad / name).write_bytes((bad / name).read_bytes()[:-1])
    with pytest.raises(StoreError, match=name):
        load_checkpoint(bad)
    assert latest(tmp_path) == good


@pytest.mark.parametrize("name", ["done", "state.pt"])
def test_a_missing_file_is_found_and_passed_over(tmp_path, name):
    good = save_checkpoint(tmp_path, make_checkpoint(1))
    bad = save_checkpoint(tmp_path, make_checkpoint(2))
    (bad / name).unlink()
    with pytest.raises(StoreError, match=name):
        verify_checkpoint(bad)
    assert latest(tmp_path) == good


def test_leftovers_of_a_crash_are_not_seen_and_are_cleared(tmp_path):
    (tmp_path / ".new-step-00000009").mkdir()
    (tmp_path / "step-00000009").mkdir()  # renamed, but the marker was never written
    assert latest(tmp_path) is None
    folder = save_checkpoint(tmp_path, make_checkpoint(9), keep=1)
    assert latest(tmp_path) == folder
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000009"]


def test_another_format_is_refused(tmp_path):
    folder = save_checkpoint(tmp_path, make_checkpoint())
    about = json.loads((folder / "checkpoint.json").read_text())
    (folder / "checkpoint.json").write_text(json.dumps(about | {"format": 99}))
    with pytest.raises(StoreError, match="sha256"):
        verify_checkpoint(folder)


def test_a_state_of_other_than_plain_values_is_refused(tmp_path):
    saved = Checkpoint(step=1, weights={}, state={"odd": nn.Linear(1, 1)}, about={})
    with pytest.raises(StoreError, match=r"state\.pt"):
        load_checkpoint(save_checkpoint(tmp_path, saved))


def test_keeping_none_is_refused(tmp_path):
    with pytest.raises(StoreError, match="got 0"):
        save_checkpoint(tmp_path, make_checkpoint(), keep=0)


def test_weights_that_do_not_fit_are_named():
    model = nn.Linear(3, 2)
    good = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
    load_weights(model, good, "here")
    assert torch.equal(model.weight, torch.ones(2, 3))
    with pytest.raises(StoreError, match=r"here: weight has shape \(2, 4\).*\(2, 3\)"):
        load_weights(model, good | {"weight": torch.ones(2, 4)}, "here")
    with pytest.raises(StoreError, match="lacks bias"):
        load_weights(model, {"weight": torch.ones(2, 3)}, "here")
    with pytest.raises(StoreError, match="unknown odd"):
        load_weights(model, good | {"odd": torch.ones(1)}, "here")


def test_the_best_is_kept_beside_the_newest(tmp_path):
    for step in range(1, 6):
        save_checkpoint(tmp_path, make_checkpoint(step), keep=2, best=min(step, 2))
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["step-00000002", "step-00000004", "step-00000005"]
    assert latest(tmp_path).name == "step-00000005"
    assert verify_checkpoint(tmp_path / "step-00000002")["step"] == 2
