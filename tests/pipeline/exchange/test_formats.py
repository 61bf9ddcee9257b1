"""The config of a source, its name by content, and what is done with masks of any format."""

import os
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from pipeline.candidates import CandidateReader
from pipeline.cells import masks_of
from pipeline.cli import prepare_data, sam_candidates
from pipeline.config import parse_config
from pipeline.errors import ConfigError
from pipeline.exchange import MASK_FORMATS, ImportConfig, best_masks, source_sha256
from pipeline.export import export_coco
from pipeline.images import canvas_size
from pipeline.manifest import load_manifest
from pipeline.paths import RunPaths
from tests.pipeline.exchange.small_masks import (
    SIZE,
    coco_document,
    manifest_of,
    opened,
    record,
    semires_rle,
    two_masks,
    write_json,
)


def write_two_masks(format_name, folder):
    """Write the same two masks of 1.jpg in a format and give its path."""
    folder.mkdir(parents=True, exist_ok=True)
    if format_name == "coco":
        annotations = [(1, record(mask)) for mask in two_masks()]
        return write_json(folder / "m.json", coco_document({1: "1.jpg"}, annotations))
    if format_name == "amg":
        write_json(folder / "1.json", [record(mask) for mask in two_masks()])
    elif format_name == "semires":
        write_json(folder / "ref-0.json", [semires_rle(mask) for mask in two_masks()])
    else:
        np.savez(folder / "1.npz", masks=two_masks())
    return folder


@pytest.mark.parametrize("format_name", MASK_FORMATS)
def test_every_format_gives_the_same_masks(format_name, tmp_path):
    path = write_two_masks(format_name, tmp_path)
    found = opened(format_name, path, manifest_of(["1.jpg"])).read(0, SIZE)
    np.testing.assert_array_equal(found.masks.masks, two_masks())
    assert found.notes == ()
    assert found.masks.area.tolist() == two_masks().sum((1, 2)).tolist()
    assert found.masks.box.tolist() == [[3, 2, 9, 6], [5, 4, 12, 9]]
    assert found.masks.num_dropped == 0
    columns = found.masks.predicted_iou, found.masks.stability_score, found.masks.point
    assert [column.dtype for column in columns] == [np.float32] * 3


@pytest.mark.parametrize("format_name", MASK_FORMATS)
def test_every_format_is_scaled_to_the_canvas(format_name, tmp_path):
    path = write_two_masks(format_name, tmp_path)
    found = opened(format_name, path, manifest_of(["1.jpg"])).masks_of(0, (5, 6))
    np.testing.assert_array_equal(found.masks, two_masks()[:, 1::2, 1::2])


@pytest.mark.parametrize("format_name", MASK_FORMATS)
def test_every_format_takes_masks_in_canvas_geometry(format_name, tmp_path):
    path = write_two_masks(format_name, tmp_path)
    found = opened(format_name, path, manifest_of(["1.jpg"], [(100, 120)])).masks_of(0, SIZE)
    np.testing.assert_array_equal(found.masks, two_masks())


def test_what_was_exported_comes_back(tmp_path):
    """Candidates of a real run, on a canvas that is smaller than the images."""
    run_dir, canvas, config = tmp_path / "run", 128, tmp_path / "stages.yaml"
    config.write_text(
        "version: 1\n"
        "data: {reader: scenes, scenes: {train: 3}, labelled: {ratio: 0.5}, scenes_seed: 3}\n"
        f"candidates: {{model: region_merging, canvas: {canvas}}}\n"
    )
    for verb in (prepare_data, sam_candidates):
        result = CliRunner().invoke(verb, ["--config", str(config), "--run-dir", str(run_dir)])
        assert result.exit_code == 0, result.output
    store, path = RunPaths(run_dir).candidates, tmp_path / "exported.json"
    assert export_coco(store, path) > 10
    manifest = load_manifest(RunPaths(run_dir).manifest)
    source, reader = opened("coco", path, manifest), CandidateReader(store)
    for row, image in enumerate(manifest.images_of("train").tolist()):
        size = manifest.size_of(image)
        assert max(size) > canvas
        found = source.read(image, canvas_size(size, canvas))
        stored = reader.read(row)
        assert found.notes == ()
        np.testing.assert_array_equal(found.masks.masks, masks_of(stored.cells))
        for name in ("predicted_iou", "stability_score", "box", "area", "point"):
            np.testing.assert_array_equal(getattr(found.masks, name), getattr(stored, name))


