"""The verb evaluate-student on a finished run: figures, files, comparisons, what is read back."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from pycocotools import mask as coco_mask

from pipeline.commands import Settings
from pipeline.manifest import load_manifest
from refine.upsample import upsample_align_corners
from tests.train.ranks import run_ranks
from train.cli import evaluate_student as verb
from train.comparison import stored_outcomes
from train.config import EvaluateConfig
from train.evaluate import evaluate_student, sentences_with_truth
from train.measure import measure
from train.outcomes import METRICS, figures, join
from train.predictor import Passes, predictor_of
from train.trained import load_trained, read_trained


@pytest.fixture
def copy(finished_run, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(finished_run[0], run_dir)
    return run_dir


@pytest.fixture(scope="module")
def predictor(finished_run):
    """One expression per pass, so that no last bit depends on a batch."""
    trained = read_trained(finished_run[0] / "round-2" / "student", "")
    manifest = load_manifest(finished_run[0] / "manifest")
    return predictor_of(trained, manifest, load_trained(trained, "cpu"), 1, Passes())


def invoke(small_config, run_dir, *arguments):
    shared = ["--config", str(small_config), "--run-dir", str(run_dir), "--round", "2"]
    return CliRunner().invoke(verb, [*shared, *arguments])


def test_the_verb_prints_both_protocols_with_intervals_and_sizes(copy, small_config):
    result = invoke(small_config, copy)
    assert result.exit_code == 0, result.stderr
    assert "sentences of 3 images, percent; headline: square" in result.stdout
    lines = [line.split("│")[1:-1] for line in result.stdout.splitlines() if "│" in line]
    names = [line[0].strip() for line in lines]
    stored = json.loads((copy / "round-2" / "metrics.json").read_text())["val"]
    parts = stored["square"]["by_size"]
    sizes = [f"{name} ({parts[name]['sentences']})" for name in ("small", "medium", "large")]
    assert names == ["square", "95 %", *sizes, "image", "95 %", *sizes]
    assert lines[0][2].strip() == f"{100 * stored['square']['mean_iou']:.2f}"
    low, high = stored["image"]["interval"]["oIoU"]
    assert lines[6][1].strip() == f"{100 * low:.1f}–{100 * high:.1f}"
    assert sum(part["sentences"] for part in parts.values()) == len(
        sentences_with_truth(load_manifest(copy / "manifest"), "val")
    )


def test_one_protocol_can_be_chosen(copy, small_config):
    chosen = ("--set", "evaluate.protocols=[image]", "--set", "evaluate.headline=image")
    result = invoke(small_config, copy, *chosen)
    assert result.exit_code == 0, result.stderr
    assert "headline: image" in result.stdout
    assert "square" not in result.stdout
    refused = invoke(small_config, copy, "--set", "evaluate.protocols=[image]")
    assert refused.exit_code == 1
    assert "expected each once and the headline 'square' among them, found image" in refused.stderr


def test_every_sentence_equals_pycocotools_on_the_stored_truth(finished_run, predictor):
    """Predicted masks encoded and compared with the manifest's own RLE, sentence by sentence."""
    manifest = predictor.manifest
    rows = sentences_with_truth(manifest, "val")
    outcomes, failed = measure(predictor, rows, ("image",), "test")
    assert not failed
    assert np.array_equal(outcomes.expression, rows)
    theirs = []
    for positions, margin_Bhw, _ in predictor.margins(rows):
        row = int(manifest.expression_object[rows[positions[0]]])
        size = manifest.size_of(manifest.object_image[row])
        mask = upsample_align_corners(margin_Bhw[0], size) > 0
        own = coco_mask.encode(np.asfortranarray(mask, np.uint8))
        truth = {"size": list(size), "counts": manifest.object_rle.bytes_at(row)}
        theirs.append(coco_mask.iou([own], [truth], [0])[0][0])
    assert outcomes.iou("image") == pytest.approx(theirs, abs=1e-12)
    assert outcomes.iou("image").max() > 0


@pytest.mark.parametrize("ranks", [2, 5])
def test_any_number_of_ranks_gives_the_same_figures(predictor, ranks):
    """Parts of different length, measured apart and joined: the same bits in every figure."""
    rows = sentences_with_truth(predictor.manifest, "val")
    protocols = ("square", "image")
    whole = measure(predictor, rows, protocols, "whole")[0]
    parts = [measure(predictor, rows[r::ranks], protocols, "part")[0] for r in range(ranks)]
    assert len({len(part) for part in parts}) > 1 or ranks == 2
    joined = join(parts[::-1])
    for name in protocols:
        settings = {"sizes": "coco", "resamples": 50, "seed": 0}
        assert figures(joined, name, **settings) == figures(whole, name, **settings)


def test_what_was_counted_is_read_back_without_the_network(copy, small_config):
    section = Settings(small_config, copy, ()).section("evaluate", EvaluateConfig)
    first = evaluate_student(section, copy, 2, "val")
    (copy / "round-2" / "student" / "teacher.safetensors").unlink()
    stamp = (copy / "round-2" / "metrics.json").stat().st_mtime_ns
    assert evaluate_student(section, copy, 2, "val") == first
    assert (copy / "round-2" / "metrics.json").stat().st_mtime_ns == stamp
    more = Settings(small_config, copy, ("evaluate.resamples=0",)).section(
        "evaluate", EvaluateConfig
    )
    again = evaluate_student(more, copy, 2, "val")
    assert again["square"]["interval"] is None
    assert again["square"]["mean_iou"] == first["square"]["mean_iou"]


