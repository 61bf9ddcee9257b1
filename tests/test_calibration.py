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
from refine.chosen import apply_best
from refine.cli import refine_labels
from refine.probability import ProbabilityConfig
from refine.quality import mask_iou
from refine.stage import RefineConfig
from refine.strategies import ChainLink, parse_chain, refine
from refine.teacher_store import TeacherReader
from train.cli import predict_teacher, train_student
from train.data import build_index

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
        rows = TeacherReader(paths.fold_teacher(fold)).scalars()["expression"]
        images = set(manifest.expression_image[rows].tolist())
        assert images == set(held_out_images(manifest.labelled_images(), fold).tolist())
        plan = json.loads((paths.fold_student(fold) / "student.json").read_text())["plan"]
        assert plan["held_out"] == f"{number}/2"
        index, _ = build_index(manifest, None, held_out_images(manifest.labelled_images(), fold))
        assert images.isdisjoint(manifest.expression_image[index.labelled].tolist())
        assert len(index.labelled)
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
            evidence = predictions.see(known.evidence, known.prediction, probability)
            ious.append(mask_iou(refine(evidence, chain).mask_HW, known.truth_HW)[2])

        held_out.visit(measure)
        assert len(ious) == document["expressions"]
        assert row["mean_iou"] == pytest.approx(np.mean(ious))


def test_a_burn_in_that_may_have_seen_a_fold_does_not_predict_it(calibrated, tmp_path):
    run_dir, where = calibrated
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    where = [*where[:2], "--run-dir", str(copy), *where[4:]]
    student = RunPaths(copy).fold_student(Fold(1, 2)) / "student.json"
    document = json.loads(student.read_text())
    for key, value in (("held_out", "2/2"), ("inputs", {"manifest": "another"})):
        plan = document["plan"] | {key: value}
        student.write_text(json.dumps(document | {"plan": plan}))
        result = CliRunner().invoke(predict_teacher, [*where, "--fold", "1/2", "--force"])
        assert result.exit_code == 1
        assert "run 'train-student --fold 1/2 --force'" in result.output


def test_the_best_setting_is_applied_and_can_be_taken_back(calibrated):
    run_dir, where = calibrated
    paths = RunPaths(run_dir)
    result = CliRunner().invoke(refine_labels, ["calibrate", *where, "--round", "2", "--apply"])
    assert result.exit_code == 0, result.output
    assert (run_dir / "round-2" / "calibration.png").stat().st_size > 10_000
    document = json.loads(paths.calibration(2).read_text())
    best, own = document["rows"][0]["mean_iou"], document["teacher"]["mean_iou"]
    whole = document["whole_image_mean_iou"]
    assert 0 < whole < 1
    assert paths.chosen_strategy(2).exists() == (best > own and best >= 1.5 * whole)
    # Whether anything is better depends on a network of six steps: go on with a choice for sure.
    document["rows"][0]["mean_iou"] = own + 2
    assert apply_best(document, RefineConfig(), run_dir) == paths.chosen_strategy(2)
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
    paths.chosen_strategy(1).write_text('{"inputs": "another", "chain": [], "probability": {}}')
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


def test_nothing_better_takes_an_earlier_choice_back(calibrated):
    run_dir, _ = calibrated
    path = RunPaths(run_dir).chosen_strategy(1)
    document = calibrate(CalibrateConfig(folds=2, by="overall_iou"), run_dir, 1, limit=6)
    assert document["expressions"] >= 6  # whole images, evenly from the folds
    kept = RefineConfig(
        chain=(
            ChainLink(strategy="drop"),
            ChainLink(strategy="iom"),
            ChainLink(strategy="pwa", params={"ceiling": 1.2}),
        )
    )
    document["rows"][0] |= {"overall_iou": 1.0, "strategy": "vote", "params": {}}
    document["rows"][0]["mean_iou"] = 1.0
    document["teacher"]["overall_iou"] = 0.5
    assert apply_best(document, kept, run_dir) == path
    chain = json.loads(path.read_text())["chain"]
    assert [link["strategy"] for link in chain] == ["drop", "vote", "pwa"]
    assert chain[2]["params"] == {"ceiling": 1.2}
    document["rows"][0]["overall_iou"] = 0.5
    assert apply_best(document, kept, run_dir) is None
    assert not path.exists()


def test_labels_that_mark_everything_are_not_applied(calibrated):
    run_dir, _ = calibrated
    document = calibrate(CalibrateConfig(folds=2), run_dir, 1)
    document["rows"][0]["mean_iou"] = 1.4 * document["whole_image_mean_iou"]
    document["teacher"]["mean_iou"] = 0.0
    assert apply_best(document, RefineConfig(), run_dir) is None
    document["rows"][0]["mean_iou"] = 1.6 * document["whole_image_mean_iou"]
    assert apply_best(document, RefineConfig(), run_dir) is not None
