"""What the data lost is held against --max-failures: by prepare-data, and in the whole job."""

import pytest
from click.testing import CliRunner

from pipeline.budget import parse_budget
from pipeline.cli import prepare_data
from pipeline.manifest import load_manifest
from pipeline.prepare_summary import failures_of_manifest
from tests.pipeline.small_data import jsonl_config, line, write_image
from train.cli import run_rounds

KEPT, LOST = 4 + 4 + 4, 3
"""Images, objects and expressions that can be used; lines whose photo is not there."""


@pytest.fixture
def options(tmp_path, small_config):
    """The small job on four photos, and lines of three more that are not there."""
    lines = []
    for number in range(4):
        write_image(tmp_path / f"{number}.png", seed=number)
        lines.append(line(f"{number}.png", number, split="val" if number == 3 else "train"))
    lines += [line(f"gone-{number}.png", number + 4) for number in range(LOST)]
    data = jsonl_config(tmp_path, lines)
    return ["--config", str(small_config), "--run-dir", str(tmp_path / "run"),
            "--set", "data.reader=jsonl", "--set", f"data.annotations={data.annotations}",
            "--set", "data.labelled.ratio=1.0"]  # fmt: skip


def call(command, *options):
    return CliRunner().invoke(command, [*options])


@pytest.mark.parametrize(("budget", "code"), [("2", 1), ("3", 3), ("19%", 1), ("20%", 3)])
def test_prepare_data_writes_the_manifest_and_tells_that_it_lost_too_much(
    options, tmp_path, budget, code
):
    assert parse_budget("20%").allowed(KEPT + LOST) == LOST
    for _ in range(2):  # where the manifest is there already, too
        ended = call(prepare_data, *options, "--max-failures", budget)
        assert ended.exit_code == code
        line = f"'prepare-data': {LOST} items failed, more than --max-failures {budget} allows"
        assert (line in ended.stderr) == (code == 1)
        assert ended.stderr.count("failed: ") == LOST
        assert load_manifest(tmp_path / "run" / "manifest").num_images == 4
    assert len(failures_of_manifest(tmp_path / "run")) == LOST


def test_the_job_stops_where_its_data_lost_too_much(options, tmp_path):
    ended = call(run_rounds, *options, "--max-failures", "2")
    assert ended.exit_code == 1
    assert f"'prepare-data': {LOST} items failed" in ended.stderr
    assert not (tmp_path / "run" / "candidates.zarr").exists()


def test_a_budget_that_is_none_is_an_unusable_argument(options):
    ended = call(prepare_data, *options, "--max-failures", "many")
    assert ended.exit_code == 2
    assert "--max-failures" in ended.stderr
    assert "expected a number of items or 0% to 100%, found 'many'" in ended.stderr
