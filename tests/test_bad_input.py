"""Bad images, expressions and masks: one line each, and the run goes on to its end."""

import json
import re

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pipeline.scenes.scene import make_scene
from train.cli import run_rounds

GOOD, SIZE = 6, (64, 96)


def polygon(top=8, left=8):
    return [[left, top, left + 40, top, left + 40, top + 30, left, top + 30]]


def line(name, **changes):
    entry = {"image": name, "expressions": ["left thing"], "segmentation": polygon(), "id": name}
    return json.dumps({**entry, **changes})


@pytest.fixture(scope="module")
def hostile_data(tmp_path_factory):
    """A data set in which every kind of bad item stands beside good ones."""
    root = tmp_path_factory.mktemp("hostile")
    scene = Image.fromarray(make_scene(0, "train", 0).image).resize(SIZE[::-1])
    lines = []
    for number in range(GOOD):
        scene.rotate(number * 20).save(root / f"good{number}.jpg")
        lines.append(line(f"good{number}.jpg"))
    scene.save(root / "val.jpg")
    lines.append(line("val.jpg", split="val"))
    scene.convert("L").save(root / "grey.jpg")
    scene.convert("CMYK").save(root / "cmyk.jpg")
    depth = np.asarray(scene.convert("L"), np.uint16) * 257
    Image.fromarray(depth).save(root / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    scene.rotate(90, expand=True).save(root / "turned.jpg", exif=exif)
    lines += [line(name) for name in ("grey.jpg", "cmyk.jpg", "deep.png", "turned.jpg")]
    (root / "empty.jpg").touch()
    whole = (root / "good0.jpg").read_bytes()
    (root / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "text.jpg").write_text("not an image")
    lines += [line(name) for name in ("empty.jpg", "cut.jpg", "text.jpg", "absent.jpg")]
    (root / "cut2.jpg").write_bytes(whole[: len(whole) // 3])
    lines += [
        line("good1.jpg", id="wordless", expressions=[""]),
        line("good1.jpg", id="long", expressions=["word " * 5000]),
        line("good2.jpg", id="two points", segmentation=[[1, 1, 5, 5]]),
        line("good2.jpg", id="flat", segmentation=[[1, 1, 5, 1, 9, 1]]),
        '{"image": "good3.jpg", "expressions": ["broken line"',
    ]
    lines.append(line("cut2.jpg"))
    (root / "data.jsonl").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def outcome(hostile_data, small_config, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("hostile-run")
    data = (
        f"{{reader: jsonl, annotations: '{hostile_data}/data.jsonl', "
        "labelled: {ids: [good0.jpg, good1.jpg, cut2.jpg]}}"
    )
    config = small_config.read_text()
    start, stop = config.index("data:"), config.index("candidates:")
    path = run_dir / "stages.yaml"
    path.write_text(f"{config[:start]}data: {data}\n{config[stop:]}")
    arguments = ["--config", str(path), "--run-dir", str(run_dir)]
    return run_dir, CliRunner().invoke(run_rounds, arguments)


def test_the_run_comes_to_its_end_and_says_that_items_failed(outcome):
    run_dir, result = outcome
    assert result.exit_code == 3, result.output
    assert (run_dir / "round-2" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ("empty.jpg", "0 bytes"),
        ("text.jpg", "something else"),
        ("absent.jpg", "none that can be read"),
        ("line 16", "empty"),
        ("line 17", "word"),
        ("line 18", "3 or more points"),
        ("line 19", "covers no pixel"),
        ("line 20", "JSON"),
    ],
)
def test_what_was_left_out_is_named_with_its_reason(outcome, item, reason):
    run_dir, _ = outcome
    lines = (run_dir / "manifest" / "failures.jsonl").read_text().splitlines()
    found = [json.loads(entry) for entry in lines if item in entry]
    assert any(
        entry["severity"] == "failed" and re.search(reason, entry["reason"], re.IGNORECASE)
        for entry in found
    ), lines
    assert all("\n" not in entry["reason"] for entry in found)


@pytest.mark.parametrize(
    ("item", "note"),
    [("grey.jpg", "gr[ae]y"), ("cmyk.jpg", "cmyk"), ("deep.png", "16"), ("turned.jpg", "exif")],
)
def test_what_was_converted_is_noted_and_kept(outcome, item, note):
    run_dir, _ = outcome
    lines = (run_dir / "manifest" / "failures.jsonl").read_text().splitlines()
    assert any(
        item in entry
        and json.loads(entry)["severity"] == "note"
        and re.search(note, entry, re.IGNORECASE)
        for entry in lines
    ), lines
    from pipeline.manifest import load_manifest

    manifest = load_manifest(run_dir / "manifest")
    assert item in [manifest.image_path[image] for image in manifest.images_of("train")]


def test_a_truncated_image_fails_in_the_stages_that_decode_it(outcome):
    run_dir, result = outcome
    record = [
        json.loads(path.read_text())
        for path in sorted((run_dir / "candidates.stage" / "done").glob("*.json"))
    ]
    failures = [failure for entry in record for failure in entry["failures"]]
    assert [failure["item"] for failure in failures] == ["cut.jpg", "cut2.jpg"]
    assert "truncated" in failures[0]["reason"]
    assert "failed: cut.jpg" in result.stderr
    quality = json.loads((run_dir / "round-1" / "quality.json").read_text())
    assert quality["failed"] == 1
    assert "failed: cut.jpg: 'left thing'" in result.stderr
    assert "failed: cut2.jpg: left out of training:" in result.stderr
