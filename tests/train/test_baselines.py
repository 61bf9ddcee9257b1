"""The supervised and the mean-teacher baseline are recipes of the same trainer."""

import json
from pathlib import Path

from click.testing import CliRunner

from pipeline.cli import prepare_data
from train.cli import evaluate_student, run_rounds, train_student

RECIPES = Path(__file__).parents[2] / "recipes"
SMALL = (
    "data.scenes={train: 8, val: 2}", "data.labelled.ratio=0.25",
    "train.network.options={image_size: 64, embed_dim: 8, depths: [1, 1], num_heads: [1, 1],"
    " text_dim: 16, text_layers: 1, text_heads: 1, fusion_heads: [1, 1], decoder_channels: 8}",
    "train.burn_in={steps: 3, learning_rate: 1.0e-3, labelled_batch: 2}", "train.loader_workers=0",
)  # fmt: skip


def run(verb, recipe, run_dir, *arguments, sets=SMALL):
    command = ["--config", str(RECIPES / recipe), "--run-dir", str(run_dir), *arguments]
    for value in sets:
        command += ["--set", value]
    result = CliRunner().invoke(verb, command)
    assert result.exit_code == 0, result.output
    return result


def test_the_supervised_baseline_runs(tmp_path):
    for verb, arguments in ((prepare_data, ()), (train_student, ("--round", "0")),
                            (evaluate_student, ("--round", "0"))):  # fmt: skip
        run(verb, "baseline_supervised.yaml", tmp_path, *arguments)
    assert (
        0
        <= json.loads((tmp_path / "round-0/metrics.json").read_text())["val"]["square"][
            "overall_iou"
        ]
        <= 1
    )


def test_the_mean_teacher_baseline_runs_and_its_labels_are_the_teachers_own(tmp_path):
    student = (
        "train.student={steps: 2, learning_rate: 1.0e-3, labelled_batch: 1, unlabelled_batch: 2}"
    )
    more = (student, "rounds.rounds=1", "rounds.sheet_rows=1", "evaluate.final_splits=[val]")
    run(run_rounds, "baseline_mean_teacher.yaml", tmp_path, sets=(*SMALL, *more))
    quality = json.loads((tmp_path / "round-1" / "quality.json").read_text())
    assert quality["raw_mean_iou"] == quality["refined_mean_iou"]
    assert quality["match_rate"] == 0
