"""When rounds end, which is best, and what is said of a gain."""

import json
import shutil

import pytest
from click.testing import CliRunner

from pipeline.commands import Settings
from train.cli import job_config
from train.cli import run_rounds as run_rounds_verb
from train.config import EvaluateConfig, RoundsConfig, StopConfig
from train.gains import best_round, gain_line, reason_to_stop
from train.rounds import run_rounds, summary_rows

CONFIG = EvaluateConfig()


def rows_of(*scores):
    return [
        {
            "round": number,
            "metrics": {}
            if score is None
            else {"val": {"square": {"mean_iou": score, "overall_iou": 1 - score}}},
        }
        for number, score in enumerate(scores)
    ]


@pytest.mark.parametrize(
    ("scores", "stop", "best", "stops"),
    [
        ((0.2, 0.3, 0.4), StopConfig(), 2, False),
        ((0.2, 0.3, 0.3), StopConfig(), 1, True),  # equal is no gain
        ((0.2, 0.1), StopConfig(), 0, True),
        ((0.2, 0.3, 0.29), StopConfig(patience=2), 1, False),
        ((0.2, 0.3, 0.29, 0.3), StopConfig(patience=2), 1, True),
        ((0.2, 0.3, 0.29, 0.31), StopConfig(patience=2), 3, False),
        ((0.2, 0.3, 0.305), StopConfig(min_gain=0.01), 1, True),
        ((0.2, 0.3, 0.311), StopConfig(min_gain=0.01), 2, False),
        ((0.5, 0.4, 0.6), StopConfig(metric="oIoU"), 1, True),
        ((0.2,), StopConfig(), 0, False),
    ],
)
def test_the_rule_by_hand(scores, stop, best, stops):
    rows = rows_of(*scores)
    assert best_round(rows, stop, CONFIG) == best
    assert (reason_to_stop(rows, stop, CONFIG) is not None) == stops


def test_slow_gains_below_the_limit_add_up():
    """Each round gains less than the limit on the one before, yet the third beats the best."""
    rows = rows_of(0.30, 0.305, 0.312)
    assert best_round(rows, StopConfig(min_gain=0.01, patience=5), CONFIG) == 2


def test_without_a_rule_or_a_split_nothing_stops():
    assert reason_to_stop(rows_of(0.3, 0.1, 0.1), None, CONFIG) is None
    assert reason_to_stop(rows_of(None, None, None), StopConfig(), CONFIG) is None
    assert best_round(rows_of(None, None), StopConfig(), CONFIG) == 1


def test_the_reason_is_one_line_with_both_scores():
    reason = reason_to_stop(rows_of(0.2, 0.311, 0.302), StopConfig(min_gain=0.005), CONFIG)
    assert reason == (
        "stopped after round 2: mIoU on val 30.20, round 1 is best with 31.10; "
        "1 in a row did not beat it by more than 0.5 points"
    )


def test_a_gain_says_whether_it_is_more_than_chance():
    ends = {"gain": 0.0351, "low": 0.012, "high": 0.058}
    gain = {"split": "val", "over": 0, "sentences": 99, "mIoU": ends}
    assert gain_line(1, gain) == (
        "round 1: mIoU on val +3.51 over round 0 (95 %: +1.20 to +5.80), "
        "outside what other images would change"
    )
    within = {**gain, "mIoU": {"gain": 0.01, "low": -0.012, "high": 0.03}}
    assert gain_line(1, within).endswith("within what other images would change")
    loss = {**gain, "mIoU": {"gain": -0.03, "low": -0.05, "high": -0.01}}
    assert "-3.00 over round 0" in gain_line(1, loss)
    assert "outside" in gain_line(1, loss)
    assert gain_line(2, None) == "round 2: nothing to compare with round 1"


@pytest.mark.parametrize(
    "values", [{"patience": 0}, {"min_gain": -0.1}, {"min_gain": 1.0}], ids=str
)
def test_rules_without_sense_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        StopConfig(**values)
    assert RoundsConfig().stop is None


@pytest.fixture
def copy(finished_run, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(finished_run[0], run_dir)
    return run_dir


def test_a_job_stops_when_a_round_no_longer_helps(copy, small_config):
    """No round gains 90 points: the first that was asked for more is the last."""
    shutil.rmtree(copy / "round-2")
    override = "rounds.stop={min_gain: 0.9}"
    said = []
    job = job_config(Settings(small_config, copy, (override,)))
    summary = run_rounds(job, copy, say=said.append)
    assert [row["round"] for row in summary.rows] == [0, 1]
    assert summary.best == 0
    assert [row.get("best") for row in summary.rows] == [True, None]
    assert not (copy / "round-2").exists()
    assert sum(line.startswith("stopped after round 1: mIoU on val") for line in said) == 1
    assert summary.sheet == copy / "round-1" / "sheet.png"
    again = run_rounds(job, copy, say=said.append)
    assert again.rows == summary.rows
    assert json.loads((copy / "summary.json").read_text()) == summary.rows


def test_every_round_says_what_it_gained(copy, small_config):
    said = []
    job = job_config(Settings(small_config, copy, ()))
    summary = run_rounds(job, copy, say=said.append)
    assert summary.best == 2
    lines = [line for line in said if "mIoU on val" in line]
    assert [line.split(":")[0] for line in lines] == ["round 1", "round 2"]
    assert all(line.endswith("what other images would change") for line in lines)
    for number in (1, 2):
        gain = summary.rows[number]["gain"]
        figures = [summary.rows[n]["metrics"]["val"]["square"]["mean_iou"]
                   for n in (number - 1, number)]  # fmt: skip
        assert gain["mIoU"]["gain"] == pytest.approx(figures[1] - figures[0], abs=1e-6)
        assert gain["mIoU"]["low"] <= gain["mIoU"]["gain"] <= gain["mIoU"]["high"]
    assert "gain" not in summary.rows[0]


def test_the_verb_shows_the_best_round(copy, small_config):
    arguments = ["--config", str(small_config), "--run-dir", str(copy)]
    plain = CliRunner().invoke(run_rounds_verb, arguments)
    assert plain.exit_code == 0, plain.stderr
    assert "student of the last round; percent" in plain.stdout
    stopped = CliRunner().invoke(
        run_rounds_verb, [*arguments, "--set", "rounds.stop={min_gain: 0.9}"]
    )
    assert stopped.exit_code == 0, stopped.stderr
    assert "student of the best round, 0; percent" in stopped.stdout
    assert "== stopped after round 1" in stopped.stderr


def test_tables_go_by_the_headline(finished_run):
    row = dict(finished_run[1].rows[0])
    result = row["metrics"]["val"]
    by_square = summary_rows([row], "val")[0][-2]
    by_image = summary_rows([{**row, "metrics": {"val": {**result, "headline": "image"}}}], "val")
    assert by_square == f"{100 * result['square']['mean_iou']:.2f}"
    assert by_image[0][-2] == f"{100 * result['image']['mean_iou']:.2f}"
