"""inspect-shards shows, exports, verifies and repairs what a run holds."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from pycocotools import mask as coco_mask

from pipeline import audit
from pipeline.candidates import CandidateReader, Candidates, candidate_arrays, encode_rows
from pipeline.cells import build_cells_capped, masks_of
from pipeline.cli import inspect_shards
from pipeline.data_config import DataConfig, LabelledConfig
from pipeline.errors import StoreError
from pipeline.manifest import load_manifest
from pipeline.paths import RunPaths
from pipeline.prepare import prepare_data
from pipeline.records import FailedItem, Plan, done_path, run_lock
from pipeline.runner import ShardResult, run_stage
from refine.choice import Refined
from refine.labels import STRATEGY_NAMES, LabelReader, empty_columns, encode_label, label_arrays
from refine.teacher_store import teacher_arrays


def invoke(*arguments):
    return CliRunner().invoke(inspect_shards, [str(argument) for argument in arguments])


CANVAS, FAILED_ROW, NUM_ROWS = 256, 1, 4


def two_masks(size):
    masks = np.zeros((2, *size), np.bool_)
    masks[0, 10:60, 20:90] = True
    masks[1, 40:100, 50:120] = True
    return masks


def candidates_of(size):
    masks, iou = two_masks(size), np.array([0.9, 0.8], np.float32)
    cells, kept = build_cells_capped(np.packbits(masks, axis=2), masks.shape[2], iou)
    return Candidates(
        cells=cells,
        predicted_iou=iou[kept],
        stability_score=iou[kept],
        box=np.zeros((2, 4), np.int32),
        area=masks.sum((1, 2)).astype(np.int32)[kept],
        point=np.zeros((2, 2), np.float32),
    )


def failures_in(rows):
    return (FailedItem(item="the second", reason="broken"),) if FAILED_ROW in rows else ()


def candidates_work(manifest, rows):
    images = manifest.images_of("train")[rows.start : rows.stop]
    found = [
        None if row == FAILED_ROW else candidates_of(manifest.size_of(image))
        for row, image in zip(rows, images, strict=True)
    ]
    return ShardResult(columns=encode_rows(images, found, CANVAS, 8), failures=failures_in(rows))


def labels_work(manifest, rows):
    expressions = manifest.expressions_of("train", labelled=False)[rows.start : rows.stop]
    columns = empty_columns(len(rows), CANVAS)
    columns["expression"][:] = expressions
    columns["image"][:] = manifest.expression_image[expressions]
    for at, row in enumerate(rows):
        if row != FAILED_ROW:
            mask = two_masks(manifest.size_of(columns["image"][at]))[0]
            refined = Refined(mask_HW=mask, weight_HW=None, source="pwa", score=0.5, num_chosen=1)
            encode_label(columns, at, refined, 0.5)
    return ShardResult(columns=columns, failures=failures_in(rows))


def teacher_work(manifest, rows):
    columns = {
        "expression": manifest.expressions_of("train", labelled=False)[rows.start : rows.stop],
        "valid": np.array([row != FAILED_ROW for row in rows], np.uint8),
        "confidence": np.zeros(len(rows), np.float32),
        "logit": np.zeros((len(rows), 16, 16), np.float16),
    }
    return ShardResult(columns=columns, failures=failures_in(rows))


WORK = {
    "candidates": (candidates_work, "candidates", candidate_arrays(CANVAS, 8)),
    "round-1/teacher": (teacher_work, "teacher-1", teacher_arrays((16, 16))),
    "round-1/labels": (labels_work, "refine-1", label_arrays(CANVAS)),
}
STORES = sorted(WORK)


def write_store(run_dir, name, limit):
    work, stage, specs = WORK[name]
    manifest = load_manifest(run_dir / "manifest")
    plan = Plan(
        stage=stage,
        store=run_dir / f"{name}.zarr",
        specs=specs,
        num_items=NUM_ROWS,
        shard_size=2,
        unit="items",
        decides={},
        attributes={"strategies": list(STRATEGY_NAMES)},
    )
    return run_stage(plan, lambda rows: work(manifest, rows), limit=limit, made_by=stage)


@pytest.fixture(scope="module")
def half_run(tmp_path_factory):
    """Stores written by the real writers: rows 0 to 3, of which 1 failed and 2, 3 are to come."""
    run_dir = tmp_path_factory.mktemp("half")
    data = DataConfig(
        reader="scenes", scenes={"train": 5}, labelled=LabelledConfig(ratio=0.2), scenes_seed=3
    )
    prepare_data(data, run_dir)
    for name in STORES:
        write_store(run_dir, name, limit=2)
    return run_dir


@pytest.fixture
def half_copy(half_run, tmp_path):
    """The same, to be changed."""
    return shutil.copytree(half_run, tmp_path / "run")


def one_line(result):
    assert result.exit_code == 1, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


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
    from pipeline.candidate_config import CandidatesConfig
    from pipeline.candidate_stage import sam_candidates
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


@pytest.mark.parametrize(
    ("name", "verb"),
    [
        ("candidates", "sam-candidates"),
        ("round-1/teacher", "predict-teacher --round 1"),
        ("round-1/labels", "refine-labels --round 1"),
    ],
)
def test_an_unwritten_row_is_named_with_the_command_to_run(half_run, tmp_path, name, verb):
    store = half_run / f"{name}.zarr"
    result = invoke("show", store, "--row", 2, "--out", tmp_path / "x.png")
    assert f"{store}: row 2 is not written yet; run '{verb}'" in one_line(result)
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("name", STORES)
def test_a_shard_that_is_half_written_counts_as_unwritten(half_copy, tmp_path, name):
    store = half_copy / f"{name}.zarr"
    done_path(store, 0).unlink()
    result = invoke("show", store, "--row", 0, "--out", tmp_path / "x.png")
    assert "row 0 is not written yet" in one_line(result)


def test_a_failed_image_has_no_candidates_to_show(half_run, tmp_path):
    store = half_run / "candidates.zarr"
    result = invoke("show", store, "--row", 1, "--out", tmp_path / "x.png")
    name = load_manifest(half_run / "manifest").image_path[1]
    assert f"row 1 ({name}) failed; no candidates" in one_line(result)


def test_a_picture_makes_its_folder(half_run, tmp_path):
    out = tmp_path / "nodir" / "x.png"
    store = half_run / "candidates.zarr"
    assert invoke("show", store, "--out", out).exit_code == 0
    assert out.is_file()
    below_a_file = invoke("show", store, "--out", out / "y.png")
    assert f"{out / 'y.png'}: cannot be written" in one_line(below_a_file)


@pytest.mark.parametrize("kind", ["coco", "html"])
def test_an_export_that_cannot_be_written_is_one_line(half_run, tmp_path, kind):
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "y"
    result = invoke("export", half_run / "candidates.zarr", "--format", kind, "--out", out)
    assert f"{out}: cannot be written" in one_line(result)


@pytest.mark.parametrize("name", STORES)
def test_a_page_skips_what_failed_or_is_to_come(half_run, tmp_path, name):
    store, out = half_run / f"{name}.zarr", tmp_path / "page.html"
    result = invoke("export", store, "--format", "html", "--out", out)
    assert result.stdout == f"{out}: 1 rows\n"
    assert "<h2>row 0</h2>" in out.read_text()
    assert out.read_text().count("<h2>") == 1
    result = invoke("export", store, "--format", "html", "--row", 99, "--out", out)
    assert "rows go from 0 to 3, asked for 99" in one_line(result)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_coco_holds_what_is_written_and_rows_choose(half_run, tmp_path):
    out = tmp_path / "c.json"
    store = half_run / "candidates.zarr"
    assert invoke("export", store, "--out", out).stdout == f"{out}: 2 annotations\n"
    document = json.loads(out.read_text())
    assert [entry["id"] for entry in document["annotations"]] == [1, 2]
    assert {entry["image_id"] for entry in document["annotations"]} == {0}
    manifest = load_manifest(half_run / "manifest")
    assert [image["file_name"] for image in document["images"]] == [manifest.image_path[0]]
    found = [decode(entry) for entry in document["annotations"]]
    masks = two_masks(manifest.size_of(0))
    assert sorted(mask.sum() for mask in found) == sorted(masks.sum((1, 2)))
    assert document["categories"] == [{"id": 1, "name": "object"}]
    result = invoke("export", store, "--row", 1, "--row", 2, "--out", out)
    assert result.stdout == f"{out}: 0 annotations\n"
    assert json.loads(out.read_text())["images"] == []
    assert "asked for 4" in one_line(invoke("export", store, "--row", 4, "--out", out))


def test_an_export_that_breaks_off_leaves_the_old_file(half_copy, tmp_path):
    out = tmp_path / "l.json"
    out.write_text("old")
    damage(half_copy / "round-1/labels.zarr" / "mask")
    one_line(invoke("export", half_copy / "round-1/labels.zarr", "--out", out))
    assert out.read_text() == "old"
    assert [path.name for path in tmp_path.glob(".*")] == []


def damage(array):
    """Flip a bit near the start of every chunk file of an array, where row 0 lies."""
    for file in [path for path in (array / "c").rglob("*") if path.is_file()]:
        content = bytearray(file.read_bytes())
        content[min(12, len(content) // 2)] ^= 1
        file.write_bytes(bytes(content))


NOT_READ = [("round-1/labels", array) for array in ("image", "num_chosen", "expected_iou")]
ARRAYS = [(name, spec.name) for name in STORES for spec in WORK[name][2]]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(("name", "array"), ARRAYS)
@pytest.mark.parametrize("how", ["flipped", "cut", "empty"])
def test_a_damaged_chunk_is_one_line_that_names_store_and_row(
    half_copy, tmp_path, name, array, how
):
    store = half_copy / f"{name}.zarr"
    if how == "flipped":
        damage(store / array)
    for file in [path for path in (store / array / "c").rglob("*") if path.is_file()]:
        if how != "flipped":
            file.write_bytes(file.read_bytes()[: 7 if how == "cut" else 0])
    for verb in (["show"], ["export", "--format", "html"], ["export"]):
        result = invoke(*verb, store, "--out", tmp_path / "x")
        if result.exit_code or (name, array) not in NOT_READ:
            message = one_line(result)
            assert f"{store}" in message
            assert "row 0 cannot be read" in message or verb == ["export"]
            assert "Traceback" not in result.output
    assert invoke("verify", store).exit_code == 1


@pytest.mark.parametrize("content", [b"", b'{"zarr_format": 3, "node_ty', b"[1]"])
@pytest.mark.parametrize("file", ["zarr.json", "cells/zarr.json"])
def test_damaged_metadata_is_one_line(half_copy, tmp_path, file, content):
    store = half_copy / "candidates.zarr"
    (store / file).write_bytes(content)
    for arguments in (["summary", store], ["show", store, "--out", tmp_path / "x"],
                      ["export", store, "--out", tmp_path / "x"]):  # fmt: skip
        assert str(store) in one_line(invoke(*arguments))


def test_metadata_is_compared_with_the_plan(half_copy):
    store = half_copy / "candidates.zarr"
    assert invoke("verify", store).exit_code == 0
    text = (store / "cells" / "zarr.json").read_text()
    (store / "cells" / "zarr.json").write_text(text.replace("256", "255"))
    (store / "area" / "zarr.json").unlink()
    result = invoke("verify", half_copy)
    assert result.exit_code == 1
    again = "run 'sam-candidates' again"
    assert f"{store}: cells/zarr.json damaged: sha256 differs; {again}" in result.stdout
    assert f"{store}: area/zarr.json damaged: cannot be read" in result.stdout
    (store / "zarr.json").unlink()
    assert f"{store}: zarr.json damaged" in invoke("verify", half_copy).stdout


@pytest.mark.parametrize("content", ["", "[]", '{"plan": 1, "fingerprint": 2}'])
def test_a_damaged_plan_is_one_line_and_hides_no_other_store(half_copy, content):
    (half_copy / "candidates.stage" / "plan.json").write_text(content)
    one_line(invoke("summary", half_copy / "candidates.zarr"))
    result = invoke("verify", half_copy)
    assert result.exit_code == 1
    assert f"{half_copy / 'candidates.zarr'}: plan damaged" in result.stdout
    assert f"{half_copy / 'round-1/labels.zarr'}: 1 of 2 shards intact" in result.stdout


def test_a_store_without_its_plan_names_the_real_command(half_copy):
    for name, verb in [
        ("candidates", "sam-candidates"),
        ("round-1/teacher", "predict-teacher --round 1"),
        ("round-1/labels", "refine-labels --round 1"),
    ]:
        (half_copy / f"{name}.stage" / "plan.json").unlink()
        assert f"run '{verb}' first" in one_line(invoke("summary", half_copy / f"{name}.zarr"))


def test_verify_covers_the_manifest(half_copy):
    result = invoke("verify", half_copy)
    assert result.exit_code == 0, result.output
    assert f"{half_copy / 'manifest'}: 1 of 1 manifests intact" in result.stdout
    assert "shard 1 missing: no done record" in result.stdout
    victim = half_copy / "manifest" / "image_path.data.npy"
    victim.write_bytes(victim.read_bytes()[:-1] + b"!")
    result = invoke("verify", half_copy)
    assert result.exit_code == 1
    assert f"{victim} is missing or damaged" in result.stdout


def test_verify_covers_the_students(half_copy):
    student = RunPaths(half_copy).student(1)
    student.mkdir(parents=True)
    (student / "plan.json").write_text("{}")
    result = invoke("verify", half_copy)
    assert result.exit_code == 0
    assert f"{student}: student.json missing: training is not finished" in result.stdout
    for name in ("teacher.safetensors", "vocab.txt"):
        (student / name).write_text(name)
    files = {name: audit.file_sha256(student / name) for name in ("teacher.safetensors",)}
    (student / "student.json").write_text(json.dumps({"files": files}))
    assert f"{student}: 1 of 1 files intact" in invoke("verify", half_copy).stdout
    (student / "teacher.safetensors").write_text("other")
    result = invoke("verify", half_copy)
    assert result.exit_code == 1
    assert f"{student}: teacher.safetensors damaged: sha256 differs" in result.stdout
    (student / "student.json").write_text("{")
    assert "student.json damaged" in invoke("verify", half_copy).stdout


def test_verify_says_the_same_with_any_number_of_threads(half_copy):
    student = RunPaths(half_copy).student(1)
    student.mkdir(parents=True)
    names = [f"{letter}.safetensors" for letter in "abcdefgh"]
    for name in names:
        (student / name).write_text(name)
    files = {name: audit.file_sha256(student / name) for name in names}
    (student / "student.json").write_text(json.dumps({"files": files}))
    (student / names[2]).write_text("other")
    (student / names[5]).unlink()
    store = half_copy / "candidates.zarr"
    (store / "area" / "zarr.json").unlink()
    damage(store / "cells")
    (half_copy / "manifest" / "image_path.data.npy").unlink()
    numbers = ([], ["--threads", 1], ["--threads", 3], ["--threads", 20])
    found = [invoke("verify", half_copy, *options) for options in numbers]
    assert {result.exit_code for result in found} == {1}
    assert {result.stderr for result in found} == {""}
    assert len({result.stdout for result in found}) == 1
    lines = found[0].stdout.splitlines()
    for told in (
        f"{half_copy / 'manifest'}: 0 of 1 manifests intact",
        f"{store}: shard 0 damaged: cells/c/0/0/0: sha256 differs",
        f"{student}: c.safetensors damaged: sha256 differs",
        f"{student}: f.safetensors damaged: cannot be read (No such file or directory)",
        f"{student}: 6 of 8 files intact",
    ):
        assert told in lines
    places = list(dict.fromkeys(line.split(": ")[0] for line in lines))
    assert places == [
        str(half_copy / name)
        for name in ("manifest", *(f"{store}.zarr" for store in STORES), "round-1/student")
    ]


def test_verify_of_a_finished_run_finds_nothing(finished_run):
    result = invoke("verify", finished_run[0])
    assert result.exit_code == 0, result.output
    for place in ("manifest", "candidates.zarr", "round-0/student", "round-2/student"):
        assert f"{finished_run[0] / place}: " in result.stdout
    assert "damaged" not in result.stdout


def test_repair_waits_for_whoever_holds_the_run(half_copy):
    partial = half_copy / "round-1/labels.stage" / "done" / ".00001.json.7.partial"
    inner = half_copy / "candidates.zarr" / "cells" / "c" / "1.abc.partial"
    for path in (partial, inner):
        path.write_bytes(b"half")
    with run_lock(half_copy):
        for place in (half_copy, half_copy / "round-1/labels.zarr"):
            assert f"{half_copy}: in use by pid" in one_line(invoke("repair", place))
        with pytest.raises(StoreError, match="in use by"):
            audit.repair(half_copy / "candidates.zarr")
        assert partial.exists()
        assert inner.exists()
    assert invoke("repair", half_copy).exit_code == 0
    assert not partial.exists()
    assert not inner.exists()


@pytest.mark.parametrize("name", STORES)
def test_failed_items_are_tried_again_when_asked(half_copy, name):
    store = half_copy / f"{name}.zarr"
    assert invoke("repair", store).stdout == f"{store}: 0 damaged shards removed\n"
    assert write_store(half_copy, name, limit=2).shards_done_now == 0
    result = invoke("repair", store, "--failed")
    counts = "0 damaged shards removed, 1 with failed items to be tried again"
    assert result.stdout == f"{store}: {counts}; run '{audit.verb_of(store)}'\n"
    assert write_store(half_copy, name, limit=2).shards_done_now == 1
    write_store(half_copy, name, limit=None)
    assert [state.shard for state in audit.repair(store, failed=True)] == [0]


def test_an_image_that_was_replaced_is_one_line(half_copy, tmp_path):
    manifest = load_manifest(half_copy / "manifest")
    Image.new("RGB", (30, 20)).save(manifest.image_file(0))
    message = one_line(invoke("show", half_copy / "candidates.zarr", "--out", tmp_path / "x.png"))
    assert "as in the manifest" in message
