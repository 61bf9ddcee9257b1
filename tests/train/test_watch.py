"""Weights & Biases beside the CSV logs: refused early where it cannot work, the same figures."""

import csv
import json
import struct
import sys
from types import SimpleNamespace

import pytest

from pipeline.errors import ConfigError
from train import watch
from train.config import TrainConfig
from train.watch import Watch, require_wandb

BLOCK, WHOLE, LAST = 32768, 1, 4
LOSSES = {"loss": 0.5, "supervised": 0.25, "unsupervised": 0.25, "grad_norm": 1.5, "lr": 1e-4}


def test_wandb_is_off_unless_a_project_is_named():
    assert TrainConfig().wandb is None


def test_off_leaves_no_trace_in_the_folder(tmp_path):
    with Watch(tmp_path, "train-0", 0, 1, tensorboard=False, wandb=None) as log:
        log.step(0, LOSSES, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_off_asks_for_no_package(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "find_spec", lambda name: pytest.fail(f"looked for {name}"))
    with Watch(tmp_path, "train-0", 0, 1, tensorboard=False):
        pass


def test_wandb_that_is_missing_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[watch\]'") as caught:
        Watch(tmp_path, "train-0", 0, 1, tensorboard=False, wandb="semires")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_named_wandb_is_not_the_package(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(ConfigError, match="expected the package wandb, found none"):
        require_wandb("semires")


@pytest.mark.parametrize("project", ["", "  ", "team/project", "a:b", "x" * 129])
def test_an_improper_project_is_refused_before_the_package_is_looked_for(project, monkeypatch):
    monkeypatch.setattr(watch, "find_spec", lambda name: pytest.fail(f"looked for {name}"))
    with pytest.raises(ConfigError, match=r"train\.wandb: expected the name of a project"):
        require_wandb(project)


def test_a_proper_project_passes_where_the_package_is_there(monkeypatch):
    monkeypatch.setattr(watch, "find_spec", lambda _: SimpleNamespace(origin="wandb/__init__.py"))
    require_wandb("semires")


def test_wandb_offline_holds_the_figures_of_the_csv_logs(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with Watch(tmp_path, "train-1", 0, 3, tensorboard=False, wandb="semires") as log:
        log.step(0, LOSSES, 4)
        log.step(1, LOSSES | {"loss": 0.125}, 4)
        log.look(2, {"overall_iou": 0.75, "mean_iou": 0.5})
    first = rows_of(tmp_path)
    assert sorted(first) == [0, 1, 2]
    with (tmp_path / "log.csv").open() as handle:
        for line in csv.DictReader(handle):
            logged = first[int(line.pop("step"))]
            assert {name: float(value) for name, value in line.items()} == logged
    assert first[2] == {"val/overall_iou": 0.75, "val/mean_iou": 0.5}


def test_a_resumed_training_goes_on_with_its_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    names = []
    for start in (0, 1, 0):
        with Watch(tmp_path, "train-1", start, 2, tensorboard=False, wandb="semires") as log:
            log.step(start, LOSSES, 4)
        names.append((tmp_path / "wandb" / "run-id").read_text())
    assert names[0] == names[1] != names[2]
    kept = [path.stem.rpartition("-")[2] for path in (tmp_path / "wandb").glob("*/run-*.wandb")]
    assert {name.strip() for name in names} == set(kept)


def records_of(data):
    """Give the records of a log in LevelDB's format behind W&B's own head of seven bytes."""
    at, record = 7, b""
    while at + 7 <= len(data):
        if (left := BLOCK - at % BLOCK) < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (WHOLE, LAST):
            yield record
            record = b""


def rows_of(folder):
    """Read the figures by step from the log that W&B keeps offline."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    rows = {}
    for data in records_of(path.read_bytes()):
        history = Record.FromString(data).history
        items = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in history.item}
        if items:
            rows[items["_step"]] = {name: v for name, v in items.items() if name[0] != "_"}
    return rows
