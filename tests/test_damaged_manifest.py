"""A damaged manifest or training is refused by whoever would use it, and mended as is said."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from pipeline.audit_cli import repair, verify
from pipeline.cli import inspect_shards, prepare_data, sam_candidates
from pipeline.columns import file_sha256
from pipeline.errors import ManifestError, StoreError
from pipeline.manifest import load_manifest
from pipeline.paths import RunPaths
from refine.cli import refine_labels
from tests.conftest import file_hashes
from train.cli import evaluate_student, predict_teacher, run_rounds, train_student

ANEW = "run 'prepare-data --force', which makes it anew"


@pytest.fixture
def run_dir(finished_run, tmp_path):
    """A copy of a finished run."""
    return shutil.copytree(finished_run[0], tmp_path / "run")


def call(command, run_dir, config, *options):
    common = ["--config", str(config), "--run-dir", str(run_dir)]
    return CliRunner().invoke(command, [*common, *options])


def flip(path, at=-3):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))
    return path


def refusal(result, *told):
    """Check that a command refused in one line that tells something, and give it."""
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.splitlines()
    assert all(str(text) in line for text in told), line
    return line


STAGES = [
    (sam_candidates, (), ("candidates.zarr", "candidates.stage")),
    (train_student, ("--round", "0"), ("round-0/student",)),
    (evaluate_student, ("--round", "0", "--split", "val"), ()),
    (predict_teacher, ("--round", "1"), ("round-1/teacher.zarr", "round-1/teacher.stage")),
    (refine_labels, ("--round", "1"), ("round-1/labels.zarr", "round-1/labels.stage")),
    (train_student, ("--round", "1"), ("round-1/student",)),
]


@pytest.mark.parametrize("column", ["object_rle.data.npy", "expression_text.data.npy"])
@pytest.mark.parametrize(("command", "options", "made"), STAGES)
def test_no_stage_works_with_a_damaged_manifest(
    run_dir, small_config, command, options, made, column
):
    for name in made:
        shutil.rmtree(run_dir / name)
    victim = flip(run_dir / "manifest" / column)
    refusal(call(command, run_dir, small_config, *options), victim, ANEW)
    assert not any((run_dir / name).exists() for name in made)


@pytest.mark.parametrize(("command", "options", "made"), STAGES)
def test_what_is_done_is_not_called_done_beside_a_damaged_manifest(
    run_dir, small_config, command, options, made
):
    before = file_hashes(run_dir)
    victim = flip(run_dir / "manifest" / "image_sha256.data.npy")
    refusal(call(command, run_dir, small_config, *options), victim, ANEW)
    assert {name for name, found in file_hashes(run_dir).items() if found != before[name]} == {
        "manifest/image_sha256.data.npy"
    }


def test_a_fold_is_not_predicted_of_a_damaged_manifest(run_dir, small_config):
    fold = ("--fold", "1/2")
    assert call(train_student, run_dir, small_config, *fold).exit_code == 0
    victim = flip(run_dir / "manifest" / "expression_text.data.npy")
    for command in (train_student, predict_teacher):
        refusal(call(command, run_dir, small_config, *fold), victim, ANEW)
    calibrate = refine_labels.commands["calibrate"]
    refusal(call(calibrate, run_dir, small_config), victim, ANEW)


def test_a_plan_refuses_a_damaged_manifest_as_prepare_data_does(run_dir, small_config):
    victim = flip(run_dir / "manifest" / "object_rle.data.npy")
    line = refusal(call(prepare_data, run_dir, small_config), victim, ANEW)
    common = ("--config", str(small_config), "--run-dir", str(run_dir))
    for result in (
        call(run_rounds, run_dir, small_config, "--dry-run"),
        CliRunner().invoke(inspect_shards, ["plan", *common]),
    ):
        assert result.exit_code == 1, result.output
        assert f"would refuse: {line.removeprefix('error: ')}" in result.output
        assert "done" not in result.output.split("train-student --round 0")[0]
    refusal(call(prepare_data, run_dir, small_config, "--dry-run"), victim, ANEW)


@pytest.mark.parametrize("key", ["fingerprint", "counts"])
def test_a_description_that_does_not_fit_the_columns_is_refused(run_dir, small_config, key):
    path = run_dir / "manifest" / "manifest.json"
    before = file_hashes(run_dir)
    document = json.loads(path.read_text())
    document[key] = {"fingerprint": "f" * 64, "counts": {}}[key]
    path.write_text(json.dumps(document))
    refusal(call(sam_candidates, run_dir, small_config), run_dir / "manifest", ANEW)
    assert invoke(verify, run_dir).exit_code == 1
    assert call(prepare_data, run_dir, small_config, "--force").exit_code == 0
    assert file_hashes(run_dir) == before


@pytest.mark.parametrize("name", ["../scenes/other.npy", "/absent/file.npy", "a\0b", ""])
def test_nothing_outside_the_manifest_is_hashed(run_dir, name):
    path = run_dir / "manifest" / "manifest.json"
    document = json.loads(path.read_text())
    document["files"][name] = "0" * 64
    path.write_text(json.dumps(document))
    with pytest.raises(ManifestError, match="expected names of files in"):
        load_manifest(run_dir / "manifest", verify=True)


@pytest.mark.parametrize("name", ["manifest.json", "failures.jsonl", "image_size.npy"])
@pytest.mark.parametrize("how", ["gone", "empty"])
def test_prepare_data_makes_what_is_lost_of_a_manifest_anew(run_dir, small_config, name, how):
    before = file_hashes(run_dir)
    path = run_dir / "manifest" / name
    path.unlink()
    if how == "empty":
        path.write_text("" if name != "failures.jsonl" else "{}\n")
    told = refusal(call(predict_teacher, run_dir, small_config), path, "prepare-data --force")
    assert told.count(name) == 1
    assert call(prepare_data, run_dir, small_config, "--force").exit_code == 0
    assert file_hashes(run_dir) == before


def test_a_whole_manifest_is_compared_once_a_stage(run_dir, small_config, monkeypatch):
    from pipeline import manifest

    hashed = []

    def counted(path):
        hashed.append(path.name)
        return file_sha256(path)

    monkeypatch.setattr(manifest, "file_sha256", counted)
    for command, options, made in STAGES[:4]:
        for name in made:
            shutil.rmtree(run_dir / name)
        hashed.clear()
        assert call(command, run_dir, small_config, *options).exit_code == 0
        assert hashed.count("object_rle.data.npy") == 1, command


# -- repair


def invoke(command, run_dir):
    return CliRunner().invoke(command, [str(run_dir)])


def test_repair_names_a_damaged_manifest_until_it_is_mended(run_dir, small_config):
    intact = invoke(repair, run_dir)
    assert intact.exit_code == 0
    assert "manifest" not in intact.stdout
    before = file_hashes(run_dir)
    victims = [
        flip(run_dir / "manifest" / f"{name}.npy") for name in ("image_size", "object_rle.data")
    ]
    for _ in range(2):
        found = invoke(repair, run_dir)
        assert found.exit_code == 1
        for victim in victims:
            assert f"{victim.name} damaged: {victim} is missing or damaged (sha256" in found.stdout
        assert found.stdout.count(ANEW) == 2
        assert f"{run_dir / 'candidates.zarr'}: 0 damaged shards removed\n" in found.stdout
    assert call(prepare_data, run_dir, small_config, "--force").exit_code == 0
    assert invoke(repair, run_dir).stdout == intact.stdout
    assert invoke(verify, run_dir).exit_code == 0
    assert file_hashes(run_dir) == before


@pytest.mark.parametrize(
    ("name", "force"),
    [
        ("teacher.safetensors", ()),
        ("vocab.txt", ()),
        ("student.json", ()),
        ("plan.json", ("--force",)),
    ],
)
def test_repair_names_what_makes_a_damaged_training_anew(run_dir, small_config, name, force):
    before = file_hashes(run_dir)
    student = RunPaths(run_dir).student(1)
    if name == "plan.json":
        document = json.loads((student / "student.json").read_text())["plan"]
        (student / name).write_text(json.dumps(document | {"round": 2}))
    elif name == "student.json":
        change_side(student / name)
    else:
        flip(student / name)
    verb = " ".join(("train-student --round 1", *force))
    for command in (verify, repair):
        found = invoke(command, run_dir)
        assert found.exit_code == 1
        assert f"{student}: {name} damaged: " in found.stdout
        assert f"{student}: run '{verb}', which makes it anew\n" in found.stdout
    assert call(train_student, run_dir, small_config, "--round", "1", *force).exit_code == 0
    for command in (verify, repair):
        assert invoke(command, run_dir).exit_code == 0
    assert file_hashes(run_dir) == before


def change_side(path):
    """Flip a bit of student.json that leaves it readable: the side of the network's square."""
    text = b'"side": 6'
    flip(path, path.read_bytes().rindex(text) + len(text) - 1)
    assert json.loads(path.read_text())["side"] == 74