def test_damaged_columns_and_a_missing_picture_are_made_again(copy, small_config):
    section = Settings(small_config, copy, ()).section("evaluate", EvaluateConfig)
    first = evaluate_student(section, copy, 2, "val")
    columns, sheet = copy / "round-2" / "metrics-val.npz", copy / "round-2" / "evaluation-val.png"
    whole, picture = columns.read_bytes(), sheet.read_bytes()
    columns.write_bytes(whole[:-5])
    sheet.unlink()
    assert evaluate_student(section, copy, 2, "val") == first
    assert columns.read_bytes() == whole
    assert sheet.read_bytes() == picture
    with Image.open(sheet) as shown:
        assert shown.width > 3 * 200
        assert shown.height > 3 * 100  # best, median and worst of three images


def test_a_limit_is_not_recorded(copy, small_config):
    before = {path: path.read_bytes() for path in (copy / "round-2").glob("*") if path.is_file()}
    result = invoke(small_config, copy, "--limit", "4")
    assert result.exit_code == 0, result.stderr
    assert "4 sentences of" in result.stdout
    assert before == {path: path.read_bytes() for path in before}


def test_rounds_are_compared_sentence_by_sentence(copy, small_config):
    other = copy / "round-1" / "metrics.json"
    result = invoke(small_config, copy, "--against", str(other))
    assert result.exit_code == 0, result.stderr
    assert f"this minus {other}" in result.stdout
    values = [
        json.loads((copy / f"round-{number}" / "metrics.json").read_text())["val"]["image"]
        for number in (1, 2)
    ]
    gain = 100 * (values[1]["mean_iou"] - values[0]["mean_iou"])
    assert f"{gain:+.2f}" in result.stdout
    own = invoke(small_config, copy, "--against", str(copy / "round-2" / "metrics.json"))
    assert own.stdout.count("+0.00") == 2 * len(METRICS)
    assert "*" not in own.stdout


def test_what_cannot_be_compared_is_refused_in_one_line(copy, small_config, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(copy / "round-1", other)
    document = json.loads((other / "metrics.json").read_text())
    document["val"]["inputs"]["manifest"] = "f" * 64
    (other / "metrics.json").write_text(json.dumps(document))
    (other / "odd.json").write_text('{"val": {"outcomes": {"file": 3}}}')
    (other / "list.json").write_text("[1]")
    for path, message in (
        (other / "odd.json", "no evaluation of 'val' with its sentences"),
        (other / "list.json", "no evaluation of 'val' with its sentences"),
        (other / "metrics.json", "evaluated on other data (manifest ffffffffffffffff"),
        (copy / "round-1" / "quality.json", "no evaluation of 'val' with its sentences"),
    ):
        refused = invoke(small_config, copy, "--against", str(path))
        assert refused.exit_code == 1
        assert message in refused.stderr
        assert refused.stderr.strip().count("\n") == 0
    (copy / "round-1" / "metrics-val.npz").unlink()
    gone = invoke(small_config, copy, "--against", str(copy / "round-1" / "metrics.json"))
    assert "metrics-val.npz: missing or damaged" in gone.stderr


def test_an_image_that_cannot_be_read_is_named_and_left_out(copy, small_config):
    manifest = load_manifest(copy / "manifest")
    rows = sentences_with_truth(manifest, "val")
    image = int(manifest.expression_image[rows[0]])
    path = manifest.image_file(image)
    content = path.read_bytes()
    (copy / "round-2" / "metrics.json").unlink()
    try:
        path.write_bytes(content[: len(content) // 2])
        result = invoke(small_config, copy)
        assert result.exit_code == 3, result.stderr
        assert manifest.image_path[image] in result.stderr
        found, outcomes = stored_outcomes(copy / "round-2" / "metrics.json", "val")
        lost = int((manifest.expression_image[rows] == image).sum())
        assert len(found["failed"]) == lost > 0
        assert found["sentences"] == len(outcomes) == len(rows) - lost
    finally:
        path.write_bytes(content)
    mended = invoke(small_config, copy)
    assert mended.exit_code == 0
    assert f"{len(rows)} sentences of" in mended.stdout


def run_verb(config, run_dir, *arguments):
    """Run the verb in a process of `run_ranks`."""
    shared = ["--config", str(config), "--run-dir", str(run_dir), "--round", "2"]
    verb.main([*shared, "--set", "evaluate.batch_size=1", *arguments], standalone_mode=False)


@pytest.mark.ddp
def test_two_processes_write_the_same_bytes_as_one(copy, small_config, tmp_path):
    """One expression a pass, so that no last bit depends on how the batches are cut."""
    names = ("metrics.json", "metrics-val.npz", "evaluation-val.png")
    for name in names:
        (copy / "round-2" / name).unlink()
    both = tmp_path / "both"
    shutil.copytree(copy, both)
    assert run_ranks(1, run_verb, (small_config, copy), tmp_path)[0].code == 0
    ended = run_ranks(2, run_verb, (small_config, both), tmp_path)
    assert [one.code for one in ended] == [0, 0], ended
    assert ended[1].text == ""
    assert "headline: square" in ended[0].text
    for name in names:
        assert (both / "round-2" / name).read_bytes() == (copy / "round-2" / name).read_bytes()


@pytest.mark.ddp
def test_two_processes_say_once_what_is_missing(copy, small_config, tmp_path):
    shutil.rmtree(copy / "round-2" / "student")
    ended = run_ranks(2, run_verb, (small_config, copy), tmp_path)
    assert [one.code for one in ended] == [1, 1]
    said = "".join(one.text for one in ended)
    assert said.count("no finished training; run 'train-student --round 2'") == 1
