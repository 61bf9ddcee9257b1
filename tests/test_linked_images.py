"""A whole job on a folder of links; what it made holds for the same images as files."""

import json
import os
import shutil

import pytest
from click.testing import CliRunner
from PIL import Image

from pipeline.cli import inspect_shards
from pipeline.manifest import load_manifest
from pipeline.scenes.scene import make_scene
from tests.conftest import file_hashes
from train.cli import run_rounds

NUM_TRAIN, SIZE = 5, (64, 96)
JOB = """\
version: 1
data: {{reader: jsonl, annotations: '{annotations}', labelled: {{ratio: 0.4}}{more}}}
candidates: {{model: region_merging, canvas: 96, shard_size: 3, max_candidates: 20}}
teacher: {{shard_size: 8, batch_size: 4}}
refine: {{shard_size: 8, chain: [{{strategy: cpi-u}}, {{strategy: pwa}}]}}
train:
  network:
    size: toy
    options: {{image_size: 64, embed_dim: 8, depths: [1, 1], num_heads: [1, 1], text_dim: 16,
              text_layers: 1, text_heads: 1, fusion_heads: [1, 1], decoder_channels: 8}}
  burn_in: {{steps: 2, learning_rate: 0.003, labelled_batch: 2}}
  student: {{steps: 2, learning_rate: 0.002, labelled_batch: 1, unlabelled_batch: 2}}
  num_threads: 1
evaluate: {{splits: [val], final_splits: [val], resamples: 0, sheet_rows: 1}}
rounds: {{rounds: 1, sheet_rows: 2}}
"""


def write_data(root):
    """Write a data set of files with one object an image."""
    lines = []
    for number in range(NUM_TRAIN + 1):
        (root / "images").mkdir(parents=True, exist_ok=True)
        scene = Image.fromarray(make_scene(0, "train", number).image).resize(SIZE[::-1])
        scene.save(root / "images" / f"{number}.png")
        lines.append({
            "image": f"images/{number}.png",
            "expressions": [f"left thing {number % 2}"],
            "segmentation": [[8, 8, 50, 8, 50, 40, 8, 40]],
            "split": "train" if number < NUM_TRAIN else "val",
        })  # fmt: skip
    (root / "data.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")


def job(root, run_dir, more=""):
    path = run_dir.with_suffix(".yaml")
    path.write_text(JOB.format(annotations=root / "data.jsonl", more=more))
    return CliRunner().invoke(run_rounds, ["--config", str(path), "--run-dir", str(run_dir)])


def results(run_dir):
    found = file_hashes(run_dir)
    del found["manifest/manifest.json"]  # which says where the images lie
    return found


@pytest.fixture(scope="module")
def linked(tmp_path_factory):
    """A data set of links into blobs, as files beside it too, and a finished run of the links."""
    base = tmp_path_factory.mktemp("linked")
    write_data(base / "data")
    shutil.copytree(base / "data" / "images", base / "files")
    (base / "blobs").mkdir()
    for path in [*(base / "data" / "images").iterdir(), base / "data" / "data.jsonl"]:
        blob = base / "blobs" / path.name
        path.rename(blob)
        path.symlink_to(os.path.relpath(blob, path.parent))
    result = job(base / "data", base / "run", f", links_into: ['{base / 'blobs'}']")
    assert result.exit_code == 0, result.output
    return base


def test_every_stage_opens_links(linked):
    manifest = load_manifest(linked / "run" / "manifest")
    assert manifest.num_images == NUM_TRAIN + 1
    assert all(manifest.image_file(row).is_symlink() for row in range(manifest.num_images))
    metrics = json.loads((linked / "run" / "round-1" / "metrics.json").read_text())
    assert metrics["val"]["failed"] == []
    for picture in ("sheet.png", "evaluation-val.png"):
        assert is_picture(linked / "run" / "round-1" / picture)


def test_pictures_of_what_was_made_are_drawn_from_links(linked, tmp_path):
    for store in ("candidates.zarr", "round-1/labels.zarr"):
        out = tmp_path / f"{store.replace('/', '-')}.png"
        arguments = [str(linked / "run" / store), "--row", "0", "--out", str(out)]
        result = CliRunner().invoke(inspect_shards, ["show", *arguments])
        assert result.exit_code == 0, result.output
        assert is_picture(out)


def is_picture(path):
    with Image.open(path) as picture:
        return all(low < high for low, high in picture.convert("RGB").getextrema())


def test_finished_stages_stay_finished_when_links_become_files(linked):
    run_dir, images = linked / "run-of-files", linked / "data" / "images"
    shutil.copytree(linked / "run", run_dir)
    before = results(run_dir)
    times = {run_dir / name: (run_dir / name).stat().st_mtime_ns for name in before
             if not name.startswith("manifest/")}  # fmt: skip
    assert any(path.name == "teacher.safetensors" for path in times)
    images.rename(linked / "links")
    (linked / "files").rename(images)
    try:
        again = job(linked / "data", run_dir)
        assert again.exit_code == 0, again.output
    finally:
        images.rename(linked / "files")
        (linked / "links").rename(images)
    assert results(run_dir) == before
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert load_manifest(run_dir / "manifest").links_into == ()
