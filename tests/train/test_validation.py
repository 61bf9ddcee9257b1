"""Looking at the validation split: which teacher is best, when to stop, what is left."""

import csv
import functools
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.commands import Settings
from pipeline.errors import ConfigError
from pipeline.manifest import load_manifest
from tests.train.ranks import run_ranks, terminate_after, train
from train.config import EvaluateConfig, TrainConfig
from train.evaluate import evaluate_student
from train.student import train_student
from train.validation import NO_LOOK, Progress, rows_to_look_at

FILES = ("teacher.safetensors", "log.csv", "validation.csv", "student.json")


@pytest.fixture
def config(small_config, tmp_path):
    found = Settings(small_config, tmp_path, ()).section("train", TrainConfig)
    return replace(found, evaluate_every=2, evaluate_expressions=7)


@pytest.fixture
def run_dir(finished_run, tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    for name in ("manifest", "scenes"):
        shutil.copytree(finished_run[0] / name, path / name)
    return path


@given(figures=st.lists(st.floats(0, 1), min_size=1), patience=st.integers(1, 4))
def test_the_best_is_the_earliest_largest_and_patience_counts_from_it(figures, patience):
    progress = NO_LOOK
    for step, figure in enumerate(figures, start=1):
        progress = progress.after(step, figure)
    best = max(figures)
    assert progress.best_figure == best
    assert progress.best_step == figures.index(best) + 1
    assert progress.without_better == len(figures) - progress.best_step
    assert progress.is_over(patience) == (len(figures) - progress.best_step >= patience)
    assert not progress.is_over(None)
    assert Progress.of(json.loads(json.dumps(progress.plain()))) == progress


def test_expressions_are_spread_over_the_split(run_dir):
    manifest = load_manifest(run_dir / "manifest")
    everything = rows_to_look_at(manifest, 10**6)
    assert rows_to_look_at(manifest, len(everything)).tolist() == everything.tolist()
    assert rows_to_look_at(manifest, 2).tolist() == [everything[0], everything[-1]]
    some = rows_to_look_at(manifest, 7).tolist()
    assert some == sorted(set(some))
    assert set(some) <= set(everything.tolist())


def looks(folder):
    with (folder / "validation.csv").open() as handle:
        return {int(row["step"]): float(row["overall_iou"]) for row in csv.DictReader(handle)}


def test_a_look_equals_the_evaluation_of_what_is_left(run_dir, config, small_config):
    summary = train_student(replace(config, evaluate_expressions=10**6), run_dir, 0)
    found = looks(run_dir / "round-0" / "student")
    assert list(found) == [2, 4, 6, 8, 10, 12]
    section = Settings(small_config, run_dir, ()).section("evaluate", EvaluateConfig)
    result = evaluate_student(section, run_dir, 0, "val")
    assert found[12] == pytest.approx(result["square"]["overall_iou"], abs=1e-3)
    assert summary.best.best_figure == pytest.approx(max(found.values()), abs=1e-6)


def test_looking_changes_nothing_unless_it_decides(run_dir, config, finished_run):
    train_student(config, run_dir, 0)
    for name in ("teacher.safetensors", "log.csv", "plan.json"):
        whole = finished_run[0] / "round-0" / "student" / name
        assert (run_dir / "round-0" / "student" / name).read_bytes() == whole.read_bytes()


def test_patience_ends_the_training_and_the_best_teacher_is_left(run_dir, config, monkeypatch):
    """Figures are given here, so that the third look is the best: 0.3, 0.4, 0.6, 0.5, 0.6, ..."""
    from train import validation
    from train.metrics import IoUSums

    figures = iter([3, 4, 6, 5, 6, 9])
    monkeypatch.setattr(
        validation.Examiner,
        "measure",
        lambda *_: IoUSums(intersection=next(figures), union=10, count=1),
    )
    stopping = replace(config, patience=2, final="best", keep_checkpoints=1)
    summary = train_student(stopping, run_dir, 0)
    assert (summary.stopped_at, summary.steps) == (10, 12)
    assert (summary.best.best_step, summary.best.best_figure) == (6, 0.6)
    student = run_dir / "round-0" / "student"
    described = json.loads((student / "student.json").read_text())["looks"]
    assert (described["best_step"], described["last_step"], described["final"]) == (6, 10, "best")
    left = (student / "teacher.safetensors").read_bytes()
    figures = iter([3, 4, 6, 5, 6, 9])
    train_student(replace(stopping, final="last"), run_dir, 0, replace="always")
    assert (student / "teacher.safetensors").read_bytes() != left
    assert not (student / "checkpoints").exists()


@pytest.mark.ddp
def test_stopping_between_looks_and_resuming_equals_not_stopping(run_dir, small_config, tmp_path):
    sets = ("train.evaluate_every=4", "train.evaluate_expressions=5", "train.final=best",
            "train.keep_checkpoints=1")  # fmt: skip
    whole = tmp_path / "whole"
    shutil.copytree(run_dir, whole)
    assert run_ranks(1, train, (small_config, whole, 0, sets), tmp_path)[0].code == 0
    stop = functools.partial(terminate_after, step=6, rank=0)
    ended = run_ranks(1, train, (small_config, run_dir, 0, sets, stop), tmp_path)
    assert ended[0].code == 75, ended
    assert "run the same command again" in ended[0].text
    assert (run_dir / "round-0/student/checkpoints/step-00000007/done").exists()
    assert run_ranks(1, train, (small_config, run_dir, 0, sets), tmp_path)[0].code == 0
    for name in FILES:
        mine = (run_dir / "round-0" / "student" / name).read_bytes()
        assert mine == (whole / "round-0" / "student" / name).read_bytes(), name


def test_settings_that_need_looks_are_refused_without(config):
    for wrong in ({"patience": 2}, {"final": "best"}):
        with pytest.raises(ValueError, match="evaluate_every: expected a number of steps"):
            replace(config, evaluate_every=None, **wrong)


def test_a_split_without_truth_cannot_be_looked_at(finished_run):
    manifest = load_manifest(finished_run[0] / "manifest")
    in_training = replace(manifest, object_split=np.zeros_like(manifest.object_split))
    with pytest.raises(ConfigError, match="found none; leave it out"):
        rows_to_look_at(in_training, 3)
