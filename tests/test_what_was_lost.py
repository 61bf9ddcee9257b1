"""Nothing that was done is thrown away or passed off as something else."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageOps

from pipeline.cli import inspect_shards, prepare_data, sam_candidates
from pipeline.json_files import write_checked
from pipeline.manifest import load_manifest
from pipeline.records import done_path, read_checked, records_folder
from pipeline.status import run_status
from refine.cli import refine_labels
from tests.conftest import file_hashes


@pytest.fixture
def begun(finished_run, tmp_path):
    """A copy of a finished run."""
    return shutil.copytree(finished_run[0], tmp_path / "run")


def call(command, run_dir, config, *options):
    common = ["--config", str(config), "--run-dir", str(run_dir)]
    return CliRunner().invoke(command, [*common, *options])


def shards_of(run_dir):
    return sorted(path.name for path in (run_dir / "candidates.stage" / "done").iterdir())


# -- items that failed, and were tried again


def test_what_was_made_of_failed_items_is_stale_when_they_are_tried_again(begun, small_config):
    expected = file_hashes(begun)
    image = begun / "scenes" / "images" / "train_00005.jpg"
    content = image.read_bytes()
    image.write_bytes(b"hi")
    for place in ("candidates.zarr", "candidates.stage"):
        shutil.rmtree(begun / place)
    assert call(sam_candidates, begun, small_config).exit_code == 3
    image.write_bytes(content)
    # Labels of a store in which an image failed.
    assert call(refine_labels, begun, small_config, "--round", "1", "--force").exit_code in (0, 3)
    labels = {n: h for n, h in file_hashes(begun).items() if n.startswith("round-1/labels.zarr")}
    assert labels != {n: expected[n] for n in labels}

    assert CliRunner().invoke(inspect_shards, ["retry-failed", str(begun)]).exit_code == 0
    assert call(sam_candidates, begun, small_config).exit_code == 0
    stale = {stage.place.name: stage.reasons for stage in run_status(begun)
             if stage.state == "stale" and stage.place.parent.name == "round-1"}  # fmt: skip
    assert {"labels.zarr", "student"} <= stale.keys()
    refused = call(refine_labels, begun, small_config, "--round", "1")
    assert refused.exit_code == 1
    assert "inputs.candidates: failed items of candidates.zarr were tried again" in refused.output
    assert call(refine_labels, begun, small_config, "--round", "1", "--force").exit_code == 0
    found = file_hashes(begun)
    assert {n: found[n] for n in labels} == {n: expected[n] for n in labels}


def test_of_what_nothing_was_made_stays_the_same_when_it_is_tried_again(begun, small_config):
    for place in ("round-1", "round-2"):
        shutil.rmtree(begun / place)
    plan = (begun / "candidates.stage" / "plan.json").read_bytes()
    path = done_path(begun / "candidates.zarr", 1)
    record = read_checked(path)
    failure = {"item": "x", "reason": "broken"}
    write_checked(path, {**record, "failures": [failure]})
    result = CliRunner().invoke(inspect_shards, ["retry-failed", str(begun)])
    assert "1 shards with failed items" in result.output
    assert (begun / "candidates.stage" / "plan.json").read_bytes() == plan


# -- a store without its plan


def test_a_store_without_records_is_not_deleted(begun, small_config):
    shutil.rmtree(begun / "candidates.stage")
    before = file_hashes(begun)
    part = ("--engine", "static", "--shard-index", "0", "--num-shards", "2")
    for options in ((), ("--dry-run",), ("--limit", "1"), part):
        refused = call(sam_candidates, begun, small_config, *options)
        assert refused.exit_code == 1
        assert "holds shards" in refused.output
        assert "--force" in refused.output
    assert file_hashes(begun) == before
    assert call(sam_candidates, begun, small_config, "--force").exit_code == 0
    assert file_hashes(begun) == before


def test_another_config_does_not_take_over_a_store_that_lost_its_plan(begun, small_config):
    (begun / "candidates.stage" / "plan.json").unlink()
    before = file_hashes(begun)
    other = ("--set", "candidates.options.points_per_side=5", "--limit", "1")
    refused = call(sam_candidates, begun, small_config, *other)
    assert refused.exit_code == 1
    assert "holds shards" in refused.output
    assert file_hashes(begun) == before
    assert call(sam_candidates, begun, small_config).exit_code == 0
    assert len(shards_of(begun)) == 3


def test_a_store_of_which_nothing_is_proven_is_made_anew(begun, small_config):
    before = file_hashes(begun)
    damaged = [*(begun / "candidates.stage").glob("done/*"), begun / "candidates.stage/plan.json"]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:-20])
    assert CliRunner().invoke(inspect_shards, ["repair", str(begun)]).exit_code == 0
    assert call(sam_candidates, begun, small_config).exit_code == 0
    assert file_hashes(begun) == before


# -- --force, and the end before its first shard


def killed_before_the_first_shard(run_dir, config, *options):
    """Run candidates with --force in a process that ends when it begins its first shard."""
    code = (
        "import os, signal, sys\n"
        "from pipeline import shard_task\n"
        "shard_task._compute_and_write = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from pipeline.cli import sam_candidates; sam_candidates()\n"
    )
    common = ["--config", str(config), "--run-dir", str(run_dir), "--force", *options]
    return subprocess.run([sys.executable, "-c", code, *common], check=False, env=os.environ)


def test_a_replacement_killed_before_its_first_shard_gives_the_old_store_back(begun, small_config):
    before = file_hashes(begun)
    other = ("--set", "candidates.options.points_per_side=5")
    assert killed_before_the_first_shard(begun, small_config, *other).returncode == -signal.SIGKILL
    assert (begun / "candidates.zarr.replaced").exists()
    again = call(sam_candidates, begun, small_config)
    assert again.exit_code == 0, again.stderr
    assert file_hashes(begun) == before
    assert not list(begun.glob("*.replaced"))


def test_a_replacement_killed_after_its_first_shard_goes_on(begun, small_config):
    other = ("--set", "candidates.options.points_per_side=5")
    assert (
        call(sam_candidates, begun, small_config, "--force", *other, "--limit", "1").exit_code == 0
    )
    aside = begun / "candidates.zarr.replaced"
    aside.mkdir()
    assert call(sam_candidates, begun, small_config, *other).exit_code == 0
    assert not aside.exists()
    assert len(shards_of(begun)) == 3


# -- records that name files elsewhere


@pytest.mark.parametrize("name", ["../../victim.txt", "/etc/hostname", "a/../../../victim.txt",
                                  "zarr.json", "..", "a\\..\\b/c", ""])  # fmt: skip
def test_repair_deletes_nothing_outside_the_store(begun, name):
    victim = begun.parent / "victim.txt"
    victim.write_text("mine")
    path = done_path(begun / "candidates.zarr", 1)
    document = json.loads(path.read_text())
    del document["check"]
    document["files"] = {name: {"bytes": 1, "sha256": "0"}}
    path.write_text(json.dumps(document))
    verified = CliRunner().invoke(inspect_shards, ["verify", str(begun / "candidates.zarr")])
    assert verified.exit_code == 1
    assert "shard 1 damaged: done record unreadable" in verified.stdout
    assert CliRunner().invoke(inspect_shards, ["repair", str(begun)]).exit_code == 0
    assert victim.read_text() == "mine"
    assert not path.exists()
    assert (begun / "candidates.zarr" / "zarr.json").exists()
    assert records_folder(begun / "candidates.zarr").exists()


# -- images and the manifest


def test_an_image_that_was_exchanged_since_is_not_taken_for_the_old_one(begun, small_config):
    image = begun / "scenes" / "images" / "train_00002.jpg"
    with Image.open(image) as picture:
        other = ImageOps.invert(picture.convert("RGB"))
    other.save(image)
    result = call(sam_candidates, begun, small_config, "--force")
    assert result.exit_code == 3
    assert "train_00002.jpg: expected the file that the data were prepared with" in result.stderr
    assert "1 failed" in CliRunner().invoke(inspect_shards, ["failures", str(begun)]).output


def test_a_damaged_manifest_is_found_and_made_again(begun, small_config):
    before = file_hashes(begun)
    path = begun / "manifest" / "expression_text.data.npy"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    refused = call(prepare_data, begun, small_config)
    assert refused.exit_code == 1
    assert refused.stderr.count("\n") == 1
    assert "prepare-data --force" in refused.stderr
    assert call(prepare_data, begun, small_config, "--force").exit_code == 0
    assert file_hashes(begun) == before
    assert {stage.state for stage in run_status(begun)} == {"done"}


@pytest.mark.parametrize("empty", [False, True], ids=["gone", "empty"])
def test_images_that_are_not_mounted_are_not_failed_items(begun, small_config, empty):
    before = file_hashes(begun)
    for place in ("candidates.zarr", "candidates.stage"):
        shutil.rmtree(begun / place)
    images = begun / "scenes" / "images"
    aside = images.rename(begun / "aside")
    if empty:
        images.mkdir()
    refused = call(sam_candidates, begun, small_config)
    assert refused.exit_code == 1
    assert "expected the images of the manifest, found none of" in refused.stderr
    for path in (begun / "candidates.stage" / "attempts").glob("*.json"):
        assert read_checked(path)["shard"] == 0  # no fault of the items
    if empty:
        images.rmdir()
    aside.rename(images)
    assert call(sam_candidates, begun, small_config).exit_code == 0
    assert file_hashes(begun) == before


def test_a_mended_image_comes_back(tmp_path, small_config):
    (tmp_path / "images").mkdir()
    lines = []
    for number in range(4):
        picture = np.full((20, 30, 3), 40 * number, np.uint8)
        Image.fromarray(picture).save(tmp_path / "images" / f"{number}.png")
        square = {"size": [20, 30], "counts": [100, 50, 450]}
        lines.append({"image": f"images/{number}.png", "expression": f"number {number}",
                      "segmentation": square})  # fmt: skip
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    bad = tmp_path / "images" / "3.png"
    content = bad.read_bytes()
    bad.write_bytes(b"hi")
    config = tmp_path / "stages.yaml"
    config.write_text(
        f"version: 1\ndata: {{reader: jsonl, annotations: {tmp_path}/data.jsonl, "
        "labelled: {ratio: 1.0}}\n"
    )
    run_dir = tmp_path / "run"
    assert call(prepare_data, run_dir, config).exit_code == 3
    bad.write_bytes(content)
    mended = call(prepare_data, run_dir, config, "--force")
    assert mended.exit_code == 0, mended.output
    assert load_manifest(run_dir / "manifest").num_images == 4
