"""Folders of links: refused until the folder that they lead into is listed, then like files."""

import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.cli import prepare_data as prepare_verb
from pipeline.collect import collect
from pipeline.config import parse_config
from pipeline.containment import LinkError, check_inside
from pipeline.data_config import DataConfig, LabelledConfig
from pipeline.errors import ConfigError, ItemError, ManifestError
from pipeline.images import read_image
from pipeline.manifest import load_manifest, read_description
from pipeline.places import place
from pipeline.prepare import prepare_data, read_failures
from pipeline.readers import READERS
from tests.pipeline.small_data import jsonl_config, line, train_and_val, write_image, write_lines

HALF = LabelledConfig(ratio=0.5)


@pytest.fixture
def snapshot(tmp_path):
    """A data set as the hub keeps it: annotations and images are links to blobs beside it."""
    root, blobs = tmp_path / "snapshots" / "main", tmp_path / "blobs"
    lines = train_and_val(root, 4, 1)
    blobs.mkdir()
    for number, path in enumerate(sorted((root / "images").iterdir())):
        link_out(path, blobs / f"{number:064x}")
    config = jsonl_config(root, lines, labelled=HALF)
    link_out(config.annotations, blobs / "annotations")
    return config, blobs


def link_out(path, blob):
    """Move a file aside and leave a relative link to it, as the hub does."""
    path.rename(blob)
    path.symlink_to(os.path.relpath(blob, path.parent))


def with_links(config, *folders):
    return replace(config, links_into=tuple(folders))


def pixels_of(manifest):
    return [
        read_image(manifest.image_file(row), canvas=None, size=manifest.size_of(row)).tobytes()
        for row in range(manifest.num_images)
    ]


# What a link may do.


def test_links_may_lead_into_the_folders_that_are_listed_and_no_others(tmp_path):
    root, blobs, other = tmp_path / "root", tmp_path / "blobs", tmp_path / "other"
    for folder in (blobs / "ab", other):
        write_image(folder / "a.png")
    root.mkdir()
    (root / "blob.png").symlink_to("../blobs/ab/a.png")
    (root / "chain.png").symlink_to("blob.png")
    (root / "folder").symlink_to(blobs)
    (root / "other.png").symlink_to("../other/a.png")
    (blobs / "onwards.png").symlink_to("../other/a.png")
    (tmp_path / "by-link").symlink_to(blobs)
    (tmp_path / "blobs-2").mkdir()
    (root / "beside.png").symlink_to("../blobs-2/a.png")
    for links_into in ([blobs], [other / "nowhere", blobs], [tmp_path / "by-link"], [blobs / "ab"]):
        check_inside(root, "blob.png", links_into)
        check_inside(root, "chain.png", links_into)
    check_inside(root, "folder/ab/a.png", [blobs])
    for name in ("other.png", "folder/onwards.png", "beside.png", "folder/../other/a.png"):
        with pytest.raises(LinkError, match=r"inside .*root or data\.links_into, found .*a link"):
            check_inside(root, name, [blobs])
    check_inside(root, "folder/onwards.png", [blobs, other])
    check_inside(root, "other.png", [tmp_path])
    check_inside(root, "other.png", ["/"])


@pytest.mark.parametrize(
    "name",
    ["../blobs/a.png", "..\\blobs\\a.png", "x/../../blobs/a.png", "ABSOLUTE", "C:\\blobs\\a.png"],
)
def test_a_listed_folder_is_reached_by_links_only(tmp_path, name):
    blobs = tmp_path / "blobs"
    write_image(blobs / "a.png")
    (tmp_path / "root" / "x").mkdir(parents=True)
    name = str(blobs / "a.png") if name == "ABSOLUTE" else name
    with pytest.raises(ItemError) as refused:
        check_inside(tmp_path / "root", name, [blobs, tmp_path])
    assert not isinstance(refused.value, LinkError)
    assert "link" not in str(refused.value)


@settings(max_examples=60)
@given(st.lists(st.sampled_from(["..", "a", "root", "blobs", ".", "out"]), max_size=6))
def test_no_name_without_links_is_relaxed(tmp_path_factory, parts):
    """Whatever a name without links is refused for, it is refused for with folders listed too."""
    base = tmp_path_factory.getbasetemp() / "plain"
    (base / "root" / "a").mkdir(parents=True, exist_ok=True)
    name = "/".join(parts)

    def outcome(links_into):
        try:
            check_inside(base / "root", name, links_into)
        except ItemError as error:
            return str(error)
        return None

    assert outcome([base, base / "blobs"]) == outcome([])


