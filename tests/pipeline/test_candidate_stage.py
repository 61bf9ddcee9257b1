"""The costly pass as a stage: batches, every source of masks, odd images, damaged weights."""

import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file

from pipeline import candidate_stage
from pipeline.candidate_config import CandidatesConfig, generator_options
from pipeline.candidate_sources import load_network
from pipeline.candidate_stage import candidates_of, sam_candidates
from pipeline.candidates import CandidateReader
from pipeline.cells import masks_of
from pipeline.cli import sam_candidates as verb
from pipeline.config import parse_config
from pipeline.errors import ConfigError, SemiresError
from pipeline.export import export_coco
from pipeline.paths import RunPaths
from pipeline.prepare import prepare_data
from pipeline.runner import run_stage
from pipeline.sam.masks import masks_from_bits
from pipeline.sam.models import SAM_MODELS
from pipeline.sam.options import GeneratorOptions
from pipeline.sam.tiny import WEIGHTS
from pipeline.scenes.scene import make_scene
from tests.pipeline.sam.hub_checkpoints import tiny_sam, tiny_sam2, tiny_sam_hq
from tests.pipeline.small_data import jsonl_config, line, write_image

FEW_POINTS = GeneratorOptions(points_per_side=3)


def make_run(folder, images):
    """Prepare a run whose training images are the given arrays, in order, and one more to test."""
    lines = []
    for number, pixels in enumerate(images):
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rle = {"size": list(pixels.shape[:2]), "counts": [0, pixels.shape[0] * pixels.shape[1]]}
        lines.append(line(f"{number}.png", number, segmentation=rle))
    write_image(folder / "val.png")
    lines.append(line("val.png", 99, split="val"))
    prepare_data(jsonl_config(folder, lines), folder / "run")
    return folder / "run"


def scene_images(count):
    sizes = [(80, 110), (110, 80), (64, 64), (50, 120), (97, 61)]
    for index in range(count):
        picture = Image.fromarray(make_scene(0, "val", index).image)
        yield np.array(picture.resize(sizes[index % len(sizes)][::-1]))


def read_all(run_dir, count):
    reader = CandidateReader(RunPaths(run_dir).candidates)
    return [reader.read(row) for row in range(count)]


