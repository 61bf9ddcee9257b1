"""The whole job on small data: what it leaves behind, that it resumes and repeats itself."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import zarr
from conftest import file_hashes
from PIL import Image

from refine.strategies import STRATEGIES

ROUNDS = (1, 2)
FLOORS = ("pipeline", "refine", "train")
KILLS = (3.0, 5.0, 7.0, 9.0, 12.0, 15.0, 20.0, 30.0)
"""Seconds after which an attempt is killed; each comes further than the one before."""


def run(small_config, run_dir, *arguments, timeout=240, kill_after=None):
    """Start the real command; kill it after some seconds if asked to."""
    command = [sys.executable, "-c", "from train.cli import run_rounds; run_rounds()",
               "--config", str(small_config), "--run-dir", str(run_dir), *arguments]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=kill_after or timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
    return process.returncode, out, err


def test_the_job_leaves_what_the_design_names(finished_run):
    run_dir, summary = finished_run
    assert not summary.failures
    assert (run_dir / "candidates.zarr" / "zarr.json").exists()
    for number in ROUNDS:
        folder = run_dir / f"round-{number}"
        for name in ("teacher.zarr", "labels.zarr", "quality.json", "student", "metrics.json"):
            assert (folder / name).exists(), (number, name)
    metrics = json.loads((run_dir / "round-2" / "metrics.json").read_text())
    for protocol in ("square", "image"):
        figures = metrics["val"][protocol]
        assert 0 <= figures["overall_iou"] <= 1
        assert list(figures["precision_at"]) == ["0.5", "0.6", "0.7", "0.8", "0.9"]
    assert metrics["val"]["sentences"] > 10
    with Image.open(summary.sheet) as sheet:
        assert sheet.width > 5 * 200


def test_stores_are_plain_zarr_and_agree_with_the_manifest(finished_run):
    from pipeline.manifest import load_manifest

    run_dir, _ = finished_run
    manifest = load_manifest(run_dir / "manifest", verify=True)
    labels = zarr.open_group(run_dir / "round-1" / "labels.zarr", mode="r")
    teacher = zarr.open_group(run_dir / "round-1" / "teacher.zarr", mode="r")
    candidates = zarr.open_group(run_dir / "candidates.zarr", mode="r")
    unlabelled = manifest.expressions_of("train", labelled=False)
    assert np.array_equal(labels["expression"][:], unlabelled)
    assert np.array_equal(teacher["expression"][:], unlabelled)
    assert np.array_equal(candidates["image"][:], manifest.images_of("train"))
    sizes = np.array([manifest.image_size[image] for image in candidates["image"][:]])
    assert np.array_equal(candidates["size"][:], sizes)
    assert (candidates["num_candidates"][:] > 0).any()
    names = labels.attrs["strategies"]
    assert {names[code] for code in labels["source"][:]} <= {"cpi-u", "pwa"}


def test_pwa_labels_are_the_teachers_masks(finished_run):
    """What the fallback stores is the network's own decision, upsampled by torch."""
    import torch
    from torch.nn import functional as F

    run_dir, _ = finished_run
    labels = zarr.open_group(run_dir / "round-1" / "labels.zarr", mode="r")
    teacher = zarr.open_group(run_dir / "round-1" / "teacher.zarr", mode="r")
    code = labels.attrs["strategies"].index("pwa")
    rows = np.flatnonzero(labels["source"][:] == code)
    assert len(rows)
    for row in rows[:10]:
        height, width = (int(side) for side in labels["size"][int(row)])
        logit = torch.from_numpy(teacher["logit"][int(row)].astype(np.float32))[None, None]
        own = F.interpolate(logit, (height, width), mode="bilinear", align_corners=True)[0, 0] > 0
        mask = np.unpackbits(labels["mask"][int(row)], axis=1)[:height, :width].astype(bool)
        assert (mask != own.numpy()).mean() < 1e-4


def test_running_again_does_nothing(finished_run, small_config):
    from pipeline.commands import Settings
    from train.cli import job_config
    from train.rounds import run_rounds

    run_dir, summary = finished_run
    stamps = {path: path.stat().st_mtime_ns for path in run_dir.glob("**/*.zarr/**/*")}
    again = run_rounds(job_config(Settings(small_config, run_dir, ())), run_dir, say=lambda _: None)
    assert again.rows == summary.rows
    assert stamps == {path: path.stat().st_mtime_ns for path in run_dir.glob("**/*.zarr/**/*")}


