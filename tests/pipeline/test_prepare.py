"""A data set becomes a manifest; one bad item is recorded and the run goes on."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from pipeline.columns import file_sha256
from pipeline.data_config import DataConfig, LabelledConfig
from pipeline.errors import ConfigError, ManifestError
from pipeline.manifest import load_manifest
from pipeline.prepare import prepare_data, progress_bar
from pipeline.prepare_summary import counts_of_run, summary_of
from pipeline.segmentation import encode_mask
from tests.pipeline.small_data import (
    PHOTOS,
    RELEASED,
    SQUARE,
    jsonl_config,
    line,
    needs_photos,
    needs_released,
    train_and_val,
    write_image,
    write_lines,
)

HALF = LabelledConfig(ratio=0.5)


def failures(run_dir):
    text = (run_dir / "manifest" / "failures.jsonl").read_text()
    return [json.loads(entry) for entry in text.splitlines()]


@pytest.fixture
def run_dir(tmp_path):
    return tmp_path / "run"


def prepared(tmp_path, run_dir, lines, **changes):
    """Prepare lines, check the manifest on disk, and give it with its failures."""
    summary = prepare_data(jsonl_config(tmp_path, lines, **changes), run_dir)
    manifest = load_manifest(summary.folder, verify=True)
    return manifest, failures(run_dir), summary


def test_a_clean_data_set_by_hand(tmp_path, run_dir):
    lines = train_and_val(tmp_path, 4, 1)
    manifest, failed, summary = prepared(tmp_path, run_dir, lines, labelled=HALF)
    assert failed == []
    assert list(manifest.image_path) == [f"images/{number}.png" for number in range(5)]
    assert manifest.image_size.tolist() == [[12, 20]] * 5
    assert manifest.image_labelled.sum() == 2
    assert not manifest.image_labelled[4]
    assert list(manifest.expression_text)[:2] == ["left thing 0", "left thing 1"]
    expected = np.zeros((12, 20), np.bool_)
    expected[2:6, 2:8] = True
    np.testing.assert_array_equal(manifest.truth(0, None), expected)
    assert (summary.images, summary.objects, summary.expressions) == (5, 5, 5)
    assert summary.splits == {"train": 4, "val": 1}
    assert (summary.labelled_images, summary.labelled_expressions) == (2, 2)
    assert (summary.failed, summary.notes, summary.reused) == (0, 0, False)
    assert manifest.image_file(0).is_file()


def test_rows_stand_by_split_then_first_appearance(tmp_path, run_dir):
    for name in "abcd":
        write_image(tmp_path / f"{name}.png")
    lines = [
        line("d.png", 0, split="test"),
        line("b.png", 1, split="val"),
        line("c.png", 2),
        line("a.png", 3, expressions=["one", "two"]),
        line("c.png", 4),
    ]
    manifest, _, _ = prepared(tmp_path, run_dir, lines)
    assert list(manifest.image_id) == ["c.png", "a.png", "b.png", "d.png"]
    assert list(manifest.object_id) == ["thing-2", "thing-4", "thing-3", "thing-1", "thing-0"]
    assert manifest.object_image.tolist() == [0, 0, 1, 2, 3]
    assert manifest.expression_object.tolist() == [0, 1, 2, 2, 3, 4]


def bad_image(folder, name):
    path = folder / name
    if name == "empty.jpg":
        path.write_bytes(b"")
    elif name == "text.jpg":
        path.write_text("not an image, though long enough to have a header")
    elif name == "folder.jpg":
        path.mkdir()
    elif name == "header.jpg":
        whole = write_image(path).read_bytes()
        path.write_bytes(whole[:10])


@pytest.mark.parametrize(
    "name", ["missing.jpg", "empty.jpg", "text.jpg", "folder.jpg", "header.jpg"]
)
def test_a_bad_image_is_recorded_once_and_the_run_goes_on(tmp_path, run_dir, name):
    bad_image(tmp_path, name)
    write_image(tmp_path / "good.png")
    lines = [line(name, 1), line("good.png", 2), line(name, 3)]
    manifest, failed, summary = prepared(tmp_path, run_dir, lines)
    assert list(manifest.image_id) == ["good.png"]
    assert summary.failed == 1
    (failure,) = failed
    assert failure["item"] == "data.jsonl: line 1"
    assert failure["file"] == name
    assert failure["severity"] == "failed"
    assert "all objects of the image are left out" in failure["reason"]


def test_oddities_are_notes_and_the_image_stays(tmp_path, run_dir):
    Image.new("L", (20, 12), 90).save(tmp_path / "grey.png")
    Image.new("CMYK", (20, 12)).save(tmp_path / "cmyk.jpg")
    Image.fromarray(np.zeros((12, 20), np.uint16)).save(tmp_path / "sixteen.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (12, 20)).save(tmp_path / "turned.jpg", exif=exif)
    names = ["grey.png", "cmyk.jpg", "sixteen.png", "turned.jpg"]
    lines = [line(name, number) for number, name in enumerate(names)]
    manifest, notes, summary = prepared(tmp_path, run_dir, lines)
    assert manifest.image_size.tolist() == [[12, 20]] * 4
    assert [note["severity"] for note in notes] == ["note"] * 4
    assert [note["reason"] for note in notes] == [
        "converted: grayscale",
        "converted: cmyk",
        "converted: grayscale, 16-bit",
        "converted: exif-rotated",
    ]
    assert (summary.failed, summary.notes) == (0, 4)


def test_annotations_before_exif_rotation_are_refused_by_name(tmp_path, run_dir):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 12)).save(tmp_path / "turned.jpg", exif=exif)  # upright 20x12 (HxW)
    raw = {"size": [12, 20], "counts": [100, 140]}
    upright = {"size": [20, 12], "counts": [100, 140]}
    other = {"size": [6, 40], "counts": [100, 140]}
    shapes = [raw, upright, other]
    lines = [line("turned.jpg", n, segmentation=shape) for n, shape in enumerate(shapes)]
    manifest, failed, _ = prepared(tmp_path, run_dir, lines)
    assert manifest.image_size.tolist() == [[20, 12]]
    assert list(manifest.object_id) == ["thing-1"]
    assert "upright size 20x12 (HxW), found them at 12x20, before EXIF" in failed[1]["reason"]
    assert "6x40" in failed[2]["reason"]


def test_bad_expressions_are_left_out_one_by_one(tmp_path, run_dir):
    write_image(tmp_path / "a.png")
    texts = ["  the   left\n dog ", "", " \t", " ".join(["word"] * 5000), "x" * 10_000, "\ud800"]
    lines = [line("a.png", 1, expressions=texts), line("a.png", 2, expressions=[""]),
             line("a.png", 3, expressions=[])]  # fmt: skip
    manifest, failed, summary = prepared(tmp_path, run_dir, lines)
    assert list(manifest.expression_text) == ["the left dog"]
    reasons = [failure["reason"] for failure in failed]
    assert sum("empty one" in reason for reason in reasons) == 3
    assert sum("found 5000 words" in reason for reason in reasons) == 1
    assert sum("10000 characters" in reason for reason in reasons) == 1
    assert sum("surrogate" in reason for reason in reasons) == 1
    assert sum("at least one usable expression" in reason for reason in reasons) == 2
    assert summary.failed == len(failed) == 8


def test_bad_objects_are_left_out_one_by_one(tmp_path, run_dir):
    write_image(tmp_path / "a.png")
    lines = [
        line("a.png", 1),
        line("a.png", 2, segmentation=[[1, 1, 5, 5]]),
        line("a.png", 3, segmentation="missing.png"),
        line("a.png", 4, split="dev"),
        line("a.png", 1, expressions=["again"]),
        line("a.png", 5, category="\udc00"),
        "{broken",
        line("a.png", 6),
    ]
    manifest, failed, _ = prepared(tmp_path, run_dir, lines)
    assert list(manifest.object_id) == ["thing-1", "thing-6"]
    assert [failure["item"] for failure in failed] == [
        f"data.jsonl: line {number}" for number in (2, 3, 4, 5, 6, 7)
    ]
    reasons = " | ".join(failure["reason"] for failure in failed)
    for reason in ("3 or more points", "no file", "'dev'", "'thing-1' again", "surrogate", "JSON"):
        assert reason in reasons


def test_truth_is_needed_in_val_and_optional_in_train(tmp_path, run_dir):
    for name in "ab":
        write_image(tmp_path / f"{name}.png")
    lines = [
        line("a.png", 1, segmentation=None),
        line("b.png", 2, segmentation=None, split="val"),
    ]
    manifest, failed, _ = prepared(tmp_path, run_dir, lines)
    assert manifest.truth(0, None) is None
    assert list(manifest.object_id) == ["thing-1"]
    assert "val needs the truth" in failed[0]["reason"]


def test_only_wholly_annotated_images_are_labelled(tmp_path, run_dir):
    lines = train_and_val(tmp_path, 6, 0)
    lines[0]["segmentation"] = None
    lines.append(line("images/1.png", 77, segmentation=None))
    manifest, _, _ = prepared(tmp_path, run_dir, lines, labelled=LabelledConfig(ratio=1.0))
    assert manifest.image_labelled.tolist() == [False, False, True, True, True, True]


@pytest.mark.parametrize(
    ("labelled", "line_of_summary"),
    [
        ({"ratio": 0.5}, "labelled: 2 of 5 training images with all masks (ratio 0.5), 2 expr"),
        ({"ratio": 1.0}, "labelled: 5 of 5 training images with all masks (ratio 1.0), 5 expr"),
        ({"ids": ("images/2.png",)}, "labelled: 1 of 5 training images with all masks (1 ids), 1"),
        ({}, "labelled: 0 of 5 training images with all masks (none is asked for), 0 expr"),
    ],
)
def test_the_summary_says_who_is_labelled_and_out_of_how_many(
    tmp_path, run_dir, labelled, line_of_summary
):
    lines = train_and_val(tmp_path, 6, 1)
    lines[0]["segmentation"] = None
    _, _, summary = prepared(tmp_path, run_dir, lines, labelled=LabelledConfig(**labelled))
    assert line_of_summary in str(summary)
    assert ("warning" in str(summary)) == (not labelled)
    assert counts_of_run(run_dir) == f"{summary.folder}\n{summary.counts()}"


def test_the_summary_names_the_list_of_labelled_images(tmp_path, run_dir):
    (tmp_path / "ids.txt").write_text("images/3.png\n")
    listed = LabelledConfig(file=tmp_path / "ids.txt")
    _, _, summary = prepared(tmp_path, run_dir, train_and_val(tmp_path, 4, 1), labelled=listed)
    assert f"(file {tmp_path / 'ids.txt'})" in str(summary)


def test_nobody_labelled_is_a_warning_that_says_what_to_set(tmp_path, run_dir):
    lines = train_and_val(tmp_path, 4, 1)
    _, _, summary = prepared(tmp_path, run_dir, lines)
    assert "warning: no image is labelled, and round 0 cannot train; set" in str(summary)
    assert "1.0 takes all 4 images with all masks" in str(summary)
    for entry in lines[:4]:
        entry["segmentation"] = None
    _, _, summary = prepared(tmp_path, tmp_path / "other", lines)
    assert "give training images the masks of all their objects" in str(summary)


def test_a_manifest_without_counts_is_one_line(tmp_path, run_dir):
    _, _, summary = prepared(tmp_path, run_dir, train_and_val(tmp_path, 2, 1))
    path = summary.folder / "manifest.json"
    document = json.loads(path.read_text())
    del document["labelled_images"]
    path.write_text(json.dumps(document))
    with pytest.raises(ManifestError, match=r"counts that prepare-data writes.*labelled_images"):
        summary_of(summary.folder, reused=True)
    assert "prepare the data again" in counts_of_run(run_dir)
    assert counts_of_run(tmp_path) is None


def test_the_labelled_ratio_must_give_an_image(tmp_path, run_dir):
    lines = train_and_val(tmp_path, 4, 1)
    with pytest.raises(ConfigError, match=r"smallest ratio here is 0\.25"):
        prepared(tmp_path, run_dir, lines, labelled=LabelledConfig(ratio=0.1))
    assert not (run_dir / "manifest").exists()


def test_labelled_images_can_be_listed(tmp_path, run_dir):
    lines = train_and_val(tmp_path, 4, 1)
    listed = LabelledConfig(ids=("images/2.png",))
    manifest, _, _ = prepared(tmp_path, run_dir, lines, labelled=listed)
    assert manifest.image_labelled.tolist() == [False, False, True, False, False]
    (tmp_path / "ids.txt").write_text("images/3.png\nimages/0.png\n")
    listed = LabelledConfig(file=tmp_path / "ids.txt")
    manifest, _, _ = prepared(tmp_path, tmp_path / "other", lines, labelled=listed)
    assert manifest.image_labelled.tolist() == [True, False, False, True, False]


def test_a_listed_image_outside_train_is_refused(tmp_path, run_dir):
    lines = train_and_val(tmp_path, 4, 1)
    with pytest.raises(ManifestError, match=r"images/4\.png"):
        prepared(tmp_path, run_dir, lines, labelled=LabelledConfig(ids=("images/4.png",)))


def test_leaks_are_refused_or_dropped_and_counted(tmp_path, run_dir):
    lines = train_and_val(tmp_path, 3, 1)
    lines += [line("images/3.png", 10), line("images/3.png", 11), line("images/1.png", 12)]
    with pytest.raises(ManifestError, match=r"found 1 in both \(images/3\.png\)"):
        prepared(tmp_path, run_dir, lines)
    manifest, _, summary = prepared(tmp_path, run_dir, lines, drop_leaking=True, labelled=HALF)
    assert list(manifest.object_id) == ["thing-0", "thing-1", "thing-12", "thing-2", "thing-3"]
    assert summary.leaking_images == 1
    assert "1 images left train" in str(summary)


def test_the_same_config_gives_the_same_bytes(tmp_path):
    config = jsonl_config(tmp_path, train_and_val(tmp_path), labelled=HALF)
    for name in ("one", "two"):
        prepare_data(config, tmp_path / name)
    for path in (tmp_path / "one" / "manifest").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / "manifest" / path.name).read_bytes()


def test_the_same_config_again_is_skipped(tmp_path, run_dir):
    config = jsonl_config(tmp_path, train_and_val(tmp_path), labelled=HALF)
    first = prepare_data(config, run_dir)
    (tmp_path / "images" / "0.png").unlink()
    second = prepare_data(config, run_dir)
    assert second == dataclasses.replace(first, reused=True)
    assert "unchanged" in str(second)


def test_another_config_is_refused_by_name(tmp_path, run_dir):
    config = jsonl_config(tmp_path, train_and_val(tmp_path), labelled=HALF)
    prepare_data(config, run_dir)
    other = dataclasses.replace(config, labelled=LabelledConfig(ratio=0.3), max_words=5)
    with pytest.raises(ManifestError, match=r"ratio: 0\.5, now 0\.3; config\.max_words: 200, now"):
        prepare_data(other, run_dir)
    with pytest.raises(ManifestError, match="limit: null, now 2"):
        prepare_data(config, run_dir, limit=2)


def test_force_replaces_what_was_made_otherwise_only(tmp_path, run_dir):
    config = jsonl_config(tmp_path, train_and_val(tmp_path), labelled=HALF)
    first = prepare_data(config, run_dir)
    assert prepare_data(config, run_dir, force=True).reused
    bad = dataclasses.replace(config, labelled=LabelledConfig(ids=("nowhere",)))
    with pytest.raises(ManifestError, match="nowhere"):
        prepare_data(bad, run_dir, force=True)
    assert load_manifest(first.folder, verify=True).fingerprint == first.fingerprint
    other = dataclasses.replace(config, labelled=LabelledConfig(ratio=0.3))
    second = prepare_data(other, run_dir, force=True)
    assert (second.labelled_images, second.reused) == (3, False)
    (second.folder / "object_rle.data.npy").unlink()
    assert not prepare_data(other, run_dir, force=True).reused
    assert load_manifest(second.folder, verify=True).num_images == 12


def test_force_makes_other_scenes_and_keeps_the_same(run_dir):
    config = DataConfig(reader="scenes", scenes={"train": 2}, labelled=HALF)
    prepare_data(config, run_dir)
    image = run_dir / "scenes" / "images" / "train_00000.jpg"
    made = image.stat().st_mtime_ns
    prepare_data(dataclasses.replace(config, max_words=100), run_dir, force=True)
    assert image.stat().st_mtime_ns == made
    summary = prepare_data(config, run_dir, limit=1, force=True)
    assert summary.images == 1
    assert image.stat().st_mtime_ns != made


@pytest.mark.parametrize("step", ["assemble", "making_manifest"])
def test_scenes_stay_until_the_new_manifest_is_ready(run_dir, monkeypatch, step):
    config = DataConfig(reader="scenes", scenes={"train": 2}, labelled=HALF)
    first = prepare_data(config, run_dir)
    pictures = {path: path.read_bytes() for path in (run_dir / "scenes").rglob("*.*")}

    def break_off(*_arguments, **_options):
        raise KeyboardInterrupt

    other = dataclasses.replace(config, scenes_seed=7)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(f"pipeline.prepare.{step}", break_off)
        prepare_data(other, run_dir, force=True)
    assert {path: path.read_bytes() for path in pictures} == pictures
    assert load_manifest(first.folder, verify=True).fingerprint == first.fingerprint
    assert prepare_data(config, run_dir).reused
    second = prepare_data(other, run_dir, force=True)
    assert second.fingerprint != first.fingerprint
    manifest = load_manifest(second.folder, verify=True)
    assert manifest.image_root == run_dir / "scenes"
    for row in range(manifest.num_images):
        assert file_sha256(manifest.image_file(row)) == manifest.image_sha256[row]
    assert sorted(path.name for path in run_dir.iterdir()) == ["manifest", "scenes"]


def test_the_fingerprint_knows_the_contents_of_images(tmp_path, run_dir):
    config = jsonl_config(tmp_path, train_and_val(tmp_path, 4, 1), labelled=HALF)
    first = prepare_data(config, run_dir)
    before = load_manifest(first.folder)
    image = tmp_path / "images" / "2.png"
    assert before.image_sha256[2] == hashlib.sha256(image.read_bytes()).hexdigest()
    write_image(image, seed=99)
    after = load_manifest(prepare_data(config, tmp_path / "other").folder)
    assert after.size_of(2) == before.size_of(2)
    assert after.fingerprint != before.fingerprint
    changed = [a != b for a, b in zip(before.image_sha256, after.image_sha256, strict=True)]
    assert changed == [False, False, True, False, False]


def test_force_notices_that_an_image_was_replaced(tmp_path, run_dir):
    config = jsonl_config(tmp_path, train_and_val(tmp_path, 4, 1), labelled=HALF)
    first = prepare_data(config, run_dir)
    write_image(tmp_path / "images" / "2.png", seed=99)
    assert prepare_data(config, run_dir).reused
    second = prepare_data(config, run_dir, force=True)
    assert (second.reused, second.fingerprint != first.fingerprint) == (False, True)


def test_another_annotation_file_is_refused_by_name(tmp_path, run_dir):
    lines = train_and_val(tmp_path)
    config = jsonl_config(tmp_path, lines, labelled=HALF)
    prepare_data(config, run_dir)
    write_lines(config.annotations, lines[:-1])
    with pytest.raises(ManifestError, match=r"inputs\.annotations"):
        prepare_data(config, run_dir)


def test_a_limit_keeps_the_first_images_of_every_split(tmp_path, run_dir):
    lines = [*train_and_val(tmp_path, 10, 5), line("images/0.png", 77), line("images/9.png", 78)]
    config = jsonl_config(tmp_path, lines, labelled=LabelledConfig(ratio=0.1))
    summary = prepare_data(config, run_dir, limit=3)
    manifest = load_manifest(summary.folder)
    assert list(manifest.image_id) == [f"images/{n}.png" for n in (0, 1, 2, 10, 11, 12)]
    assert manifest.num_objects == 7
    assert summary.labelled_images == 1
    with pytest.raises(ManifestError, match="limit of at least 1"):
        prepare_data(config, run_dir, limit=0)


def test_nothing_usable_is_an_error_that_tells_why(tmp_path, run_dir):
    lines = [line("a.png", 1), line("b.png", 2)]
    with pytest.raises(ManifestError, match=r"found none; the first of 2 failures: .* line 1: "):
        prepared(tmp_path, run_dir, lines)
    with pytest.raises(ManifestError, match=r"found none$"):
        prepared(tmp_path, run_dir, [""])


def test_a_missing_input_is_named(tmp_path, run_dir):
    config = DataConfig(reader="jsonl", annotations=tmp_path / "none.jsonl")
    with pytest.raises(ManifestError, match=r"data\.annotations at .*none\.jsonl"):
        prepare_data(config, run_dir)


def test_a_folder_without_manifest_json_is_not_taken_for_a_manifest(tmp_path, run_dir):
    (run_dir / "manifest").mkdir(parents=True)
    config = jsonl_config(tmp_path, train_and_val(tmp_path, 2, 1))
    with pytest.raises(ManifestError, match=r"found none; run 'prepare-data --force', which"):
        prepare_data(config, run_dir)
    assert prepare_data(config, run_dir, force=True).images == 3


def test_progress_counts_objects(tmp_path, run_dir):
    seen = []
    config = jsonl_config(tmp_path, train_and_val(tmp_path, 3, 1))
    prepare_data(config, run_dir, progress=lambda *entry: seen.append(entry))
    assert seen == [("objects", number) for number in (1, 2, 3, 4)]


def test_progress_counts_generated_scenes_too(run_dir):
    seen = []
    config = DataConfig(reader="scenes", scenes={"train": 2, "val": 1}, labelled=HALF)
    prepare_data(config, run_dir, progress=lambda *entry: seen.append(entry))
    assert seen[:3] == [("scenes", 1), ("scenes", 2), ("scenes", 3)]
    assert {kind for kind, _ in seen[3:]} == {"objects"}
    assert [number for _, number in seen[3:]] == list(range(1, len(seen) - 2))


def test_the_progress_bar_shows_each_kind_and_its_number(capsys):
    with progress_bar() as progress:
        assert capsys.readouterr().err == ""
        for number in (1, 2, 3):
            progress("scenes", number)
        progress("objects", 1)
    err = capsys.readouterr().err
    assert "3 scenes" in err
    assert "1 objects" in err


def test_masks_may_be_files_beside_the_lines(tmp_path, run_dir):
    write_image(tmp_path / "elsewhere" / "a.png")
    mask = np.zeros((12, 20), np.bool_)
    mask[4:7, 5:9] = True
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "masks" / "a.png")
    lines = [line("a.png", 1, segmentation="masks/a.png")]
    manifest, _, _ = prepared(tmp_path, run_dir, lines, images=tmp_path / "elsewhere")
    assert manifest.object_rle.bytes_at(0) == encode_mask(mask)
    np.testing.assert_array_equal(manifest.truth(0, None), mask)


def test_one_file_under_two_image_ids_is_refused(tmp_path, run_dir):
    write_image(tmp_path / "a.jpg")
    images = [{"id": number, "file_name": "a.jpg"} for number in (0, 1)]
    shape = {"category_id": 1, "segmentation": SQUARE}
    annotations = [{**shape, "id": number, "image_id": number} for number in (0, 1)]
    instances = {"images": images, "annotations": annotations, "categories": []}
    (tmp_path / "instances.json").write_text(json.dumps(instances))
    sentences = [{"sent": "it", "raw": "It"}]
    refs = [
        {"ref_id": n, "ann_id": n, "image_id": n, "split": "train", "sentences": sentences}
        for n in (0, 1)
    ]
    (tmp_path / "refs.json").write_text(json.dumps(refs))
    config = DataConfig(
        reader="refer",
        annotations=tmp_path / "refs.json",
        instances=tmp_path / "instances.json",
        images=tmp_path,
    )
    summary = prepare_data(config, run_dir)
    assert (summary.images, summary.objects, summary.failed) == (1, 1, 1)
    assert "found '0' and '1' for a.jpg" in failures(run_dir)[0]["reason"]


def test_the_embedded_scenes_become_a_manifest(run_dir):
    config = DataConfig(reader="scenes", scenes={"train": 2, "val": 1}, labelled=HALF)
    summary = prepare_data(config, run_dir)
    manifest = load_manifest(summary.folder, verify=True)
    assert (summary.images, summary.failed, summary.labelled_images) == (3, 0, 1)
    assert len(manifest.images_of("val")) == 1
    assert manifest.image_root == run_dir / "scenes"
    assert all(manifest.truth(row, 64).shape[1] <= 64 for row in range(manifest.num_objects))


@needs_photos
def test_the_photos_become_a_manifest(run_dir):
    config = DataConfig(
        reader="jsonl", annotations=PHOTOS / "photos.jsonl", labelled=LabelledConfig(ratio=0.1)
    )
    summary = prepare_data(config, run_dir)
    manifest = load_manifest(summary.folder)
    assert (summary.images, summary.objects, summary.failed, summary.notes) == (203, 538, 0, 1)
    assert summary.labelled_images == 9
    lengths = manifest.object_rle.lengths()
    assert (lengths > 0).sum() == 460
    labelled = manifest.expressions_of("train", labelled=True)
    assert (lengths[manifest.expression_object[labelled]] > 0).all()


@needs_released
def test_a_released_split_can_list_the_labelled_images(tmp_path, run_dir):
    ids = [580631, 568557, 5]  # the first two are in the released 1 %
    entries = [
        {"id": number, "image": f"COCO_{number}.png", "expression": "it", "segmentation": SQUARE}
        for number in ids
    ]
    for entry in entries:
        write_image(tmp_path / entry["image"])
    config = jsonl_config(tmp_path, entries, labelled=LabelledConfig(file=RELEASED))
    with pytest.raises(ManifestError, match="expected all 169 labelled ids among 3"):
        prepare_data(config, run_dir)
