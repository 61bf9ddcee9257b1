"""Status says what is done, missing, stale or damaged, and why; inputs may grow."""

import dataclasses
import json
import shutil

import pytest
from click.testing import CliRunner
from PIL import Image

from pipeline.audit import repair, verify
from pipeline.candidate_config import CandidatesConfig
from pipeline.candidate_stage import plan_candidates, sam_candidates
from pipeline.cli import inspect_shards
from pipeline.cli import sam_candidates as verb
from pipeline.commands import EXIT_ERROR, print_plan
from pipeline.current_inputs import plan_differences
from pipeline.engines import Engine
from pipeline.errors import StoreError
from pipeline.json_files import read_checked, write_checked
from pipeline.locks import Part
from pipeline.paths import RunPaths
from pipeline.preparation import growth_of
from pipeline.prepare import prepare_data
from pipeline.records import done_path, note_retry, records_folder
from pipeline.status import failures_of, run_status
from tests.pipeline.null_stages import digest
from tests.pipeline.small_data import jsonl_config, line, write_image

FEW = CandidatesConfig(shard_size=2, model="region_merging")


def make_run(folder, names, run="run"):
    """Prepare a run of random images; one of them is no longer an image afterwards."""
    folder.mkdir(exist_ok=True)
    lines = []
    for number, name in enumerate(names):
        write_image(folder / name, (40, 60), seed=number)
        lines.append(line(name, number))
    write_image(folder / "val.png", (40, 60))
    lines.append(line("val.png", 99, split="val"))
    prepare_data(jsonl_config(folder, lines), folder / run, force=True)
    return folder / run


def invoke(*arguments):
    return CliRunner().invoke(inspect_shards, [str(part) for part in arguments])


def states(run_dir):
    return {status.verb: status.state for status in run_status(run_dir)}


def candidates_status(run_dir):
    """Give the status of the candidates; the manifest's stands before it."""
    manifest, candidates = run_status(run_dir)
    assert (manifest.verb, manifest.state, manifest.unit) == ("prepare-data", "done", "images")
    return candidates


NAMES = [f"{number}.png" for number in range(7)]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_added_images_keep_the_shards_of_the_others(tmp_path, count):
    run_dir = make_run(tmp_path / "a", NAMES[:count])
    sam_candidates(FEW, run_dir)
    make_run(tmp_path / "a", NAMES)
    status = candidates_status(run_dir)
    assert status.state == "to do"
    assert f"images were added after the {count} of now" in status.reasons[0]
    summary = sam_candidates(FEW, run_dir)
    assert summary.complete
    assert summary.shards_done_before == count // 2
    fresh = make_run(tmp_path / "b", NAMES)
    sam_candidates(FEW, fresh)
    assert digest(RunPaths(run_dir).candidates) == digest(RunPaths(fresh).candidates)
    assert states(run_dir) == {"prepare-data": "done", "sam-candidates": "done"}