def test_the_best_masks_keep_their_order(tmp_path):
    scores = [0.5, 0.9, 0.25, 0.9, 0.9]
    records = [record(two_masks()[0], predicted_iou=score) for score in scores]
    write_json(tmp_path / "1.json", records)
    masks = opened("amg", tmp_path, manifest_of(["1.jpg"])).masks_of(0, SIZE)
    for max_masks, kept in ((1, [0.9]), (2, [0.9, 0.9]), (4, [0.5, 0.9, 0.9, 0.9]), (9, scores)):
        best = best_masks(masks, max_masks)
        np.testing.assert_array_equal(best.predicted_iou, np.float32(kept))
        assert best.num_dropped == 5 - len(kept)


def test_the_config_is_checked():
    config = parse_config(ImportConfig, {"format": "coco", "path": "~/m.json"}, "candidates.masks")
    assert config.path.name == "m.json"
    with pytest.raises(ConfigError, match=r"masks: format: unknown 'lvis'; known are coco, amg"):
        parse_config(ImportConfig, {"format": "lvis", "path": "m.json"}, "masks")


def sha(path, format_name="amg"):
    return source_sha256(ImportConfig(format=format_name, path=path))


def write_tree(folder, names):
    for name in names:
        write_json(folder / name, [name])


NAMES = ["a/1.json", "a/2.json", "b.json", "c/d/1.json", "A.json"]


def test_a_folder_is_named_by_its_content(tmp_path):
    write_tree(tmp_path / "one", NAMES)
    write_tree(tmp_path / "two", reversed(NAMES))
    name = sha(tmp_path / "one")
    assert len(name) == 64
    assert sha(tmp_path / "two") == name
    os.utime(tmp_path / "two" / "b.json", (0, 0))
    (tmp_path / "two" / "photo.jpg").write_bytes(b"pixels")
    assert sha(tmp_path / "two") == name
    assert sha(tmp_path / "two", "semires") != name


def test_the_order_of_the_file_system_does_not_matter(tmp_path, monkeypatch):
    write_tree(tmp_path, NAMES)
    before, walk = sha(tmp_path), os.walk

    def backwards(folder, **options):
        for place, folders, names in walk(folder, **options):
            folders.reverse()
            yield place, folders, sorted(names, reverse=True)

    monkeypatch.setattr(os, "walk", backwards)
    assert sha(tmp_path) == before


@pytest.mark.parametrize("change", ["content", "name", "new", "gone", "swapped"])
def test_another_content_has_another_name(tmp_path, change):
    write_tree(tmp_path, NAMES)
    before, first, second = sha(tmp_path), tmp_path / "a" / "1.json", tmp_path / "a" / "2.json"
    if change == "content":
        first.write_text("[]")
    elif change == "name":
        second.rename(tmp_path / "a" / "9.json")  # stands at the same place of the order
    elif change == "new":
        np.savez(tmp_path / "new.npz", masks=two_masks())
    elif change == "gone":
        first.unlink()
    else:
        one, two = first.read_bytes(), second.read_bytes()
        first.write_bytes(two)
        second.write_bytes(one)
    assert sha(tmp_path) != before


def test_links_are_followed_once(tmp_path):
    write_tree(tmp_path / "real", ["1.json"])
    write_tree(tmp_path / "source", ["0.json"])
    before = sha(tmp_path / "source")
    (tmp_path / "source" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "source" / "back").symlink_to(tmp_path / "source")
    linked = sha(tmp_path / "source")
    assert linked != before
    write_tree(tmp_path / "copy", ["0.json"])
    shutil.copytree(tmp_path / "real", tmp_path / "copy" / "linked")
    assert sha(tmp_path / "copy") == linked


def test_a_file_is_named_by_its_bytes(tmp_path):
    path = write_two_masks("coco", tmp_path / "one")
    copy = write_two_masks("coco", tmp_path / "two")
    assert sha(path, "coco") == sha(copy, "coco")
    copy.write_text(copy.read_text() + " ")
    assert sha(path, "coco") != sha(copy, "coco")


def test_sources_without_content_are_refused(tmp_path):
    for format_name in MASK_FORMATS:
        for path in (tmp_path / "none", tmp_path / "nul\0"):
            with pytest.raises(ConfigError, match="cannot be read"):
                sha(path, format_name)
    with pytest.raises(ConfigError, match=r"no \.json or \.npz file"):
        sha(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        sha(tmp_path, "coco")
