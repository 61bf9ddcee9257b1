"""inspect-shards shows, exports, verifies and repairs what a run holds."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from pycocotools import mask as coco_mask

from pipeline.candidates import CandidateReader
from pipeline.cells import masks_of
from pipeline.cli import inspect_shards
from refine.labels import LabelReader


def invoke(*arguments):
    return CliRunner().invoke(inspect_shards, [str(argument) for argument in arguments])


def test_summary_names_every_store(finished_run):
    result = invoke("summary", finished_run[0])
    assert result.exit_code == 0, result.output
    for name in ("candidates", "teacher-1", "refine-2", "membership", "logit", "stored bytes"):
        assert name in result.stdout


@pytest.mark.parametrize("store", ["candidates", "round-1/teacher", "round-2/labels"])
def test_rows_become_pictures(finished_run, store, tmp_path):
    out = tmp_path / "rows.png"
    result = invoke("show", finished_run[0] / f"{store}.zarr", "--row", 0, "--row", 2, "--out", out)
    assert result.exit_code == 0, result.output
    with Image.open(out) as picture:
        assert picture.width > 320
        assert len(np.unique(np.asarray(picture))) > 50


def test_a_row_that_does_not_exist_is_named(finished_run, tmp_path):
    result = invoke(
        "show", finished_run[0] / "candidates.zarr", "--row", 99, "--out", tmp_path / "x.png"
    )
    assert result.exit_code == 1
    assert "rows go from 0 to 7, asked for 99" in result.stderr


def decode(annotation):
    segmentation = annotation["segmentation"]
    counts = segmentation["counts"].encode()
    return coco_mask.decode({"size": segmentation["size"], "counts": counts}).astype(bool)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_candidates_export_as_coco_rle(finished_run, tmp_path):
    store = finished_run[0] / "candidates.zarr"
    assert invoke("export", store, "--out", tmp_path / "c.json").exit_code == 0
    document = json.loads((tmp_path / "c.json").read_text())
    reader = CandidateReader(store)
    masks = [mask for row in range(8) for mask in masks_of(reader.read(row).cells)]
    assert len(masks) == len(document["annotations"]) > 0
    for mask, annotation in zip(masks, document["annotations"], strict=True):
        assert np.array_equal(decode(annotation), mask)
        assert annotation["area"] == mask.sum()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_labels_export_as_coco_rle(finished_run, tmp_path):
    store = finished_run[0] / "round-1" / "labels.zarr"
    assert invoke("export", store, "--out", tmp_path / "l.json").exit_code == 0
    document = json.loads((tmp_path / "l.json").read_text())
    reader = LabelReader(store)
    for row, annotation in enumerate(document["annotations"]):
        label = reader.read(row)
        assert np.array_equal(decode(annotation), label.mask)
        assert annotation["source"] == label.source


def test_probabilities_are_not_exported_as_masks(finished_run, tmp_path):
    store = finished_run[0] / "round-1" / "teacher.zarr"
    result = invoke("export", store, "--out", tmp_path / "t.json")
    assert result.exit_code == 1
    assert "export candidates or labels" in result.stderr


def test_a_page_of_rows(finished_run, tmp_path):
    store = finished_run[0] / "round-1" / "labels.zarr"
    out = tmp_path / "page.html"
    assert invoke("export", store, "--format", "html", "--row", 1, "--out", out).exit_code == 0
    assert out.read_text().count("data:image/png") == 1


def test_damage_is_found_mended_and_made_anew(finished_run, small_config, tmp_path):
    from pipeline.candidate_stage import CandidatesConfig, sam_candidates
    from pipeline.commands import Settings

    run_dir = tmp_path / "copy"
    shutil.copytree(finished_run[0], run_dir)
    victim = run_dir / "candidates.zarr" / "cells" / "c" / "1" / "0" / "0"
    whole = victim.read_bytes()
    victim.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    assert invoke("verify", finished_run[0]).exit_code == 0
    found = invoke("verify", run_dir)
    assert found.exit_code == 1
    assert "candidates.zarr: shard 1 damaged: cells/c/1/0/0: sha256 differs" in found.stdout
    assert "1 damaged shards removed" in invoke("repair", run_dir).stdout
    section = Settings(small_config, run_dir, ()).section("candidates", CandidatesConfig)
    assert sam_candidates(section, run_dir).shards_done_now == 1
    assert victim.read_bytes() == whole
    assert invoke("verify", run_dir).exit_code == 0
