"""What `run-rounds --dry-run` says of every step is what the step then does."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.commands import Settings
from pipeline.errors import ConfigError
from pipeline.json_files import read_checked, write_checked
from pipeline.manifest import load_manifest
from train.cli import job_config, run_rounds, train_student
from train.evaluate import refuse_no_truth
from train.job import refuse_missing_files
from train.job_plan import plan_job
from train.rounds import run_rounds as do_rounds

ROOT = Path(__file__).parents[2]


def invoke(verb, config, run_dir, *more):
    arguments = ["--config", str(config), "--run-dir", str(run_dir), *more]
    return CliRunner().invoke(verb, arguments)


def steps_of(config, run_dir, *overrides, **how):
    job = job_config(Settings(config, run_dir, overrides))
    return {step.verb: step for step in plan_job(job, run_dir, **how)}


def states(steps):
    return {verb: step.state for verb, step in steps.items()}


@pytest.fixture
def copy(finished_run, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(finished_run[0], run_dir)
    return run_dir


def contents(run_dir):
    return {path: path.stat().st_mtime_ns for path in sorted(run_dir.rglob("*"))}


def test_a_fresh_run_lists_every_step_of_the_config(small_config, tmp_path):
    found = states(steps_of(small_config, tmp_path / "run"))
    assert list(found) == [
        "prepare-data", "sam-candidates", "train-student --round 0",
        "evaluate-student --round 0 --split val", "predict-teacher --round 1",
        "refine-labels --round 1", "train-student --round 1",
        "evaluate-student --round 1 --split val", "predict-teacher --round 2",
        "refine-labels --round 2", "train-student --round 2",
        "evaluate-student --round 2 --split val",
    ]  # fmt: skip
    assert found.pop("prepare-data") == "to do"
    assert set(found.values()) == {"waits"}
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_done_and_stays_as_it_is(finished_run, small_config):
    before = contents(finished_run[0])
    result = invoke(run_rounds, small_config, finished_run[0], "--dry-run")
    assert result.exit_code == 0, result.output
    assert f"{finished_run[0]}: 12 done, 0 to do\n" in result.stdout
    assert contents(finished_run[0]) == before


def test_what_is_missing_is_to_do_and_what_needs_it_waits(copy, small_config):
    shutil.rmtree(copy / "round-1" / "labels.zarr")
    shutil.rmtree(copy / "round-1" / "labels.stage")
    found = states(steps_of(small_config, copy))
    assert found["predict-teacher --round 1"] == "done"
    assert found["refine-labels --round 1"] == "to do"
    assert found["train-student --round 1"] == "waits"
    assert found["train-student --round 2"] == "waits"


def test_calibration_brings_its_folds(small_config, tmp_path):
    overrides = ("rounds.calibrate=true", "calibrate.folds=2", "rounds.rounds=1")
    found = list(steps_of(small_config, tmp_path / "run", *overrides))
    assert [verb for verb in found if "fold" in verb or "calibrate" in verb] == [
        "train-student --fold 1/2", "predict-teacher --fold 1/2", "train-student --fold 2/2",
        "predict-teacher --fold 2/2", "refine-labels calibrate --round 1",
    ]  # fmt: skip


def test_a_training_made_otherwise_would_refuse_as_the_command_does(copy, small_config):
    override = "train.burn_in.steps=80"
    options = ("--round", "0", "--set", override)
    dry = invoke(train_student, small_config, copy, *options, "--dry-run")
    real = invoke(train_student, small_config, copy, *options)
    assert dry.exit_code == real.exit_code == 1
    message = real.stderr.removeprefix("error: ").strip()
    assert "config.burn_in.steps: 12, now 80" in message
    assert dry.stdout.strip() == f"train-0: would refuse: {message}"
    steps = steps_of(small_config, copy, override)
    assert steps["train-student --round 0"].state == "refuses"
    assert steps["train-student --round 0"].note == message
    assert steps["predict-teacher --round 1"].state == "waits"
    assert steps["sam-candidates"].state == "done"
    forced = steps_of(small_config, copy, override, force=True)
    assert forced["train-student --round 0"].state == "to do"


def test_a_training_is_done_or_to_do(copy, small_config):
    done = invoke(train_student, small_config, copy, "--round", "1", "--dry-run")
    assert done.stdout == "train-1: 8 steps; done\n"
    shutil.rmtree(copy / "round-1" / "student")
    todo = invoke(train_student, small_config, copy, "--round", "1", "--dry-run")
    assert todo.stdout == "train-1: 8 steps; to do\n"
    assert not (copy / "round-1" / "student").exists()


def leave_out(run_dir, *names):
    """Have the training of round 0 say that it left images out."""
    path = run_dir / "round-0" / "student" / "plan.json"
    write_checked(path, {**read_checked(path), "left_out": list(names)})


def test_images_that_a_training_left_out_do_not_make_it_another(copy, small_config):
    """Left-out images are part of a training's plan, and a dry run reads those, and no others."""
    manifest = load_manifest(copy / "manifest")
    first, second = (manifest.image_path[row] for row in manifest.labelled_images())
    for row in manifest.labelled_images():
        manifest.image_file(row).write_bytes(b"no longer an image")
    for left_out in ((), (first,), (first, second)):
        leave_out(copy, *left_out)
        assert states(steps_of(small_config, copy))["train-student --round 0"] == "done"