def test_links_in_a_circle_or_to_nothing_are_one_failure_each(tmp_path):
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "circle.png").symlink_to("circle.png")
    (tmp_path / "root" / "gone.png").symlink_to(blobs / "gone.png")
    os.mkfifo(blobs / "pipe")
    (tmp_path / "root" / "pipe.png").symlink_to(blobs / "pipe")
    names = ["circle.png", "gone.png", "pipe.png"]
    config = jsonl_config(tmp_path / "root", [line(name, n) for n, name in enumerate(names)])
    config = with_links(config, blobs)
    source = READERS["jsonl"](config, tmp_path, 1, None)
    found = collect(source, config, limit=None, progress=None)
    assert [failure.file for failure in found.failures] == names
    assert all("expected an image file" in failure.reason for failure in found.failures)
    assert not any(failure.leads_to for failure in found.failures)


def test_the_error_keeps_where_a_link_leads_when_it_comes_from_another_process(tmp_path):
    (tmp_path / "a.png").symlink_to("/etc/hostname")
    with pytest.raises(LinkError) as refused:
        check_inside(tmp_path, "a.png")
    back = pickle.loads(pickle.dumps(refused.value))
    assert (back.leads_to, str(back)) == ("/etc/hostname", str(refused.value))


# A data set of links.


def test_a_data_set_of_links_says_what_to_add_and_then_works(snapshot, tmp_path):
    config, blobs = snapshot
    with pytest.raises(ManifestError) as refused:
        prepare_data(config, tmp_path / "run")
    assert "found none; 5 links out of their folder: data.jsonl: line 1 " in str(refused.value)
    assert f"add 'links_into: [{blobs}]' to the data section" in str(refused.value)
    summary = prepare_data(with_links(config, blobs), tmp_path / "run")
    assert (summary.images, summary.failed) == (5, 0)
    manifest = load_manifest(tmp_path / "run" / "manifest")
    assert manifest.links_into == (blobs,)
    whole = prepare_data(jsonl_config(tmp_path / "whole", train_and_val(tmp_path / "whole", 4, 1),
                                      labelled=HALF), tmp_path / "other")  # fmt: skip
    assert whole.fingerprint == summary.fingerprint
    assert pixels_of(manifest) == pixels_of(load_manifest(whole.folder))


def test_a_relative_folder_means_the_same_to_processes_that_start_elsewhere(
    snapshot, tmp_path, monkeypatch
):
    config, blobs = snapshot
    monkeypatch.chdir(tmp_path)
    prepare_data(with_links(config, Path("blobs")), tmp_path / "run")
    monkeypatch.chdir("/")
    manifest = load_manifest(tmp_path / "run" / "manifest")
    assert manifest.links_into == (blobs,)
    assert len(pixels_of(manifest)) == 5


def test_a_link_that_is_turned_elsewhere_later_is_one_bad_image(snapshot, tmp_path):
    config, blobs = snapshot
    prepare_data(with_links(config, blobs), tmp_path / "run")
    manifest = load_manifest(tmp_path / "run" / "manifest")
    path = manifest.image_file(2)
    write_image(tmp_path / "secret.png")
    path.unlink()
    path.symlink_to(tmp_path / "secret.png")
    with pytest.raises(ItemError, match="a link that leads out of it"):
        manifest.image_file(2)
    assert manifest.image_file(1).is_file()


def test_masks_may_be_links_too(tmp_path):
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    root = tmp_path / "root"
    write_image(root / "a.png")
    Image.new("L", (20, 12), 1).save(root / "mask.png")
    link_out(root / "mask.png", blobs / "0")
    lines = [line("a.png", 1, segmentation="mask.png")]
    config = jsonl_config(root, lines)
    with pytest.raises(ManifestError, match="1 links out of their folder"):
        prepare_data(config, tmp_path / "run")
    assert prepare_data(with_links(config, blobs), tmp_path / "run").objects == 1


