"""Every verb has help and an example; shared options mean the same; errors are one line."""

import re
import tomllib
from importlib import import_module
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pipeline.commands import Settings
from train.cli import job_config

ROOT = Path(__file__).parents[1]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
STAGES = ("sam-candidates", "predict-teacher", "refine-labels")


def command(name):
    module, attribute = SCRIPTS[name].split(":")
    return getattr(import_module(module), attribute)


def commands():
    for name in SCRIPTS:
        found = command(name)
        yield name, found
        if isinstance(found, click.Group):
            yield from ((f"{name} {sub}", found.commands[sub]) for sub in found.commands)


@pytest.mark.parametrize(("name", "found"), list(commands()), ids=lambda value: str(value)[:40])
def test_every_verb_explains_itself(name, found):
    result = CliRunner().invoke(found, ["-h"])
    assert result.exit_code == 0
    assert found.help
    for parameter in found.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, (name, parameter.name)


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name != "inspect-shards"])
def test_help_lists_a_verbs_own_options_first_and_each_once(name):
    listed = CliRunner().invoke(command(name), ["-h"], terminal_width=200).output.splitlines()
    headings = [line for line in listed if line.endswith(":") and not line.startswith(" ")]
    shared = ["The run:", "How much of it:", "Where and how it runs:"]
    kept = shared if name in STAGES else [part for part in shared if part in headings]
    assert [part for part in headings if part != "Commands:"] == ["Options:", *kept]
    assert listed.index("The run:") < next(
        number for number, line in enumerate(listed) if line.startswith("  --config PATH ")
    )
    for option in command(name).params:
        rows = [line for line in listed if line.startswith(f"  {option.opts[0]} ")]
        assert len(rows) == isinstance(option, click.Option), option.opts


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_verb_gives_an_example(name):
    assert f"Example: {name}" in command(name).help


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name != "inspect-shards"])
def test_a_run_is_named_the_same_way_everywhere(name):
    options = {parameter.opts[0] for parameter in command(name).params}
    assert {"--config", "--run-dir", "--set", "--dry-run"} <= options
    if name in STAGES:
        assert {"--limit", "--workers", "--cluster", "--force"} <= options


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name != "inspect-shards"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version: 1\ntrian: {}", "unknown section 'trian'"),
        ("version: 1\n%SECTION%: {wrong_key: 1}", "unknown key 'wrong_key'; known are"),
    ],
    ids=["section", "key"],
)
def test_a_config_mistake_is_one_line_and_exit_1(tmp_path, name, text, message):
    section = {
        "prepare-data": "data", "sam-candidates": "candidates", "refine-labels": "refine",
        "predict-teacher": "teacher", "evaluate-student": "evaluate", "run-rounds": "rounds",
    }.get(name, "train")  # fmt: skip
    config = tmp_path / "stages.yaml"
    required = "\ndata: {reader: scenes}" if section != "data" and "%" in text else ""
    config.write_text(text.replace("%SECTION%", section) + required)
    arguments = ["--config", str(config), "--run-dir", str(tmp_path / "run")]
    result = CliRunner().invoke(command(name), arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert str(config) in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "run" / "manifest").exists()


def test_a_stage_without_its_input_names_the_verb_to_run(tmp_path):
    for name in ("refine-labels", "predict-teacher"):
        arguments = ["--config", str(ROOT / "stages.yaml"), "--run-dir", str(tmp_path)]
        result = CliRunner().invoke(command(name), arguments)
        assert result.exit_code == 1, result.output
        assert "run prepare-data first" in result.stderr
        assert result.stderr.count("\n") == 1


def test_the_shipped_configs_are_valid(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where none of the files is that they name
    for config in [ROOT / "stages.yaml", *sorted((ROOT / "recipes").glob("*.yaml"))]:
        job = job_config(Settings(config, tmp_path / "run", ()))
        named = [*job.data.input_files().values(), *job.candidates.input_files().values()]
        arguments = ["--config", str(config), "--run-dir", str(tmp_path / "run"), "--dry-run"]
        result = CliRunner().invoke(command("run-rounds"), arguments)
        if named:
            assert result.exit_code == 1
            assert "expected the files that the config names, found none" in result.stderr
            assert all(str(path) in result.stderr for path in named)
        else:
            assert result.exit_code == 0, (config.name, result.stderr)
            assert "prepare-data:\n  to do" in result.stdout


def test_make_knows_every_verb():
    makefile = (ROOT / "Makefile").read_text()
    for name in SCRIPTS:
        assert f"$(BIN)/{name}" in makefile
    targets = re.findall(r"^([a-z-]+):.*##", makefile, flags=re.M)
    assert {"demo", "test", "help", "rounds", "inspect", "stage-data", "stage-refine"} <= set(
        targets
    )


def test_a_dry_run_of_the_data_looks_for_its_files(tmp_path):
    options = ["--config", str(ROOT / "stages.yaml"), "--run-dir", str(tmp_path / "run")]
    lost = ["--set", "data.reader=jsonl", "--set", f"data.annotations={tmp_path / 'lost.jsonl'}"]
    result = CliRunner().invoke(command("prepare-data"), [*options, *lost, "--dry-run"])
    assert result.exit_code == 1
    assert f"data.annotations: {tmp_path / 'lost.jsonl'}" in result.stderr
    here = ["--set", "data.scenes={train: 2, val: 1}", "--set", "data.labelled.ratio=1.0"]
    for word, more in (("to do", ["--dry-run"]), ("", []), ("done, 3 images", ["--dry-run"])):
        result = CliRunner().invoke(command("prepare-data"), [*options, *here, *more])
        assert result.exit_code == 0, result.output
        assert word in result.stdout
    other = CliRunner().invoke(command("prepare-data"), [*options, "--dry-run"])
    assert other.exit_code == 1
    assert "was made otherwise" in other.stderr


def test_plan_walks_all_stages_of_a_run_that_is_not_begun(tmp_path):
    options = ["--config", str(ROOT / "stages.yaml"), "--run-dir", str(tmp_path / "run")]
    plan = CliRunner().invoke(command("inspect-shards"), ["plan", *options])
    assert plan.exit_code == 0, plan.output
    assert plan.stdout.startswith("prepare-data:\n  to do")
    assert "train-student --round 1:\n  waits for " in plan.stdout
    dry = CliRunner().invoke(command("run-rounds"), [*options, "--dry-run"])
    assert dry.stdout == plan.stdout