def test_an_image_that_was_left_out_and_can_be_read_is_refused_in_words(copy, small_config):
    manifest = load_manifest(copy / "manifest")
    first, second = (manifest.image_path[row] for row in manifest.labelled_images())
    leave_out(copy, first)
    said = f"1 image was left out that can be read now ({first}); add --force to train anew"
    step = steps_of(small_config, copy)["train-student --round 0"]
    assert step.state == "refuses"
    assert said in step.note
    real = invoke(train_student, small_config, copy, "--round", "0")
    assert (real.exit_code, real.stderr.strip()) == (1, f"error: {step.note}")
    forced = steps_of(small_config, copy, force=True)["train-student --round 0"]
    assert forced.state == "to do"
    assert said in forced.note
    leave_out(copy, first, second)
    step = steps_of(small_config, copy)["train-student --round 0"]
    assert f"2 images were left out that can be read now ({first} and 1 more)" in step.note


def test_an_image_that_was_trained_on_and_is_lost_is_told_by_the_verb(copy, small_config):
    manifest = load_manifest(copy / "manifest")
    row = manifest.labelled_images()[0]
    manifest.image_file(row).unlink()
    refused = invoke(train_student, small_config, copy, "--round", "0")
    assert refused.exit_code == 1
    name = manifest.image_path[row]
    assert f"1 image cannot be read now that had not been left out ({name})" in refused.stderr


def test_nothing_labelled_is_told_before_the_candidates_are_made(small_config, tmp_path):
    from pipeline.prepare import prepare_data

    job = job_config(Settings(small_config, tmp_path, ("data.labelled.ratio=null",)))
    prepare_data(job.data, tmp_path)
    step = steps_of(small_config, tmp_path, "data.labelled.ratio=null")["train-student --round 0"]
    assert step.state == "refuses"
    assert "raise data.labelled" in step.note


def test_all_missing_files_are_named_at_once(small_config, tmp_path, monkeypatch):
    lost = {
        "data.annotations": "photos.jsonl", "candidates.checkpoint": "sam.pth",
        "train.network.tokenizer": "vocab.txt", "train.network.init[0]": "bert.safetensors",
    }  # fmt: skip
    overrides = (
        "data.reader=jsonl", "data.annotations=photos.jsonl", "candidates.model=vit_b",
        "candidates.checkpoint=sam.pth", "train.network.tokenizer=vocab.txt",
        "train.network.init=[bert.safetensors]",
    )  # fmt: skip
    options = [part for override in overrides for part in ("--set", override)]
    for more in ((), ("--dry-run",)):
        result = invoke(run_rounds, small_config, tmp_path / "run", *options, *more)
        assert result.exit_code == 1
        assert all(f"{key}: {path}" in result.stderr for key, path in lost.items())
        assert result.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
    for path in lost.values():
        (tmp_path / path).touch()
    monkeypatch.chdir(tmp_path)
    refuse_missing_files(job_config(Settings(small_config, tmp_path, overrides)))


def test_what_only_the_hub_knows_is_no_missing_file(small_config, tmp_path):
    options = ("--set", "train.network.tokenizer=bert-base-uncased", "--dry-run")
    result = invoke(run_rounds, small_config, tmp_path / "run", *options)
    assert result.exit_code == 0, result.output
    assert "train.network.tokenizer: bert-base-uncased is no path here" in result.stdout