def test_run_rounds_trains_a_damaged_student_again(run_dir, small_config):
    before = file_hashes(run_dir)
    flip(RunPaths(run_dir).student(0) / "teacher.safetensors")
    assert invoke(repair, run_dir).exit_code == 1
    assert call(run_rounds, run_dir, small_config).exit_code == 0
    assert invoke(repair, run_dir).exit_code == 0
    assert file_hashes(run_dir) == before


def test_verify_of_a_round_covers_its_student(run_dir):
    flip(run_dir / "round-1" / "student" / "student.json")
    ended = invoke(verify, run_dir / "round-1")
    assert ended.exit_code == 1
    assert f"{run_dir / 'round-1' / 'student'}" in ended.stdout


def test_repair_of_a_run_that_holds_a_manifest_alone(run_dir, tmp_path):
    alone = tmp_path / "alone"
    shutil.copytree(run_dir / "manifest", alone / "manifest")
    assert invoke(repair, alone).exit_code == 0
    flip(alone / "manifest" / "object_split.npy")
    assert invoke(repair, alone).exit_code == 1
    (tmp_path / "none").mkdir()
    assert "no store there" in invoke(repair, tmp_path / "none").output


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (predict_teacher, ("--round", "1", "--force")),
        (evaluate_student, ("--round", "0", "--split", "val")),
        (train_student, ("--round", "1", "--force")),
    ],
)
def test_a_training_whose_description_is_damaged_is_not_used(
    run_dir, small_config, command, options
):
    path = RunPaths(run_dir).student(0) / "student.json"
    change_side(path)
    refusal(
        call(command, run_dir, small_config, *options),
        path,
        "run 'train-student --round 0 --force'",
    )


# -- labelled images that cannot be read


def labelled_names(run_dir):
    manifest = load_manifest(run_dir / "manifest")
    return [manifest.image_path[int(row)] for row in manifest.labelled_images()]


def test_labelled_images_that_cannot_be_read_are_not_too_few(run_dir, small_config):
    shutil.rmtree(run_dir / "round-0" / "student")
    names = labelled_names(run_dir)
    assert len(names) == 2
    for name in names:
        flip(run_dir / "scenes" / name)
    line = refusal(call(train_student, run_dir, small_config, "--round", "0"), names[0])
    assert "expected the file that the data were prepared with" in line
    assert "and 1 more images; mend them" in line
    assert "data.labelled" not in line


def test_nothing_labelled_asks_for_more_labels(run_dir):
    from train.data import build_index

    manifest = load_manifest(run_dir / "manifest")
    held_out = np.asarray(manifest.labelled_images())
    with pytest.raises(StoreError, match=r"found none; raise data\.labelled$"):
        build_index(manifest, None, held_out)
