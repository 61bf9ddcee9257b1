"""What calibration prints can be copied: keys are the config's, and the block gives the labels."""

import hashlib
import shutil

import pytest
import yaml
from click.testing import CliRunner
from matplotlib.figure import Figure

from pipeline.config import parse_config
from pipeline.paths import RunPaths
from refine import plots
from refine.chosen import reason_against, section_text, with_best
from refine.cli import calibration_row, refine_labels
from refine.probability import ProbabilityConfig
from refine.stage import RefineConfig
from refine.strategies import ChainLink
from refine.sweep import DEFAULT_GRID, expand
from tests.refine.scene_run import FOLDS, make_scenes

CONFIG = f"version: 1\ncalibrate: {{folds: {FOLDS}}}\n"
REFINE = """\
refine:
  shard_size: 32
  chain:
    - {strategy: drop, params: {share: 0.1}}
    - {strategy: iom, weight: edge, weight_params: {radius: 4}}
    - {strategy: pwa, params: {ceiling: 1.2}}
"""


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("scenes")
    make_scenes(run_dir)
    return run_dir


@pytest.fixture
def scenes_copy(scenes, tmp_path):
    return shutil.copytree(scenes, tmp_path / "run")


def command(run_dir, text, *arguments):
    config = run_dir / "stages.yaml"
    config.write_text(text)
    words = [*arguments, "--config", str(config), "--run-dir", str(run_dir)]
    return CliRunner().invoke(refine_labels, words)