def test_batches_and_what_cannot_be_read(tmp_path):
    run_dir = make_run(tmp_path, list(scene_images(5)))
    (tmp_path / "1.png").write_bytes(b"no longer an image")
    alone = CandidatesConfig(shard_size=5, options=FEW_POINTS)
    two = GeneratorOptions(images_per_batch=2, points_per_side=3)
    together = CandidatesConfig(shard_size=5, options=two)
    other_dir = tmp_path / "other"
    shutil.copytree(run_dir, other_dir)
    for config, where in ((alone, run_dir), (together, other_dir)):
        summary = sam_candidates(config, where)
        assert [failure.item for failure in summary.failures] == ["1.png"]
    for one, other in zip(read_all(run_dir, 5), read_all(other_dir, 5), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert one.cells.num_candidates > 1
            assert np.array_equal(masks_of(one.cells), masks_of(other.cells))
            assert one.predicted_iou == pytest.approx(other.predicted_iou, abs=1e-5)


def test_exported_masks_come_back_through_the_stage(tmp_path):
    run_dir = make_run(tmp_path, list(scene_images(3)))
    sam_candidates(CandidatesConfig(options=FEW_POINTS), run_dir)
    path = tmp_path / "masks.json"
    export_coco(RunPaths(run_dir).candidates, path)
    document = json.loads(path.read_text())
    document["images"] = document["images"][:2]  # nobody made masks of the third
    kept = {image["id"] for image in document["images"]}
    document["annotations"] = [a for a in document["annotations"] if a["image_id"] in kept]
    path.write_text(json.dumps(document))
    other_dir = tmp_path / "other"
    shutil.copytree(run_dir / "manifest", other_dir / "manifest")
    section = {"model": "imported", "masks": {"format": "coco", "path": str(path)}}
    summary = sam_candidates(parse_config(CandidatesConfig, section, "candidates"), other_dir)
    assert [failure.item for failure in summary.failures] == ["2.png"]
    for one, other in zip(read_all(run_dir, 2), read_all(other_dir, 2), strict=True):
        assert np.array_equal(one.cells.cells, other.cells.cells)
        assert np.array_equal(one.cells.membership, other.cells.membership)
        for name in ("predicted_iou", "stability_score", "box", "area", "point"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), name


def test_an_image_without_candidates_stays_one(tmp_path):
    images = [next(scene_images(1)), np.full((40, 50, 3), 90, np.uint8)]
    run_dir = make_run(tmp_path, images)
    sam_candidates(CandidatesConfig(model="region_merging"), run_dir)
    path = tmp_path / "masks.json"
    export_coco(RunPaths(run_dir).candidates, path)
    other_dir = tmp_path / "other"
    shutil.copytree(run_dir / "manifest", other_dir / "manifest")
    section = {"model": "imported", "masks": {"format": "coco", "path": str(path)}}
    summary = sam_candidates(parse_config(CandidatesConfig, section, "candidates"), other_dir)
    assert summary.failures == ()
    counts = [found.cells.num_candidates for found in read_all(other_dir, 2)]
    assert counts[0] > 10
    assert counts[1] == 0


def test_paths_mean_the_same_to_workers_that_started_elsewhere(tmp_path, monkeypatch):
    run_dir = make_run(tmp_path, list(scene_images(1)))
    sam_candidates(CandidatesConfig(options=FEW_POINTS), run_dir)
    export_coco(RunPaths(run_dir).candidates, tmp_path / "masks.json")
    shutil.copyfile(WEIGHTS, tmp_path / "weights.safetensors")
    monkeypatch.chdir(tmp_path)

    def elsewhere(*arguments, **options):
        monkeypatch.chdir("/")
        try:
            return run_stage(*arguments, **options)
        finally:
            monkeypatch.chdir(tmp_path)

    monkeypatch.setattr(candidate_stage, "run_stage", elsewhere)
    for number, section in enumerate((
        {"model": "imported", "masks": {"format": "coco", "path": "masks.json"}},
        {"checkpoint": "weights.safetensors", "options": {"points_per_side": 3}},
    )):  # fmt: skip
        other_dir = tmp_path / f"other-{number}"
        shutil.copytree(run_dir / "manifest", other_dir / "manifest")
        config = parse_config(CandidatesConfig, section, "candidates")
        assert sam_candidates(config, other_dir).failures == ()
        (one,), (other,) = read_all(run_dir, 1), read_all(other_dir, 1)
        assert np.array_equal(one.cells.membership, other.cells.membership)


def test_other_masks_are_another_fingerprint(tmp_path):
    run_dir = make_run(tmp_path, list(scene_images(1)))
    masks = np.zeros((1, 80, 110), np.bool_)
    masks[0, 10:20, 10:20] = True
    folder = tmp_path / "masks"
    folder.mkdir()
    np.savez(folder / "0.npz", masks=masks)
    section = {"model": "imported", "masks": {"format": "npz", "path": str(folder)}}
    config = parse_config(CandidatesConfig, section, "candidates")
    assert sam_candidates(config, run_dir).shards_done_now == 1
    assert sam_candidates(config, run_dir).shards_done_now == 0
    np.savez(folder / "0.npz", masks=~masks)
    with pytest.raises(SemiresError, match="source_sha256"):
        sam_candidates(config, run_dir)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"model": "imported"}, "masks: model imported, and no other, needs them, found none"),
        ({"masks": {"format": "npz", "path": "x"}}, "and no other, needs them, found x"),
        (
            {"model": "imported", "masks": {"format": "png", "path": "x"}},
            "format: unknown 'png'; known are coco, amg, semires, npz",
        ),
        (
            {
                "model": "imported",
                "masks": {"format": "npz", "path": "x"},
                "options": {"box_nms_thresh": 0.5},
            },
            "options.box_nms_thresh: unused by model imported",
        ),
        ({"model": "hub_sam2"}, "checkpoint: hub_sam2 needs one"),
        ({"options": {"max_candidates": 5}}, "write it as candidates.max_candidates"),
        ({"options": {"crop_n_layers": 1, "point_grids": [[[0.5, 0.5]]]}}, "expected a grid per"),
        ({"options": {"crop_n_layers": 9}}, r"crop_n_layers must be in \[0, 4\]"),
        (
            {"options": {"profile": "reference", "compile_encoder": True}},
            "compile_encoder: belongs to profile fast",
        ),
    ],
)
def test_sections_that_make_no_sense_are_refused(section, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(CandidatesConfig, section, "candidates")


@pytest.mark.parametrize(
    ("name", "make"),
    [("hub_sam", tiny_sam), ("hub_sam_hq", tiny_sam_hq), ("hub_sam2", tiny_sam2)],
)
@pytest.mark.parametrize("profile", ["reference", "fast"])
def test_a_checkpoint_of_the_hub_fills_a_store(tmp_path, name, make, profile):
    run_dir = make_run(tmp_path, list(scene_images(2)))
    make().save_pretrained(tmp_path / "checkpoint")
    # Random weights predict any IoU and draw noise: take every mask that is not the last one's box.
    options = GeneratorOptions(
        points_per_side=3,
        pred_iou_thresh=0.0,
        stability_score_thresh=0.0,
        box_nms_thresh=1.0,
        profile=profile,
    )
    config = CandidatesConfig(model=name, checkpoint=tmp_path / "checkpoint", options=options)
    summary = sam_candidates(config, run_dir)
    assert summary.failures == ()
    for found in read_all(run_dir, 2):
        assert found.cells.num_candidates > 3
        assert np.array_equal(masks_of(found.cells).sum((1, 2)), found.area)


def test_odd_images(tmp_path):
    """A pixel, panoramas, and one of 12 000 pixels, which is scaled, and said so."""
    rng = np.random.default_rng(0)
    shapes = [(1, 1), (1, 300), (6, 600), (600, 6), (12_000, 1_500)]
    images = [rng.integers(0, 255, (*shape, 3), np.uint8) for shape in shapes[:-1]]
    images.append(np.tile(np.arange(1_500, dtype=np.uint8)[None, :, None], (12_000, 1, 3)))
    run_dir = make_run(tmp_path, images)
    config = CandidatesConfig(
        canvas=320,
        options=GeneratorOptions(
            points_per_side=3, pred_iou_thresh=0.0, stability_score_thresh=0.0, crop_n_layers=1
        ),
    )
    summary = sam_candidates(config, run_dir)
    assert summary.failures == ()
    assert summary.counters["images_scaled"] == 3
    sizes = [found.cells.size for found in read_all(run_dir, 5)]
    assert sizes == [(1, 1), (1, 300), (3, 320), (320, 3), (320, 40)]


def test_a_broken_checkpoint_is_an_error_and_no_empty_store(tmp_path):
    run_dir = make_run(tmp_path, list(scene_images(1)))
    weights = load_file(WEIGHTS)
    weights["mask_decoder.iou_token.weight"][:] = torch.nan
    save_file(weights, tmp_path / "broken.safetensors")
    config = CandidatesConfig(checkpoint=tmp_path / "broken.safetensors", options=FEW_POINTS)
    with pytest.raises(SemiresError, match="not finite, the checkpoint is damaged"):
        sam_candidates(config, run_dir)
    reader = CandidateReader(RunPaths(run_dir).candidates)
    with pytest.raises(SemiresError, match="not written yet"):
        reader.read(0)


def test_weights_that_spoil_masks_nobody_wants_are_an_error_too(tmp_path):
    run_dir = make_run(tmp_path, list(scene_images(1)))
    weights = load_file(WEIGHTS)
    for name in weights:
        if "output_hypernetworks_mlps" in name:
            weights[name][:] = torch.nan
    save_file(weights, tmp_path / "broken.safetensors")
    options = GeneratorOptions(points_per_side=2, pred_iou_thresh=1.0)
    config = CandidatesConfig(checkpoint=tmp_path / "broken.safetensors", options=options)
    with pytest.raises(SemiresError, match="not finite, the checkpoint is damaged"):
        sam_candidates(config, run_dir)


def test_the_stage_leaves_the_process_as_it_was(tmp_path):
    run_dir = make_run(tmp_path, list(scene_images(1)))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        sam_candidates(CandidatesConfig(options=FEW_POINTS), run_dir)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert load_network.cache_info().currsize == 0


def test_masks_without_a_pixel_are_no_candidates():
    masks = np.zeros((3, 4, 9), np.bool_)
    masks[1, 2, 3] = True
    ones = np.ones(3, np.float32)
    found = masks_from_bits(
        np.packbits(masks, axis=2), 9, ones, ones, np.zeros((3, 2), np.float32), num_dropped=2
    )
    candidates, dropped = candidates_of(found)
    assert candidates.area.tolist() == [1]
    assert dropped == 2


def test_the_profiles_are_compared_without_writing(tmp_path, small_config):
    run_dir = make_run(tmp_path, list(scene_images(2)))
    result = CliRunner().invoke(
        verb, ["--config", str(small_config), "--run-dir", str(run_dir), "--difference", "2"]
    )
    assert result.exit_code == 0, result.stderr
    assert "vit_tiny_demo: fast against reference" in result.stdout
    shares = {row[1].strip(): row[2].strip() for row in table_rows(result.stdout)}
    assert shares["images"] == "2"
    assert shares["share of images with equal count"] == "1"
    assert int(shares["reference candidates"]) > 5
    assert float(shares["matched mIoU, misses as 0"]) > 0.999
    assert not RunPaths(run_dir).candidates.exists()
    merged = ["--set", "candidates.model=region_merging", "--set", "candidates.options={}"]
    refused = CliRunner().invoke(
        verb,
        ["--config", str(small_config), "--run-dir", str(run_dir), "--difference", "2", *merged],
    )
    assert refused.exit_code == 1
    assert "has no network, so there are no profiles" in refused.stderr


def table_rows(text):
    return [row.split("│") for row in text.splitlines() if row.count("│") == 3]


def test_the_hash_of_the_weights_is_shown(tmp_path, small_config):
    run_dir = make_run(tmp_path, list(scene_images(1)))
    arguments = ["--config", str(small_config), "--run-dir", str(run_dir), "--dry-run"]
    result = CliRunner().invoke(verb, arguments)
    assert SAM_MODELS["vit_tiny_demo"].sha256(None) in result.stdout


def test_the_fast_profile_takes_larger_batches(tmp_path):
    path = tmp_path / "sam.pth"
    slow = generator_options(CandidatesConfig(model="vit_b", checkpoint=path))
    options = GeneratorOptions(profile="fast")
    fast = generator_options(CandidatesConfig(model="vit_b", checkpoint=path, options=options))
    assert (slow.points_per_batch, slow.images_per_batch, slow.profile) == (64, 1, "reference")
    assert (fast.points_per_batch, fast.images_per_batch, fast.profile) == (256, 4, "fast")
    assert (fast.points_per_side, fast.pred_iou_thresh) == (32, 0.88)