@pytest.mark.parametrize("reader", ["refer", "semires-split"])
def test_every_reader_knows_the_setting(snapshot, tmp_path, reader):
    _, blobs = snapshot
    root = tmp_path / "snapshots" / "main" / "images"
    images = [{"id": n, "file_name": f"{n}.png"} for n in range(5)]
    (tmp_path / "instances.json").write_text(
        json.dumps({
            "images": images,
            "annotations": [{"id": n, "image_id": n, "category_id": 1,
                             "segmentation": [[2, 2, 8, 2, 8, 6]]} for n in range(5)],
            "categories": [{"id": 1, "name": "cat"}],
        })
    )  # fmt: skip
    refs = [{"ref_id": n, "ann_id": n, "image_id": n, "split": "train",
             "sentences": [{"sent": "it"}]} for n in range(5)]  # fmt: skip
    (tmp_path / "refs.json").write_text(json.dumps(refs))
    split = {"train": [{"iid": n, "mask_id": n, "refs": ["it"]} for n in range(5)]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    given = {"reader": reader, "annotations": str(tmp_path / "refs.json"), "images": str(root),
             "instances": str(tmp_path / "instances.json"), "links_into": [str(blobs)]}  # fmt: skip
    if reader == "semires-split":
        given |= {"annotations": str(tmp_path / "split.json"), "refs": str(tmp_path / "refs.json")}
    summary = prepare_data(parse_config(DataConfig, given, "data"), tmp_path / "run")
    assert (summary.images, summary.failed) == (5, 0)


# What the setting decides: nothing.


def test_files_that_become_links_change_no_fingerprint(tmp_path):
    root = tmp_path / "root"
    config = jsonl_config(root, train_and_val(root, 4, 1), labelled=HALF)
    first = prepare_data(config, tmp_path / "run")
    before = {p.name: p.read_bytes() for p in first.folder.iterdir()}
    shutil.move(root / "images", tmp_path / "disk")
    (root / "images").symlink_to(tmp_path / "disk")
    (tmp_path / "other").mkdir()
    for folders in ((tmp_path / "disk",), (tmp_path / "disk", tmp_path / "other")):
        again = prepare_data(with_links(config, *folders), tmp_path / "run")
        assert (again.fingerprint, again.reused) == (first.fingerprint, False)
        assert load_manifest(again.folder).links_into == folders
        assert prepare_data(with_links(config, *folders), tmp_path / "run").reused
        after = {p.name: p.read_bytes() for p in again.folder.iterdir()}
        assert {n for n in before if before[n] != after[n]} == {"manifest.json"}
    with pytest.raises(ManifestError, match="5 links out of their folder"):
        prepare_data(config, tmp_path / "run")  # the list is taken away: no image may be read
    assert load_manifest(first.folder).num_images == 5


def test_a_manifest_from_before_the_setting_is_taken_as_it_is(tmp_path):
    config = jsonl_config(tmp_path, train_and_val(tmp_path, 4, 1), labelled=HALF)
    prepare_data(config, tmp_path / "run")
    document = read_description(tmp_path / "run" / "manifest")
    assert "links_into" not in document
    assert "links_into" not in document["config"]
    assert prepare_data(config, tmp_path / "run").reused


def test_other_links_that_let_other_images_in_are_refused_by_name(tmp_path):
    root, disk = tmp_path / "root", tmp_path / "disk"
    lines = train_and_val(root, 4, 1)
    disk.mkdir()
    link_out(root / "images" / "3.png", disk / "3.png")
    config = jsonl_config(root, lines, labelled=HALF)
    first = prepare_data(config, tmp_path / "run")
    assert (first.images, first.failed) == (4, 1)
    with pytest.raises(ManifestError, match=r"has 4 images and 4 objects, now 5 and 5; .*--force"):
        prepare_data(with_links(config, disk), tmp_path / "run")
    assert load_manifest(first.folder, verify=True).fingerprint == first.fingerprint
    second = prepare_data(with_links(config, disk), tmp_path / "run", force=True)
    assert (second.images, second.failed) == (5, 0)
    with pytest.raises(ManifestError, match=r"has 5 images and 5 objects, now 4 and 4"):
        prepare_data(config, tmp_path / "run")


def test_a_listed_folder_has_to_be_there(snapshot, tmp_path):
    config, blobs = snapshot
    with pytest.raises(ManifestError, match=r"data\.links_into at .*nowhere, found none"):
        prepare_data(with_links(config, blobs, tmp_path / "nowhere"), tmp_path / "run")
    assert not (tmp_path / "run" / "manifest").exists()


def test_a_reader_without_links_refuses_the_setting():
    with pytest.raises(ConfigError, match="'scenes' does not read 'links_into'"):
        parse_config(DataConfig, {"reader": "scenes", "links_into": ["/data"]}, "data")
    with pytest.raises(ConfigError, match="expected a list"):
        parse_config(
            DataConfig, {"reader": "jsonl", "annotations": "a", "links_into": "/d"}, "data"
        )


@pytest.mark.parametrize("found", [5, "text", [1], ["a\0b"], {"a": "b"}, [None]])
def test_a_manifest_whose_list_is_no_list_is_refused(tmp_path, found):
    config = jsonl_config(tmp_path, train_and_val(tmp_path, 2, 1), labelled=HALF)
    folder = prepare_data(config, tmp_path / "run").folder
    document = read_description(folder)
    (folder / "manifest.json").write_text(json.dumps({**document, "links_into": found}))
    with pytest.raises(ManifestError, match="expected links_into as a list of folders") as refused:
        load_manifest(folder)
    assert "\n" not in str(refused.value)


def test_a_run_in_an_object_store_knows_the_folders_of_this_machine(snapshot):
    config, blobs = snapshot
    run_dir = place("memory://linked/run")
    prepare_data(with_links(config, blobs), run_dir)
    manifest = load_manifest(run_dir / "manifest")
    assert manifest.links_into == (blobs,)
    assert len(pixels_of(manifest)) == 5
    assert prepare_data(with_links(config, blobs), run_dir).reused


def test_a_run_directory_moves_with_the_folders_beside_it(tmp_path):
    base = tmp_path / "job"
    lines = train_and_val(base / "root", 2, 1)
    (base / "run" / "disk").mkdir(parents=True)
    link_out(base / "root" / "images" / "0.png", base / "run" / "disk" / "0.png")
    config = with_links(jsonl_config(base / "root", lines, labelled=HALF), base / "run" / "disk")
    prepare_data(config, base / "run")
    base.rename(tmp_path / "moved")
    manifest = load_manifest(tmp_path / "moved" / "run" / "manifest")
    assert manifest.links_into == (tmp_path / "moved" / "run" / "disk",)


# What the verb prints.


def run_verb(tmp_path, config, *more):
    path = tmp_path / "stages.yaml"
    path.write_text(f"version: 1\ndata: {{reader: jsonl, annotations: '{config.annotations}'}}\n")
    where = ["--config", str(path), "--run-dir", str(tmp_path / "run")]
    return CliRunner().invoke(prepare_verb, [*where, *more])


def test_the_verb_ends_with_one_line_for_all_links_whose_setting_can_be_pasted(tmp_path):
    root, disk = tmp_path / "root", tmp_path / "a disk: 'é'"
    lines = train_and_val(root, 41, 1)
    disk.mkdir()
    for number in range(1, 41):
        link_out(root / "images" / f"{number}.png", disk / f"{number}.png")
    config = jsonl_config(root, lines)
    result = run_verb(tmp_path, config)
    assert result.exit_code == 3, result.output
    (told,) = [text for text in result.stderr.splitlines() if text.startswith("failed:")]
    assert told == result.stderr.splitlines()[-1]
    assert told.startswith("failed: 40 links out of their folder: data.jsonl: line 2 images/1.png ")
    setting = told.split("add '", 1)[1].split("' to the data section")[0]
    path = tmp_path / "stages.yaml"
    path.write_text(path.read_text().replace("data: {", "data: {" + setting + ", "))
    where = ["--config", str(path), "--run-dir", str(tmp_path / "run")]
    again = CliRunner().invoke(prepare_verb, [*where, "--force"])
    assert again.exit_code == 0, again.output
    assert "42 images" in again.stdout
    assert load_manifest(tmp_path / "run" / "manifest").links_into == (disk,)


def test_what_refuses_a_manifest_tells_of_the_links_that_are_behind_it(snapshot, tmp_path):
    config, blobs = snapshot
    write_image(tmp_path / "snapshots" / "main" / "own.png")
    lines = [*map(json.loads, config.annotations.read_text().splitlines()), line("own.png", 9)]
    config.annotations.unlink()
    write_lines(config.annotations, lines)
    with pytest.raises(ConfigError, match=r"is no image; .*; 5 links out of their folder: .*blobs"):
        prepare_data(config, tmp_path / "run")
    assert prepare_data(with_links(config, blobs), tmp_path / "run").images == 6


def test_failures_are_told_from_what_is_kept(snapshot, tmp_path):
    config, blobs = snapshot
    write_image(tmp_path / "snapshots" / "main" / "own.png")
    lines = [*map(json.loads, config.annotations.read_text().splitlines()), line("own.png", 9)]
    config.annotations.unlink()
    write_lines(config.annotations, lines)
    prepare_data(with_links(DataConfig(reader="jsonl", annotations=config.annotations)),
                 tmp_path / "run")  # fmt: skip
    text = (tmp_path / "run" / "manifest" / "failures.jsonl").read_text()
    kept = [json.loads(entry) for entry in text.splitlines()]
    assert len(kept) == 5
    assert all(entry["leads_to"].startswith(str(blobs)) for entry in kept)
    ((told,), notes) = read_failures(tmp_path / "run")
    assert notes == ()
    assert told.item == "5 links out of their folder"