def test_a_job_that_could_not_be_evaluated_is_refused_before_candidates(small_config, tmp_path):
    options = ("--set", "data.scenes={train: 8, testA: 3}")
    result = invoke(run_rounds, small_config, tmp_path, *options)
    assert result.exit_code == 1
    assert "expected objects with masks in val, found none" in result.stderr
    assert "splits with masks: train, testA" in result.stderr
    assert "evaluate.splits to []" in result.stderr
    assert not (tmp_path / "candidates.zarr").exists()
    dry = invoke(run_rounds, small_config, tmp_path, *options, "--dry-run")
    assert dry.exit_code == 1
    assert "would refuse: evaluate.splits: expected objects with masks in val" in dry.stdout


def test_a_job_may_go_without_evaluation(small_config, tmp_path):
    options = (
        "data.scenes={train: 8}", "evaluate.splits=[]", "rounds.rounds=1", "train.burn_in.steps=2",
        "train.student.steps=2",
    )  # fmt: skip
    sets = [part for option in options for part in ("--set", option)]
    result = invoke(run_rounds, small_config, tmp_path, *sets)
    assert result.exit_code == 0, result.output
    assert "no round is evaluated" in result.stdout
    assert "student of" not in result.stdout
    assert "nothing to compare" not in result.stderr
    assert [row["metrics"] for row in json.loads((tmp_path / "summary.json").read_text())] == [
        {}, {},
    ]  # fmt: skip


def test_a_rule_to_stop_needs_a_split(small_config, tmp_path):
    with pytest.raises(ConfigError, match=r"rounds\.stop: expected a split in evaluate\.splits"):
        job_config(Settings(small_config, tmp_path, ("evaluate.splits=[]", "rounds.stop={}")))


def test_any_of_the_splits_is_enough(finished_run, small_config):
    from dataclasses import replace

    manifest = load_manifest(finished_run[0] / "manifest")
    config = job_config(Settings(small_config, finished_run[0], ())).evaluate
    refuse_no_truth(replace(config, splits=("testA", "val")), manifest)
    refuse_no_truth(replace(config, splits=()), manifest)
    with pytest.raises(ConfigError, match="in testA or testB, found none"):
        refuse_no_truth(replace(config, splits=("testA", "testB")), manifest)


def test_a_limited_job_has_so_many_images_and_resumes_with_the_same_limit(small_config, tmp_path):
    overrides = ("rounds.rounds=1", "train.burn_in.steps=2", "train.student.steps=2",
                 "data.labelled.ratio=0.5")  # fmt: skip
    job = job_config(Settings(small_config, tmp_path, overrides))
    do_rounds(job, tmp_path, limit=2, say=lambda _: None)
    manifest = load_manifest(tmp_path / "manifest")
    assert len(manifest.images_of("train")) == len(manifest.images_of("val")) == 2
    limited = states(steps_of(small_config, tmp_path, *overrides, limit=2))
    assert set(limited.values()) == {"done"}
    whole = steps_of(small_config, tmp_path, *overrides)["prepare-data"]
    assert whole.state == "refuses"
    assert "limit: 2, now null" in whole.note


@pytest.mark.parametrize(
    ("verb", "override"),
    [
        ("train-student", "train.burn_in.stepz=1"),
        ("predict-teacher", "teacher.stepz=1"),
        ("evaluate-student", "evaluate.stepz=1"),
        ("run-rounds", "rounds.stepz=1"),
        ("run-rounds", "candidates.model=vit_x"),
        ("run-rounds", "train.network.init=[lost.safetensors]"),
        ("train-student", "train.network.tokenizer=lost/vocab.txt"),
    ],
)
def test_a_mistake_is_told_without_waiting_for_torch(small_config, tmp_path, verb, override):
    """Torch takes seconds to import, and a mistake in the config need not wait for it."""
    code = f"""
import sys
from train import cli
try:
    cli.{verb.replace("-", "_")}.main(sys.argv[1:])
except SystemExit as ended:
    assert ended.code == 1, ended.code
slow = {{"torch", "transformers", "torchvision"}} & set(sys.modules)
assert not slow, slow
"""
    options = ["--config", str(small_config), "--run-dir", str(tmp_path), "--set", override]
    result = subprocess.run(
        [sys.executable, "-c", code, *options],
        cwd=ROOT, capture_output=True, text=True, check=False, env=dict(os.environ),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stderr.startswith("error: ")
