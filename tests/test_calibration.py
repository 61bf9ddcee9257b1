"""Calibration end to end: folds, their predictions, the sweep, and the chain that is applied."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from pipeline.folds import Fold, held_out_images
from pipeline.manifest import load_manifest
from pipeline.paths import RunPaths
from refine.calibration import CalibrateConfig, HeldOut, calibrate
from refine.cli import refine_labels
from refine.probability import ProbabilityConfig
from refine.quality import mask_iou
from refine.strategies import ChainLink, parse_chain, refine
from train.cli import predict_teacher, train_student

SETS = ("--set", "calibrate.folds=2", "--set", "train.burn_in.steps=6")


@pytest.fixture(scope="module")
def calibrated(small_config, finished_run, tmp_path_factory):
    """A copy of the finished run with two folds and their predictions."""
    run_dir = tmp_path_factory.mktemp("calibrated") / "run"
    shutil.copytree(finished_run[0], run_dir)
    where = ["--config", str(small_config), "--run-dir", str(run_dir), *SETS]
    for fold in ("1/2", "2/2"):
        for command in (train_student, predict_teacher):
            result = CliRunner().invoke(command, [*where, "--fold", fold])
            assert result.exit_code == 0, result.output
    return run_dir, where


def test_folds_hold_out_what_they_predict(calibrated):
    run_dir, _ = calibrated
    paths = RunPaths(run_dir)
    manifest = load_manifest(paths.manifest)
    predicted = []
    for number in (1, 2):
        fold = Fold(number, 2)
        from refine.teacher_store import TeacherReader

        rows = TeacherReader(paths.fold_teacher(fold)).scalars()["expression"]
        images = set(manifest.expression_image[rows].tolist())
        assert images == set(held_out_images(manifest.labelled_images(), fold).tolist())
        plan = json.loads((paths.fold_student(fold) / "student.json").read_text())["plan"]
        assert plan["held_out"] == f"{number}/2"
        predicted += rows.tolist()
    assert sorted(predicted) == manifest.expressions_of("train", labelled=True).tolist()


def test_the_table_says_what_refining_would_give(calibrated):
    run_dir, _ = calibrated
    document = calibrate(CalibrateConfig(folds=2), run_dir, 1)
    assert document["settings"] >= 300
    assert document["skipped"] == 0
    held_out = HeldOut(CalibrateConfig(folds=2), run_dir, None)
    for row in (document["rows"][0], document["rows"][len(document["rows"]) // 2]):
        about = document["probabilities"][row["probability"]]
        probability = ProbabilityConfig(context=about.context, slope=about.slope, bias=about.bias)
        links = [
            ChainLink(strategy=row["strategy"], params=row["params"], min_gain=row["min_gain"]),
            ChainLink(strategy="pwa"),
        ]
        chain = parse_chain(links[1:] if row["strategy"] in ("none", "pwa") else links, "chain")
        ious = []

        def measure(predictions, known, probability=probability, chain=chain, ious=ious):
            evidence, _ = predictions.see(known.evidence, known.prediction, probability)
            ious.append(mask_iou(refine(evidence, chain).mask_HW, known.truth_HW)[2])

        held_out.visit(measure)
        assert len(ious) == document["expressions"]
        assert row["mean_iou"] == pytest.approx(np.mean(ious))


def test_the_best_setting_is_applied_and_can_be_taken_back(calibrated):
    run_dir, where = calibrated
    paths = RunPaths(run_dir)
    result = CliRunner().invoke(refine_labels, ["calibrate", *where, "--round", "2", "--apply"])
    assert result.exit_code == 0, result.output
    assert (run_dir / "round-2" / "calibration.png").stat().st_size > 10_000
    chosen = json.loads(paths.chosen_strategy(2).read_text())
    result = CliRunner().invoke(refine_labels, [*where, "--round", "2"])
    assert result.exit_code == 1
    assert "--force" in result.output  # the labels there were made by another chain
    result = CliRunner().invoke(refine_labels, [*where, "--round", "2", "--force"])
    assert result.exit_code == 0, result.output
    made = json.loads(paths.quality(2).read_text())
    assert [link["strategy"] for link in made["chain"]] == [
        link["strategy"] for link in chosen["chain"]
    ]
    assert made["probability"] == chosen["probability"]
    result = CliRunner().invoke(refine_labels, [*where, "--round", "2", "--strategy", "iom"])
    assert "--force" in result.output  # an explicit strategy is not what was applied
    paths.chosen_strategy(2).unlink()
    result = CliRunner().invoke(refine_labels, [*where, "--round", "2", "--force"])
    assert result.exit_code == 0, result.output
    made = json.loads(paths.quality(2).read_text())
    assert [link["strategy"] for link in made["chain"]] == ["cpi-u", "pwa"]


def test_what_is_missing_or_stale_is_named(calibrated, finished_run, small_config, tmp_path):
    run_dir, where = calibrated
    where_three = [*where, "--set", "calibrate.folds=3"]
    result = CliRunner().invoke(refine_labels, ["calibrate", *where_three])
    assert result.exit_code == 1
    assert "run 'predict-teacher --fold 1/3'" in result.output
    paths = RunPaths(run_dir)
    paths.chosen_strategy(1).write_text('{"manifest": "another", "chain": [], "probability": {}}')
    result = CliRunner().invoke(refine_labels, [*where, "--round", "1"])
    assert result.exit_code == 1
    assert "chosen for another data set" in result.output
    paths.chosen_strategy(1).unlink()
    result = CliRunner().invoke(refine_labels, [*where, "calibrate"])
    assert result.exit_code == 2
    assert "put options after 'calibrate'" in result.output
    result = CliRunner().invoke(train_student, [*where, "--fold", "3/2"])
    assert result.exit_code == 2
    assert "fold: expected" in result.output


def test_a_job_calibrates_its_rounds_where_asked(small_config, tmp_path):
    """The whole job with calibration; run again it changes nothing."""
    from pipeline.commands import Settings
    from tests.conftest import file_hashes
    from train.cli import job_config
    from train.rounds import run_rounds

    sets = ("rounds.calibrate=true", "rounds.rounds=1", "calibrate.folds=2")
    job = job_config(Settings(small_config, tmp_path, sets))
    summary = run_rounds(job, tmp_path, say=lambda _: None)
    assert not summary.failures
    paths = RunPaths(tmp_path)
    assert json.loads(paths.calibration(1).read_text())["settings"] >= 300
    before = file_hashes(tmp_path)
    assert any("calibration/fold-2-of-2/teacher.zarr" in name for name in before)
    run_rounds(job, tmp_path, say=lambda _: None)
    assert file_hashes(tmp_path) == before
