"""What a training or an evaluation left out is counted, listed, and held against the budget."""

import shutil

import pytest
from click.testing import CliRunner

from pipeline.budget import parse_budget, refuse_too_many
from pipeline.cli import inspect_shards
from pipeline.commands import Settings
from pipeline.errors import StoreError
from pipeline.manifest import load_manifest
from pipeline.records import FailedItem
from pipeline.status import failures_of, run_status
from train.cli import evaluate_student, job_config, run_rounds, train_student
from train.job_plan import plan_job

TRAIN = "train-student --round 0"
EVALUATE = "evaluate-student --round 0 --split val"


def call(command, config, run_dir, *options):
    common = ["--config", str(config), "--run-dir", str(run_dir)]
    return CliRunner().invoke(command, [*common, *map(str, options)])


def inspect(*arguments):
    return CliRunner().invoke(inspect_shards, [str(part) for part in arguments])


def by_verb(run_dir):
    return {status.verb: status for status in run_status(run_dir)}


def damaged_images(run_dir):
    """Give the rows of the labelled image, and of the val image of some sentences, to damage."""
    manifest = load_manifest(run_dir / "manifest")
    labelled = int(manifest.labelled_images()[0])
    images = manifest.expression_image[manifest.expressions_of("val")].tolist()
    return labelled, next(image for image in images if images.count(image) >= 2)


@pytest.fixture(scope="module")
def trained(finished_run, small_config, tmp_path_factory):
    """A run whose round 0 was trained and evaluated while two images were truncated."""
    run_dir = tmp_path_factory.mktemp("damaged") / "run"
    shutil.copytree(finished_run[0], run_dir, ignore=shutil.ignore_patterns("round-*"))
    manifest = load_manifest(run_dir / "manifest")
    for row in damaged_images(run_dir):
        path = manifest.image_file(row)
        path.write_bytes(path.read_bytes()[:-200])
    verbs = (train_student, evaluate_student)
    return run_dir, [call(command, small_config, run_dir, "--round", 0) for command in verbs]


@pytest.fixture
def run_dir(trained, tmp_path):
    """A copy of it, to be changed."""
    return shutil.copytree(trained[0], tmp_path / "run")


def mend(run_dir, finished_run):
    """Put both images back."""
    for row in damaged_images(run_dir):
        whole = load_manifest(finished_run[0] / "manifest").image_file(row)
        load_manifest(run_dir / "manifest").image_file(row).write_bytes(whole.read_bytes())


def test_what_the_verbs_name_is_listed_and_counted(trained):
    run_dir, results = trained
    manifest = load_manifest(run_dir / "manifest")
    labelled, val = (manifest.image_path[row] for row in damaged_images(run_dir))
    told = [line.removeprefix("failed: ") for result in results
            for line in result.stderr.splitlines() if line.startswith("failed: ")]  # fmt: skip
    assert [result.exit_code for result in results] == [3, 3]
    found = failures_of(run_dir)
    assert [f"{failure.item}: {failure.reason}" for failure in found] == told
    assert [failure.stage for failure in found] == [TRAIN] + [EVALUATE] * (len(found) - 1)
    assert found[0].item == labelled
    assert len(found) >= 3
    assert all(failure.item.startswith(f"{val}: ") for failure in found[1:])
    listed = inspect("failures", run_dir)
    assert f"{len(found)} failed items" in listed.stdout
    assert labelled in listed.stdout
    status = by_verb(run_dir)
    assert {name: stage.failed_items for name, stage in status.items() if stage.failed_items} == {
        TRAIN: 1, EVALUATE: len(found) - 1,
    }  # fmt: skip
    assert {stage.state for stage in status.values()} == {"done"}
    sentences = (manifest.expression_image[manifest.expressions_of("val")] >= 0).sum()
    assert status[EVALUATE].items == sentences


def test_a_round_alone_lists_its_own(trained, finished_run):
    assert failures_of(trained[0] / "round-0") == failures_of(trained[0])
    assert failures_of(finished_run[0] / "round-0") == []


def test_a_list_that_cannot_be_read_is_no_empty_list(run_dir):
    path = run_dir / "round-0" / "student" / "plan.json"
    path.write_text('{"left_out": 7}')
    assert by_verb(run_dir)[TRAIN].state == "damaged"
    refused = inspect("failures", run_dir)
    assert refused.exit_code == 1
    assert "expected left_out as a list of images, found 7" in refused.stderr


def test_a_mended_image_is_told_alike_by_all_and_trained_on_by_force(
    run_dir, finished_run, small_config
):
    mend(run_dir, finished_run)
    name = load_manifest(run_dir / "manifest").image_path[damaged_images(run_dir)[0]]
    said = f"1 image was left out that can be read now ({name})"
    steps = {step.verb: step for step in plan_job(
        job_config(Settings(small_config, run_dir, ())), run_dir)}  # fmt: skip
    assert steps[TRAIN].state == "refuses"
    dry = call(train_student, small_config, run_dir, "--round", 0, "--dry-run")
    real = call(train_student, small_config, run_dir, "--round", 0)
    job = call(run_rounds, small_config, run_dir)
    assert [result.exit_code for result in (dry, real, job)] == [1, 1, 1]
    for text in (steps[TRAIN].note, dry.stdout, real.stderr, job.stderr):
        assert f"{said}; add --force to train anew" in text
    status = by_verb(run_dir)[TRAIN]
    assert status.state == "stale"
    assert status.reasons == (f"{said}; '{TRAIN} --force' trains anew",)
    assert "it can be read now" in failures_of(run_dir)[0].reason

    assert call(train_student, small_config, run_dir, "--round", 0, "--force").exit_code == 0
    assert by_verb(run_dir)[EVALUATE].state == "to do"
    assert call(evaluate_student, small_config, run_dir, "--round", 0).exit_code == 0
    assert failures_of(run_dir) == []
    assert {stage.state for stage in run_status(run_dir)} == {"done"}


def test_the_error_budget_counts_what_training_and_evaluation_left_out(run_dir, small_config):
    for budget, verb in (("0", TRAIN), ("49%", TRAIN), ("1", EVALUATE), ("50%", None)):
        result = call(run_rounds, small_config, run_dir, "--max-failures", budget,
                      "--set", "rounds.rounds=1", "--set", "train.student.steps=1")  # fmt: skip
        assert result.exit_code == (3 if verb is None else 1), result.output
        if verb is not None:
            (line,) = (line for line in result.stderr.splitlines() if line.startswith("error: "))
            assert f"'{verb}': " in line
            assert f"more than --max-failures {budget} allows" in line


@pytest.mark.parametrize(("budget", "num_failed"), [("2", 2), ("50%", 5), ("100%", 10)])
def test_the_budget_by_hand(budget, num_failed):
    failures = [FailedItem(item=f"{n}.png", reason="empty") for n in range(num_failed + 1)]
    allowed = parse_budget(budget)
    refuse_too_many(failures[:-1], 10, allowed, "run: 'x'")
    refuse_too_many(failures, 10, None, "run: 'x'")
    with pytest.raises(StoreError, match=rf"run: 'x': {num_failed + 1} items .*0\.png: empty"):
        refuse_too_many(failures, 10, allowed, "run: 'x'")