def test_growth_that_was_killed_goes_on(tmp_path, monkeypatch):
    run_dir = make_run(tmp_path / "a", NAMES[:4])
    sam_candidates(FEW, run_dir)
    make_run(tmp_path / "a", NAMES)
    monkeypatch.setattr("pipeline.growth.restore_metadata", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sam_candidates(FEW, run_dir)
    monkeypatch.undo()
    # Whoever looks in between finds sound shards, and deletes none.
    assert candidates_status(run_dir).damaged == 0
    assert {state.state for state in verify(RunPaths(run_dir).candidates)} == {"done"}
    assert repair(RunPaths(run_dir).candidates) == []
    assert sam_candidates(FEW, run_dir).shards_done_before == 2
    assert states(run_dir) == {"prepare-data": "done", "sam-candidates": "done"}


@pytest.mark.parametrize(
    "names", [["x.png", *NAMES[:6]], NAMES[:3], [*NAMES[:3], "x.png", *NAMES[4:]]]
)
def test_images_in_between_exchanged_or_taken_away_are_refused(tmp_path, names):
    run_dir = make_run(tmp_path / "a", NAMES[:4])
    sam_candidates(FEW, run_dir)
    make_run(tmp_path / "a", names)
    with pytest.raises(StoreError, match=r"inputs.images: .*--force"):
        sam_candidates(FEW, run_dir)
    status = candidates_status(run_dir)
    assert status.state == "stale"
    assert status.reasons == ("inputs.images: manifest has other training images than then",)
    result = invoke("status", run_dir)
    assert result.exit_code == 1
    assert "stale" in result.stdout


def test_what_changes_no_result_is_not_refused(tmp_path):
    run_dir = make_run(tmp_path / "a", NAMES[:4])
    sam_candidates(FEW, run_dir)
    first = plan_candidates(FEW, run_dir).fingerprint
    other = CandidatesConfig(shard_size=2, model="region_merging", device="cpu")
    assert plan_candidates(other, run_dir).fingerprint == first
    assert sam_candidates(other, run_dir).shards_done_now == 0


def test_dry_run_says_that_a_store_grows(tmp_path):
    run_dir = make_run(tmp_path / "a", NAMES[:4])
    sam_candidates(FEW, run_dir)
    make_run(tmp_path / "a", NAMES)
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    config = tmp_path / "stages.yaml"
    config.write_text(
        "version: 1\ndata: {reader: scenes}\ncandidates: {shard_size: 2, model: region_merging}\n"
    )
    result = CliRunner().invoke(
        verb, ["--config", str(config), "--run-dir", str(run_dir), "--dry-run"]
    )
    assert "7 images in 4 shards of 2; 2 to do" in result.stdout
    assert "grows from 4 images; 2 whole shards are kept" in result.stdout
    assert before == {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}


@pytest.mark.parametrize(("index", "todo"), [(0, 2), (1, 1)])
def test_dry_run_counts_the_shards_of_its_part(tmp_path, capsys, index, todo):
    plan = plan_candidates(FEW, make_run(tmp_path / "a", NAMES[:5]))
    assert print_plan(plan, None, "sam-candidates", Engine(part=Part(index, 2))) == 0
    whole = capsys.readouterr().out
    assert f"5 images in 3 shards of 2; {todo} to do in this part, of 3 ->" in whole
    assert print_plan(plan, 2, "sam-candidates", Engine(part=Part(index, 2))) == 0
    assert f"; {1 - index} to do in this part, of 1 ->" in capsys.readouterr().out
    assert print_plan(plan, None, "sam-candidates", Engine()) == 0
    assert "3 shards of 2; 3 to do ->" in capsys.readouterr().out


@pytest.mark.parametrize("changed", [{}, {"max_candidates": 30}])
def test_dry_run_with_force_counts_what_force_makes_anew(tmp_path, capsys, changed):
    run_dir = make_run(tmp_path / "a", NAMES[:5])
    sam_candidates(FEW, run_dir)
    plan = plan_candidates(dataclasses.replace(FEW, **changed), run_dir)
    assert print_plan(plan, None, "sam-candidates", Engine(), force=True) == 0
    assert "3 shards of 2; 3 to do ->" in capsys.readouterr().out
    assert print_plan(plan, 3, "sam-candidates", Engine(), force=True) == 0
    assert "3 shards of 2; 2 to do ->" in capsys.readouterr().out
    part = Engine(part=Part(0, 2))
    assert print_plan(plan, None, "sam-candidates", part, force=True) == EXIT_ERROR
    found = capsys.readouterr().out
    assert "would refuse: " in found
    assert "--force would delete what the other parts do" in found


def test_dry_run_counts_a_grown_stores_shards_as_the_stage_does(tmp_path):
    run_dir = make_run(tmp_path / "a", NAMES[:5])
    sam_candidates(FEW, run_dir)
    plan_of_then = plan_candidates(FEW, run_dir)
    done_path(plan_of_then.store, 1).unlink()
    make_run(tmp_path / "a", NAMES)
    plan = plan_candidates(FEW, run_dir)
    growth = growth_of(plan)
    assert (growth.items, growth.kept) == (5, (0,))  # 1 is not done, 2 was not full
    (plan.store / "area" / "c" / "0" / "0").write_bytes(b"")
    assert growth_of(plan).kept == ()
    assert sam_candidates(FEW, run_dir).shards_done_before == 0
    assert growth_of(plan) is None


def test_failed_items_are_a_table_and_are_tried_again(tmp_path):
    run_dir = make_run(tmp_path / "a", NAMES[:4])
    (tmp_path / "a" / "1.png").write_bytes(b"no longer an image")
    sam_candidates(FEW, run_dir)
    for attempts in (1, 2):
        (failure,) = failures_of(run_dir)
        assert (failure.item, failure.stage, failure.attempts) == ("1.png", "candidates", attempts)
        result = invoke("failures", run_dir)
        assert "1.png" in result.stdout
        assert "1 failed items" in result.stdout
        status = candidates_status(run_dir)
        assert (status.state, status.failed_items) == ("done", 1)
        result = invoke("retry-failed", run_dir)
        assert "1 shards with failed items, 0 damaged; run 'sam-candidates'" in result.stdout
        assert states(run_dir)["sam-candidates"] == "to do"
        sam_candidates(FEW, run_dir)


def damaged_data(folder, num_bad):
    """Prepare one good image and lines of a broken kind; nothing else is run."""
    write_image(folder / "good.png", (40, 60))
    bad = [line(f"gone-{number}.png", number) for number in range(num_bad)]
    config = jsonl_config(folder, [line("good.png", 99), *bad])
    prepare_data(config, folder / "run")
    return folder / "run"


def test_a_run_of_a_manifest_alone_has_a_status_and_failures(tmp_path):
    run_dir = damaged_data(tmp_path, 2)
    (status,) = run_status(run_dir)
    assert (status.verb, status.state, status.items, status.failed_items) == (
        "prepare-data", "done", 1, 2,
    )  # fmt: skip
    result = invoke("status", run_dir)
    assert result.exit_code == 0
    assert "prepare-data" in result.stdout
    first, second = failures_of(run_dir)
    assert first.item == "data.jsonl: line 2 gone-0.png"
    assert (first.stage, first.attempts) == ("prepare-data", 1)
    assert "gone-1.png" in second.reason
    assert "2 failed items" in invoke("failures", run_dir).stdout
    with pytest.raises(StoreError, match="no store there"):
        failures_of(tmp_path)


def test_the_summary_begins_with_what_the_manifest_holds(tmp_path):
    run_dir = damaged_data(tmp_path, 2)
    alone = invoke("summary", run_dir)
    assert alone.exit_code == 0
    assert f"{run_dir / 'manifest'}\n1 images, 1 objects, 1 expressions" in alone.stdout
    assert "2 left out, 0 converted" in alone.stdout
    sam_candidates(FEW, run_dir)
    both = invoke("summary", run_dir)
    assert both.stdout.startswith(alone.stdout)
    assert str(RunPaths(run_dir).candidates) in both.stdout
    (run_dir / "manifest" / "manifest.json").write_text("{")
    assert str(RunPaths(run_dir).candidates) in invoke("summary", run_dir).stdout


def test_failures_of_the_manifest_stand_before_those_of_the_stores(tmp_path):
    run_dir = damaged_data(tmp_path, 1)
    (tmp_path / "good.png").write_bytes(b"no longer an image")
    sam_candidates(FEW, run_dir)
    assert [failure.stage for failure in failures_of(run_dir)] == ["prepare-data", "candidates"]
    (only,) = failures_of(RunPaths(run_dir).candidates)
    assert only.item == "good.png"


def test_what_was_converted_has_not_failed(tmp_path):
    Image.new("L", (20, 12), 90).save(tmp_path / "grey.png")
    prepare_data(jsonl_config(tmp_path, [line("grey.png", 1)]), tmp_path / "run")
    assert failures_of(tmp_path / "run") == []


@pytest.mark.parametrize("text", ["{", '{"failed": "many"}'])
def test_a_damaged_manifest_is_damaged(tmp_path, text):
    run_dir = damaged_data(tmp_path, 1)
    (run_dir / "manifest" / "manifest.json").write_text(text)
    (status,) = run_status(run_dir)
    assert status.state == "damaged"
    assert status.reasons
    assert invoke("status", run_dir).exit_code == 1


def test_the_list_of_failures_says_where_the_rest_is(tmp_path):
    names = [f"{number}.png" for number in range(22)]
    run_dir = make_run(tmp_path, names)
    for name in names:
        (tmp_path / name).write_bytes(b"no longer an image")
    config = tmp_path / "stages.yaml"
    config.write_text("version: 1\ncandidates: {model: region_merging}\n")
    result = CliRunner().invoke(verb, ["--config", str(config), "--run-dir", str(run_dir)])
    assert result.exit_code == 3
    assert result.stderr.count("failed: ") == 20
    assert f"and 2 more; 'inspect-shards failures {run_dir}' lists all" in result.stderr
    assert "22 failed items" in invoke("failures", run_dir).stdout


@pytest.mark.parametrize("name", ["status", "summary", "verify", "failures"])
def test_the_folder_that_one_is_in_is_a_run(tmp_path, monkeypatch, name):
    run_dir = make_run(tmp_path / "a", NAMES[:2])
    sam_candidates(FEW, run_dir)
    monkeypatch.chdir(run_dir)
    here = invoke(name, ".")
    assert (here.exit_code, here.stderr) == (0, "")
    assert here.stdout == invoke(name, run_dir).stdout
    monkeypatch.chdir(run_dir / "candidates.zarr")
    assert invoke(name, "..").stdout == here.stdout


def test_a_store_has_no_status_of_its_own(tmp_path):
    run_dir = make_run(tmp_path / "a", NAMES[:1])
    sam_candidates(FEW, run_dir)
    with pytest.raises(StoreError, match="expected a run directory, found a store"):
        run_status(RunPaths(run_dir).candidates)


def test_damage_is_told_from_what_is_missing(tmp_path):
    run_dir = make_run(tmp_path / "a", NAMES)
    sam_candidates(FEW, run_dir)
    store = RunPaths(run_dir).candidates
    done_path(store, 0).unlink()
    done_path(store, 1).write_text("{")
    (store / "area" / "c" / "2" / "0").write_bytes(b"")
    status = candidates_status(run_dir)
    assert (status.done, status.missing, status.damaged) == (1, 1, 2)
    assert status.reasons == (
        "shard 1: its done record is damaged",
        "shard 2: a file is missing or of another length",
    )
    assert invoke("status", run_dir).exit_code == 1
    (records_folder(store) / "plan.json").write_text("{")
    status = candidates_status(run_dir)
    assert (status.state, status.shards) == ("damaged", None)
    invoke("repair", run_dir)
    assert sam_candidates(FEW, run_dir).shards_done_now == 3


def test_a_finished_run_is_done_and_a_changed_student_makes_its_heirs_stale(finished_run, tmp_path):
    found = run_status(finished_run[0])
    assert {status.state for status in found} == {"done"}
    assert [status.verb for status in found] == [
        "prepare-data", "sam-candidates", "train-student --round 0",
        "evaluate-student --round 0 --split val", "predict-teacher --round 1",
        "refine-labels --round 1", "train-student --round 1",
        "evaluate-student --round 1 --split val", "predict-teacher --round 2",
        "refine-labels --round 2", "train-student --round 2",
        "evaluate-student --round 2 --split val",
    ]  # fmt: skip
    run_dir = tmp_path / "copy"
    shutil.copytree(finished_run[0], run_dir)
    path = run_dir / "round-0" / "student" / "student.json"
    write_checked(path, read_checked(path) | {"fingerprint": "f" * 64})
    by_verb = {status.verb: status for status in run_status(run_dir)}
    teacher = by_verb.pop("predict-teacher --round 1")
    assert teacher.reasons == ("inputs.student: round-0/student was made anew since",)
    assert by_verb["sam-candidates"].state == by_verb["train-student --round 0"].state == "done"
    assert by_verb["refine-labels --round 1"].reasons == ("round-1/teacher is stale",)
    assert by_verb["train-student --round 2"].state == "stale"
    evaluation = by_verb["evaluate-student --round 1 --split val"]
    assert (evaluation.state, evaluation.reasons) == ("stale", ("round-1/student is stale",))


def test_an_evaluation_of_other_weights_is_to_do(finished_run, tmp_path):
    run_dir = shutil.copytree(finished_run[0], tmp_path / "copy")
    path = run_dir / "round-2" / "metrics.json"
    document = json.loads(path.read_text())
    document["val"]["inputs"]["weights"] = "f" * 64
    path.write_text(json.dumps(document))
    *others, evaluation = run_status(run_dir)
    assert {status.state for status in others} == {"done"}
    assert evaluation.state == "to do"
    assert evaluation.reasons == (
        "inputs.weights: round-2/student was made anew since; 'evaluate-student --round 2 --split "
        "val' measures again",
    )


@pytest.mark.parametrize(
    "text",
    ["{", "[1]", '{"val": 5}', '{"val": {"sentences": 1}}',
     '{"val": {"sentences": 1, "failed": [5], "inputs": {}}}'],
)  # fmt: skip
def test_damaged_results_are_damaged_and_no_failures_are_passed_over(finished_run, tmp_path, text):
    run_dir = shutil.copytree(finished_run[0], tmp_path / "copy")
    path = run_dir / "round-2" / "metrics.json"
    path.write_text(text)
    *others, evaluation = run_status(run_dir)
    assert {status.state for status in others} == {"done"}
    assert (evaluation.verb, evaluation.state) == ("evaluate-student --round 2", "damaged")
    assert str(path) in evaluation.reasons[0]
    result = invoke("failures", run_dir)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {path}: damaged")


@pytest.mark.parametrize("part", ["round-1", "round-1/student", "scenes"])
def test_a_folder_inside_a_run_has_no_status_of_its_own(finished_run, part):
    run_dir = finished_run[0]
    result = invoke("status", run_dir / part)
    assert result.exit_code == 1
    assert result.stderr == (
        f"error: {run_dir / part}: expected a run directory, found a folder inside one; give the "
        f"folder that holds the manifest, {run_dir}\n"
    )


def test_a_round_that_was_taken_out_of_its_run_has_no_status(finished_run, tmp_path):
    shutil.copytree(finished_run[0] / "round-1", tmp_path / "round-1")
    with pytest.raises(StoreError, match=r"inside one; give the folder that holds the manifest$"):
        run_status(tmp_path / "round-1")


def test_inputs_are_told_in_words(finished_run, tmp_path):
    run_dir = shutil.copytree(finished_run[0], tmp_path / "copy")
    paths = RunPaths(run_dir)
    note_retry(paths.candidates)
    plan_path = records_folder(paths.teacher(1)) / "plan.json"
    plan = read_checked(plan_path)
    write_checked(plan_path, {**plan, "fingerprint": "f" * 64})
    shutil.rmtree(records_folder(paths.labels(1)))
    found = {stage.verb: stage.reasons for stage in run_status(run_dir)}
    assert found["refine-labels --round 2"] == (
        "inputs.candidates: failed items of candidates.zarr were tried again",
    )
    assert found["train-student --round 1"][0] == (
        "inputs.labels: round-1/labels.zarr is not there, or damaged"
    )
    shutil.copytree(
        records_folder(RunPaths(finished_run[0]).labels(1)), records_folder(paths.labels(1))
    )
    labels = {stage.verb: stage.reasons for stage in run_status(run_dir)}["refine-labels --round 1"]
    assert labels == (
        "inputs.candidates: failed items of candidates.zarr were tried again",
        "inputs.teacher: round-1/teacher.zarr was made anew since",
    )


def test_settings_are_told_by_value_and_inputs_in_words(finished_run):
    labels = RunPaths(finished_run[0]).labels(1)
    old = {"canvas": 1, "inputs": {"candidates": "e" * 64, "images": "a"}, "limit": None}
    new = {"canvas": 2, "inputs": {"candidates": "f" * 64, "images": "a"}, "limit": None}
    assert plan_differences(labels, old, new) == [
        "canvas: 1, now 2",
        "inputs.candidates: candidates.zarr was made anew since",
    ]
    assert plan_differences(labels, old, old) == []
    assert plan_differences(labels, old, {**old, "inputs": {**old["inputs"], "init_0": "b"}}) == [
        'inputs.init_0: null, now "b"'
    ]
    assert plan_differences(labels, {"inputs": 5}, {"inputs": 6}) == ["inputs: 5, now 6"]


def test_plan_asks_every_stage_and_shows_the_difference(finished_run, small_config):
    arguments = ["--config", small_config, "--run-dir", finished_run[0]]
    result = invoke("plan", *arguments)
    assert result.exit_code == 0, result.output
    for name in ("sam-candidates", "predict-teacher --round 2", "train-student --round 0"):
        assert f"{name}:\n" in result.stdout
    assert "0 to do" in result.stdout
    changed = invoke("plan", *arguments, "--set", "candidates.canvas=128")
    assert changed.exit_code == 1
    assert "would refuse" in changed.stdout
    assert "canvas: 256, now 128" in changed.stdout


def test_plan_takes_the_run_as_the_others_do(finished_run, small_config, tmp_path):
    run_dir, config = finished_run[0], ("--config", small_config)
    named = invoke("plan", run_dir, *config)
    assert named.exit_code == 0, named.output
    assert named.stdout == invoke("plan", "--run-dir", run_dir, *config).stdout
    assert f"{run_dir}: 12 done, 0 to do\n" in named.stdout
    assert invoke("plan", run_dir, "--run-dir", run_dir, *config).stdout == named.stdout
    both = invoke("plan", run_dir, "--run-dir", tmp_path, *config)
    assert both.exit_code == 2
    assert f"expected one run, found RUN {run_dir} and --run-dir {tmp_path}" in both.stderr


def test_who_holds_the_run_is_named(tmp_path):
    from pipeline.locks import run_lock

    run_dir = make_run(tmp_path / "a", NAMES[:1])
    sam_candidates(FEW, run_dir)
    with run_lock(run_dir):
        assert "in use by pid" in invoke("status", run_dir).stdout
    assert "in use by" not in invoke("status", run_dir).stdout