def test_sigkill_anywhere_and_starting_again_gives_the_same_bytes(
    finished_run, small_config, tmp_path
):
    whole, _ = finished_run
    survived = 0
    for seconds in KILLS:
        code, _, err = run(small_config, tmp_path / "killed", kill_after=seconds)
        if code == 0:
            break
        assert code == -signal.SIGKILL, err
        survived += 1
    else:
        code, _, err = run(small_config, tmp_path / "killed")
        assert code == 0, err
    assert survived, "the job ended before the first kill"
    assert file_hashes(tmp_path / "killed") == file_hashes(whole)


@pytest.mark.parametrize("after", ["write_done", "write_json", "atomic_write"])
def test_the_end_of_the_process_after_any_write_costs_nothing(
    finished_run, small_config, tmp_path, monkeypatch, after
):
    """Die after every 4th write of a kind, everywhere in the job, and start again."""
    from pipeline import records
    from pipeline.commands import Settings
    from train.cli import job_config
    from train.rounds import run_rounds

    real, written = getattr(records, after), []

    class EndOfProcessError(BaseException):
        pass

    def write_then_die(*arguments):
        real(*arguments)
        written.append(arguments[0])
        if len(written) % 4 == 0:
            raise EndOfProcessError

    for name in sorted(sys.modules):
        module = sys.modules[name]
        if name.split(".")[0] in FLOORS and getattr(module, after, None) is real:
            monkeypatch.setattr(module, after, write_then_die)
    job = job_config(Settings(small_config, tmp_path, ()))
    deaths = 0
    while deaths < 60:
        try:
            run_rounds(job, tmp_path, say=lambda _: None)
            break
        except EndOfProcessError:
            deaths += 1
    assert deaths > 1
    assert file_hashes(tmp_path) == file_hashes(finished_run[0])


@pytest.mark.dask
def test_the_number_of_workers_does_not_change_a_byte(finished_run, small_config, tmp_path):
    whole, _ = finished_run
    code, out, err = run(small_config, tmp_path / "two", "--workers", "2")
    assert code == 0, err
    assert "pseudo-labels" in out
    assert "0: supervised" in out
    assert file_hashes(tmp_path / "two") == file_hashes(whole)


def test_sigterm_exits_75_and_says_how_to_go_on(small_config, tmp_path):
    command = [sys.executable, "-c", "from train.cli import run_rounds; run_rounds()",
               "--config", str(small_config), "--run-dir", str(tmp_path / "run")]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "candidates" in line:
            process.send_signal(signal.SIGTERM)
            break
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75
    assert "run the same command again" in err


def test_another_strategy_is_refused_then_forced(finished_run, small_config, tmp_path):
    from click.testing import CliRunner

    from refine.cli import refine_labels

    run_dir = tmp_path / "copy"
    shutil.copytree(finished_run[0], run_dir)
    arguments = ["--config", str(small_config), "--run-dir", str(run_dir), "--strategy", "iom"]
    refused = CliRunner().invoke(refine_labels, arguments)
    assert refused.exit_code == 1
    assert 'cpi-u", now "iom"' in refused.stderr.replace("\\", "")
    forced = CliRunner().invoke(refine_labels, [*arguments, "--force"])
    assert forced.exit_code == 0, forced.stderr
    assert "match rate" in forced.stdout
    quality = json.loads((run_dir / "round-1" / "quality.json").read_text())
    assert set(quality["sources"]) <= {"iom", "pwa"}


@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_every_strategy_runs_on_the_same_stores(finished_run, strategy, tmp_path):
    from refine.stage import RefineConfig, refine_labels, with_strategy

    run_dir = tmp_path / "copy"
    shutil.copytree(finished_run[0], run_dir)
    config = with_strategy(RefineConfig(), strategy)
    summary, quality = refine_labels(config, run_dir, 1, replace="always")
    assert summary.complete
    assert quality["labels"] == sum(quality["sources"].values())
    assert quality["helped"] + quality["hurt"] + quality["unchanged"] == quality["truths"]
    if strategy in ("none", "pwa"):
        assert quality["refined_mean_iou"] == quality["raw_mean_iou"]
        assert quality["match_rate"] == 0
