"""Training resumes step for step, and says clearly when it cannot go on."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipeline.commands import Settings
from pipeline.errors import SemiresError, StoreError
from pipeline.images import read_image
from pipeline.manifest import load_manifest
from train import loop
from train.augment import normalize, resize_image, resize_mask
from train.config import EvaluateConfig, TrainConfig
from train.data import build_index
from train.evaluate import evaluate_student, sentences_with_truth
from train.metrics import IoUSums, iou_sums
from train.student import train_student
from train.trained import load_trained, read_trained


@pytest.fixture
def config(small_config, tmp_path):
    return Settings(small_config, tmp_path, ()).section("train", TrainConfig)


@pytest.fixture
def before_training(finished_run, tmp_path):
    """The finished run without what round 1's training and all later steps made."""
    run_dir = tmp_path / "run"
    shutil.copytree(finished_run[0], run_dir)
    shutil.rmtree(run_dir / "round-2")
    shutil.rmtree(run_dir / "round-1" / "student")
    return run_dir


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("at", [0, 2, 3, 7])
def test_stopping_and_resuming_equals_not_stopping(
    finished_run, before_training, config, monkeypatch, at
):
    real, calls = loop.train_step, []

    def step_or_die(*arguments):
        if len(calls) == at:
            raise KilledError
        calls.append(arguments[4])
        return real(*arguments)

    monkeypatch.setattr(loop, "train_step", step_or_die)
    with pytest.raises(KilledError):
        train_student(config, before_training, 1)
    monkeypatch.setattr(loop, "train_step", real)
    summary = train_student(config, before_training, 1)
    assert summary.resumed_at == (at // 3 * 3 or None)
    for name in ("teacher.safetensors", "log.csv", "student.json", "vocab.txt"):
        whole = finished_run[0] / "round-1" / "student" / name
        assert (before_training / "round-1" / "student" / name).read_bytes() == whole.read_bytes()


def test_loader_workers_do_not_change_a_byte(finished_run, before_training, config):
    from dataclasses import replace

    train_student(replace(config, loader_workers=1), before_training, 1)
    name = "round-1/student/teacher.safetensors"
    assert (before_training / name).read_bytes() == (finished_run[0] / name).read_bytes()


def test_the_log_has_a_line_per_step_and_the_rate_falls(finished_run):
    with (finished_run[0] / "round-0" / "student" / "log.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert [int(row["step"]) for row in rows] == list(range(12))
    rates = [float(row["lr"]) for row in rows]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 0.003


def test_another_config_is_refused(before_training, config):
    from dataclasses import replace

    train_student(config, before_training, 1)
    with pytest.raises(StoreError, match=r"trained otherwise \(config.ema_decay: 0.9, now 0.5\)"):
        train_student(replace(config, ema_decay=0.5), before_training, 1)


def test_a_loss_that_is_not_finite_names_the_step(before_training, config):
    from dataclasses import replace

    broken = replace(config, labelled_weight=1e300)
    with pytest.raises(SemiresError, match=r"round 1: loss is (inf|nan) at step 0"):
        train_student(broken, before_training, 1)


def test_a_round_without_its_labels_names_the_verb(finished_run, config, tmp_path):
    shutil.copytree(finished_run[0] / "manifest", tmp_path / "manifest")
    with pytest.raises(StoreError, match="run 'refine-labels --round 1' first"):
        train_student(config, tmp_path, 1)
    with pytest.raises(StoreError, match="no finished training; run 'train-student --round 0'"):
        read_trained(tmp_path / "round-0" / "student", "train-student --round 0")


def test_damaged_weights_are_found(before_training):
    trained = read_trained(before_training / "round-0" / "student", "")
    path = before_training / "round-0" / "student" / "teacher.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(StoreError, match=r"sha256 differs\); run 'train-student --round 0'"):
        load_trained(trained, "cpu")


@pytest.mark.parametrize("name", ["teacher.safetensors", "vocab.txt", "student.json"])
def test_a_damaged_training_is_done_again(finished_run, config, tmp_path, name):
    run_dir = tmp_path / "copy"
    shutil.copytree(finished_run[0], run_dir)
    path = run_dir / "round-0" / "student" / name
    path.write_bytes(path.read_bytes()[:-9])
    assert not train_student(config, run_dir, 0).already_done
    whole = finished_run[0] / "round-0" / "student" / "teacher.safetensors"
    assert (path.parent / "teacher.safetensors").read_bytes() == whole.read_bytes()
    assert train_student(config, run_dir, 0).already_done


def test_a_description_that_reads_well_but_is_another_is_not_believed(
    finished_run, config, tmp_path
):
    run_dir = tmp_path / "copy"
    shutil.copytree(finished_run[0], run_dir)
    path = run_dir / "round-0" / "student" / "student.json"
    whole = path.read_text()
    path.write_text(whole.replace('"side": ', '"side": 1'))
    assert json.loads(path.read_text())["side"] != json.loads(whole)["side"]
    assert not train_student(config, run_dir, 0).already_done
    assert path.read_text() == whole


def test_a_failed_replacement_gives_the_old_training_back(finished_run, config, tmp_path):
    from dataclasses import replace

    run_dir = tmp_path / "copy"
    shutil.copytree(finished_run[0], run_dir)
    before = sorted(path.name for path in (run_dir / "round-0" / "student").iterdir())
    broken = replace(config, labelled_weight=1e300)
    with pytest.raises(SemiresError, match="loss is"):
        train_student(broken, run_dir, 0, replace="differing")
    assert sorted(path.name for path in (run_dir / "round-0" / "student").iterdir()) == before
    assert train_student(config, run_dir, 0).already_done


def test_unlabelled_truth_is_never_drawn(finished_run):
    manifest = load_manifest(finished_run[0] / "manifest")
    index, failures = build_index(manifest, finished_run[0] / "round-1" / "labels.zarr")
    assert not failures
    labelled_images = manifest.expression_image[index.labelled]
    assert manifest.image_labelled[labelled_images].all()
    assert len(index.refined) == len(manifest.expressions_of("train", labelled=False))


def test_evaluation_equals_plain_torch(finished_run, small_config):
    """Network, upsampling and IoU written out for seven sentences, by both protocols."""
    run_dir, _ = finished_run
    section = Settings(small_config, run_dir, ()).section("evaluate", EvaluateConfig)
    result = evaluate_student(section, run_dir, 2, "val", limit=7)
    manifest = load_manifest(run_dir / "manifest")
    trained = read_trained(run_dir / "round-2" / "student", "")
    network, text = load_trained(trained, "cpu")
    sums = {"square": IoUSums(), "image": IoUSums()}
    for row in sentences_with_truth(manifest, "val")[:7]:
        image = int(manifest.expression_image[row])
        pixels = normalize(resize_image(read_image(manifest.image_file(image), canvas=None), 64))
        ids, mask = text.encode([manifest.expression_text[int(row)]])
        with torch.inference_mode():
            logits = network(torch.from_numpy(pixels)[None], *map(torch.from_numpy, (ids, mask)))
        truth = manifest.truth(int(manifest.expression_object[row]), None)
        square = resize_mask(truth.astype(np.uint8), 64) > 0
        for name, wanted in (("square", square), ("image", truth)):
            full = F.interpolate(logits, wanted.shape, mode="bilinear", align_corners=True)
            sums[name] += iou_sums(full.argmax(1).bool().numpy(), wanted[None])
    for name, expected in sums.items():
        assert result[name]["overall_iou"] == pytest.approx(expected.overall_iou, abs=1e-3)
        assert result[name]["mean_iou"] == pytest.approx(expected.mean_iou, abs=1e-3)