def hashes(store):
    files = sorted(path for path in store.rglob("*") if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def pasted(output):
    text = output.split("in place of the config's refine section:\n\n")[1]
    return text[: text.index("\n\n") + 1]


def test_the_printed_section_gives_the_labels_that_were_chosen(scenes_copy):
    paths = RunPaths(scenes_copy)
    labels, own = paths.labels(1), CONFIG + REFINE
    result = command(scenes_copy, own, "calibrate", "--apply")
    assert result.exit_code == 0, result.output
    section = pasted(result.stdout)
    assert yaml.safe_load(section)["refine"]["shard_size"] == 32
    assert command(scenes_copy, own).exit_code == 0
    chosen = hashes(labels)
    paths.chosen_strategy(1).unlink()
    refused = command(scenes_copy, own)  # the config as it was would give others
    assert refused.exit_code == 1
    assert "--force" in refused.stderr
    again = command(scenes_copy, CONFIG + section)
    assert again.exit_code == 0, again.output
    assert "0 done now, 3 before, of 3" in again.stdout
    shutil.rmtree(labels)
    shutil.rmtree(labels.with_suffix(".stage"))
    assert "3 done now" in command(scenes_copy, CONFIG + section).stdout
    assert hashes(labels) == chosen


def test_the_table_names_keys_as_the_config_does(scenes_copy):
    result = command(scenes_copy, CONFIG, "calibrate")
    assert result.exit_code == 0, result.output
    for key in ("min_iou", "min_label_coverage", "min_mask_coverage", "min_step"):
        assert f" {key}: 0" in result.stdout.split("the best setting")[0]
    assert not RunPaths(scenes_copy).chosen_strategy(1).exists()
    assert pasted(result.stdout).startswith("refine:\n  chain:\n  - strategy: ")
    row = {
        "strategy": "cpi",
        "probability": "own",
        "by_size": {},
        "min_gain": -0.05,
        "params": {"min_label_coverage": 0.5, "max_area_ratio": None, "max_parts": 3},
        "mean_iou": 0.5,
        "overall_iou": 0.25,
        "match_rate": 1.0,
        "helped": 3,
        "hurt": 1,
    }
    assert calibration_row(row)[2] == "min_label_coverage: 0.5\nmax_parts: 3\nmin_gain: -0.05"


def test_what_is_not_applied_says_by_which_rule(scenes_copy):
    grid = "calibrate.grid={none: {}}"
    result = command(scenes_copy, CONFIG, "calibrate", "--apply", "--set", grid)
    assert result.exit_code == 0, result.output
    assert "nothing to apply: the best setting (none, mIoU " in result.stdout
    assert "is no better than the teacher's own masks (" in result.stdout
    assert "the best setting all the same, " in result.stdout
    assert not RunPaths(scenes_copy).chosen_strategy(1).exists()


def document_with(**best):
    row = {"strategy": "best-union", "params": {}, "min_gain": None, "probability": "own"}
    row |= {"mean_iou": 0.1213, "overall_iou": 0.2} | best
    return {
        "rows": [row], "by": "mean_iou", "whole_image_mean_iou": 0.0919,
        "teacher": {"mean_iou": 0.0882, "overall_iou": 0.1},
        "probabilities": {"own": ProbabilityConfig()},
    }  # fmt: skip


def test_the_reason_names_the_numbers_that_were_compared():
    assert reason_against(document_with()) == (
        "the best setting (best-union, mIoU 12.13) is below 1.5 times marking the whole image "
        "(9.19, times 1.5 is 13.79): with so weak a teacher any large mask looks good"
    )
    assert reason_against(document_with(mean_iou=0.0882)) == (
        "the best setting (best-union, mIoU 8.82) is no better than the teacher's own masks (8.82)"
    )
    assert reason_against(document_with(mean_iou=0.138)) is None
    by_pixels = document_with(mean_iou=0.5, overall_iou=0.1) | {"by": "overall_iou"}
    assert "oIoU 10.00) is no better" in reason_against(by_pixels)


KEPT = RefineConfig(
    chain=(
        ChainLink(strategy="drop", params={"share": 0.1}, weight="zero"),
        ChainLink(strategy="iom"),
        ChainLink(strategy="pwa", params={"ceiling": 1.2}),
    ),
    shard_size=7,
)


@pytest.mark.parametrize("strategy", list(DEFAULT_GRID))
def test_a_section_parses_to_the_config_that_it_was_written_of(strategy):
    settings = expand({strategy: DEFAULT_GRID[strategy]})
    own = ProbabilityConfig(context="rivals", slope=1e-5, bias=-2.3659)
    for setting, gate in zip((settings[0], settings[-1]), (None, -0.05), strict=True):
        best = {"strategy": strategy, "params": setting.params, "min_gain": gate}
        document = document_with(**best) | {"probabilities": {"own": own}}
        config = with_best(document, KEPT)
        assert [link.strategy for link in config.chain] == ["drop", strategy, "pwa"]
        given = {"shard_size": 7, "chain": [{"strategy": "none"}]}
        section = yaml.safe_load(section_text(config, given))["refine"]
        assert parse_config(RefineConfig, section, "here") == config


def test_all_folds_that_are_missing_are_named_at_once(scenes_copy):
    shutil.rmtree(RunPaths(scenes_copy).run_dir / "calibration" / "fold-2-of-2")
    result = command(scenes_copy, CONFIG, "calibrate", "--round", "3")
    assert result.exit_code == 1
    assert "expected predictions of 2 folds, found none of 2/2; run " in result.stderr
    assert "'make stage-calibrate ROUND=3 FOLDS=2'" in result.stderr
    result = command(scenes_copy, CONFIG, "calibrate", "--set", "calibrate.folds=3")
    assert "found none of 1/3, 2/3, 3/3; run 'train-student --fold 1/3'" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_bar_that_would_squash_the_others_is_cut():
    assert plots.axis_top([241, 22, 16, 4, 0], 1) == pytest.approx(4 / 3 * 22)
    assert plots.axis_top([241, 241, 22, 16], 2) == pytest.approx(4 / 3 * 22)
    assert plots.axis_top([241, 241, 22, 16], 1) == 241
    assert plots.axis_top([300, 100, 70, 5], 2) == 300  # a tail is no reason
    assert plots.axis_top([300, 0, 0], 2) == 300
    assert plots.axis_top([0, 0], 1) == 1


def test_every_bar_says_how_many_labels_it_stands_for():
    axes = Figure().subplots()
    raw, refined = [241, 22, 0, *[0] * 7], [200, 0, 9, *[0] * 7]
    plots._bars(axes, {"raw": raw, "refined": refined}, ["C0", "C1"])
    assert [text.get_text() for text in axes.texts] == ["241, cut", "22", "200, cut", "9"]
    heights = [bar.get_height() for bar in axes.patches]
    assert max(heights) == pytest.approx(4 / 3 * 22)
    assert sorted(heights)[-3:-1] == pytest.approx([22, 4 / 3 * 22])
    upright = Figure().subplots()
    plots._bars(upright, {"raw": [20_000, *[0] * 9], "refined": [15_000, *[0] * 9]}, ["C0", "C1"])
    assert {text.get_rotation() for text in upright.texts} == {90}
    assert {text.get_text() for text in upright.texts} == {"20000", "15000"}
