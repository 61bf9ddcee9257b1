"""A written data set reads back, is the same for any number of workers, and is left alone."""

import json

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ManifestError
from pipeline.scenes.scene import make_scene
from pipeline.scenes.write import FORMAT_VERSION, write_scenes
from pipeline.segmentation import decode_rle

COUNTS = {"train": 5, "val": 2, "testA": 2, "testB": 2}


def files_of(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def mask_of(segmentation):
    height, width = segmentation["size"]
    return decode_rle(segmentation["counts"].encode(), (height, width)).astype(int)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    assert write_scenes(root, seed=2, counts=COUNTS) == root / "scenes.jsonl"
    return root


def test_files_are_those_promised(written):
    names = set(files_of(written))
    assert "images/train_00004.jpg" in names
    assert {name for name in names if "/" not in name} == {
        "scenes.json",
        "scenes.jsonl",
        "parts.jsonl",
    }
    assert len(names) == 11 + 3
    made = json.loads((written / "scenes.json").read_text())
    assert made == {"format_version": FORMAT_VERSION, "seed": 2, "counts": COUNTS}


def test_objects_read_back(written):
    scene = make_scene(2, "train", 3)
    lines = [one for one in lines_of(written / "scenes.jsonl") if "train_00003" in one["image"]]
    referred = [(k, one) for k, one in enumerate(scene.objects) if one.expressions]
    assert [line["id"] for line in lines] == [f"train_00003-{k}" for k, _ in referred]
    for line, (_, one) in zip(lines, referred, strict=True):
        assert line["image"] == "images/train_00003.jpg"
        assert line["split"] == "train"
        assert line["category"] == one.category
        assert tuple(line["expressions"]) == one.expressions
        assert line["segmentation"]["size"] == list(one.mask.shape)
        np.testing.assert_array_equal(mask_of(line["segmentation"]), one.mask)


def test_parts_read_back_and_belong_to_objects(written):
    objects = {line["id"]: line for line in lines_of(written / "scenes.jsonl")}
    union = dict.fromkeys(objects, 0)
    for line in lines_of(written / "parts.jsonl"):
        assert line["part"]
        union[line["object"]] = union[line["object"]] + mask_of(line["segmentation"])
    for name, line in objects.items():
        np.testing.assert_array_equal(union[name], mask_of(line["segmentation"]))


def test_images_are_those_of_the_scenes_up_to_jpeg(written):
    scene = make_scene(2, "val", 1)
    with Image.open(written / "images/val_00001.jpg") as image:
        stored = np.asarray(image).astype(int)
    assert np.abs(stored - scene.image).mean() < 4


def test_workers_do_not_change_a_byte(written, tmp_path):
    write_scenes(tmp_path, seed=2, counts=COUNTS, workers=2)
    assert files_of(tmp_path) == files_of(written)


def test_complete_data_set_is_left_untouched(written):
    before = {path: path.stat().st_mtime_ns for path in written.rglob("*")}
    calls = []
    write_scenes(written, seed=2, counts=COUNTS, progress=lambda: calls.append(1))
    assert {path: path.stat().st_mtime_ns for path in written.rglob("*")} == before
    assert calls == []


def test_interrupted_data_set_is_finished(written, tmp_path):
    write_scenes(tmp_path, seed=2, counts=COUNTS)
    (tmp_path / "scenes.json").unlink()
    (tmp_path / "images/val_00000.jpg").write_bytes(b"half")
    calls = []
    write_scenes(tmp_path, seed=2, counts=COUNTS, progress=lambda: calls.append(1))
    assert files_of(tmp_path) == files_of(written)
    assert len(calls) == 11


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 3}, "made with seed 2, now 3"),
        ({"counts": COUNTS | {"val": 3}}, "made with counts"),
    ],
)
def test_other_data_set_is_refused(written, change, message):
    with pytest.raises(ManifestError, match=message):
        write_scenes(written, **({"seed": 2, "counts": COUNTS} | change))


def test_damaged_record_is_refused(tmp_path):
    (tmp_path / "scenes.json").write_text("{")
    with pytest.raises(ManifestError, match=r"scenes\.json is not JSON"):
        write_scenes(tmp_path, seed=0, counts={"train": 1})


@pytest.mark.parametrize("counts", [{"test": 1}, {"train": -1}])
def test_impossible_counts_are_refused(tmp_path, counts):
    with pytest.raises(ValueError, match="split"):
        write_scenes(tmp_path / "scenes", seed=0, counts=counts)
    assert not (tmp_path / "scenes").exists()
