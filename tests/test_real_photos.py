"""The job on real JPEGs and polygons; skipped where the photos are not beside the repository."""

import json
from pathlib import Path

import pytest
import zarr

from pipeline.commands import Settings
from train.cli import job_config
from train.rounds import run_rounds

PHOTOS = Path(__file__).parents[2] / "shared" / "data" / "photos"

pytestmark = pytest.mark.skipif(not PHOTOS.is_dir(), reason="the photos are not here")


def some_photos(path):
    """Objects of the first images of each split, and of the first without masks."""
    lines = [json.loads(line) for line in (PHOTOS / "photos.jsonl").read_text().splitlines()]
    kinds = {
        "train": [
            entry for entry in lines if entry["split"] == "train" and "segmentation" in entry
        ],
        "val": [entry for entry in lines if entry["split"] == "val"],
        "unlabelled": [entry for entry in lines if "segmentation" not in entry],
    }
    chosen = []
    for kind, count in (("train", 8), ("val", 3), ("unlabelled", 3)):
        images = list(dict.fromkeys(entry["image"] for entry in kinds[kind]))[:count]
        chosen += [entry for entry in lines if entry["image"] in images]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in chosen))
    return path


def test_two_rounds_on_real_photos(small_config, tmp_path):
    annotations = some_photos(tmp_path / "some.jsonl")
    data = {
        "reader": "jsonl",
        "annotations": str(annotations),
        "images": str(PHOTOS),
        "labelled": {"ratio": 0.3},
    }
    text = small_config.read_text()
    start, stop = text.index("data:"), text.index("candidates:")
    config = tmp_path / "stages.yaml"
    config.write_text(f"{text[:start]}data: {json.dumps(data)}\n{text[stop:]}")
    settings = Settings(config, tmp_path / "run", ("candidates.canvas=640",))
    summary = run_rounds(job_config(settings), tmp_path / "run", say=lambda _: None)
    assert not summary.failures
    assert [row["round"] for row in summary.rows] == [0, 1, 2]
    for row in summary.rows[1:]:
        assert row["quality"]["labels"] > row["quality"]["truths"] > 0
    sizes = zarr.open_group(tmp_path / "run" / "candidates.zarr", mode="r")["size"][:]
    assert len({tuple(size) for size in sizes}) > 3
    assert sizes.max() <= 640
    assert summary.sheet.exists()
