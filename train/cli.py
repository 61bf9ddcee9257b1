"""The verbs of training: predict-teacher, train-student, evaluate-student, run-rounds."""

from pathlib import Path
from typing import Any

import click

from pipeline.commands import (
    CONTEXT,
    Settings,
    finish_stage,
    force_to_replace,
    locked,
    print_facts,
    print_plan,
    print_table,
    report_failures,
    run_options,
    stage_options,
    verb,
)
from pipeline.engines import Engine
from pipeline.errors import ConfigError
from pipeline.folds import Fold, parse_fold
from pipeline.manifest import SPLITS
from pipeline.records import FailedItem

ROUND = click.option(
    "--round", "number", type=click.IntRange(min=0), default=1, show_default=True,
    help="The round; 0 is the burn-in on labelled data alone.",
)  # fmt: skip


def _fold(_context: click.Context, _option: click.Parameter, text: str | None) -> Fold | None:
    """Read --fold; what is wrong with it is an unusable argument."""
    try:
        return None if text is None else parse_fold(text)
    except ConfigError as error:
        raise click.BadParameter(str(error)) from error


FOLD = click.option(
    "--fold", metavar="K/N", callback=_fold,
    help="For calibration: the K-th of N parts of the labelled images; --round is not used.",
)  # fmt: skip
FORCE = click.option("--force", is_flag=True, help="Train anew, whatever is there.")
DRY_RUN = click.option("--dry-run", is_flag=True, help="Check config and inputs; write nothing.")


@click.command(context_settings=CONTEXT)
@ROUND
@FOLD
@stage_options
@verb
def predict_teacher(
    *,
    config: Path,
    run_dir: Path,
    overrides: tuple[str, ...],
    number: int,
    fold: Fold | None,
    limit: int | None,
    workers: int,
    cluster: str | None,
    dry_run: bool,
    force: bool,
) -> int:
    """Predict every unlabelled expression with the teacher of round R - 1.

    With --fold: the labelled expressions of that fold, with the burn-in that has not seen them, for
    'refine-labels calibrate'.

    Example: predict-teacher --round 1 --workers 2
    """
    from train import predict
    from train.config import TeacherConfig

    settings = Settings(config, run_dir, overrides)
    run_dir, section = settings.run_dir, settings.section("teacher", TeacherConfig)
    number = number if fold is None else 1
    if dry_run:
        plan = predict.plan_teacher(section, run_dir, number, fold)[0]
        return print_plan(plan, limit, f"predict-teacher --round {number}")
    summary = locked(
        run_dir,
        lambda: predict.predict_teacher(
            section,
            run_dir,
            number,
            engine=Engine(workers=workers, cluster=cluster),
            limit=limit,
            replace=force_to_replace(force),
            fold=fold,
        ),
    )
    return finish_stage(summary)


@click.command(context_settings=CONTEXT)
@ROUND
@FOLD
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="The first N samples only.")
@DRY_RUN
@FORCE
@run_options
@verb
def train_student(
    *,
    config: Path,
    run_dir: Path,
    overrides: tuple[str, ...],
    number: int,
    fold: Fold | None,
    limit: int | None,
    dry_run: bool,
    force: bool,
) -> int:
    """Train a round's student and its EMA teacher, resuming where it was stopped.

    Round 0 trains on labelled data alone: the supervised baseline. With --fold it leaves that part
    of the labelled images out and lies apart, in RUN_DIR/calibration.

    Example: train-student --round 2 --set train.student.steps=1000
    """
    from train import student
    from train.config import TrainConfig
    from train.training_folder import phase_of, student_plan

    settings = Settings(config, run_dir, overrides)
    run_dir, section = settings.run_dir, settings.section("train", TrainConfig)
    number = number if fold is None else 0
    if dry_run:
        plan = student_plan(section, run_dir, number, limit, fold=fold)
        click.echo(f"train-{number}: {phase_of(section, number).steps} steps, {plan}")
        return 0
    summary = locked(
        run_dir,
        lambda: student.train_student(
            section, run_dir, number, limit=limit, replace=force_to_replace(force), fold=fold
        ),
    )
    print_facts(
        f"train-{number}" if fold is None else f"train-0 without fold {fold}",
        {
            "steps": summary.steps,
            "labelled expressions": summary.labelled,
            "refined labels": summary.refined,
            "resumed at step": summary.resumed_at,
            "seconds": "done before" if summary.already_done else summary.seconds,
            "last loss": summary.final_loss,
        },
    )
    return report_failures(summary.failures)


@click.command(context_settings=CONTEXT)
@ROUND
@click.option(
    "--split", type=click.Choice(SPLITS), default="val", show_default=True,
    help="Which sentences; their objects' masks must be known.",
)  # fmt: skip
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", help="The first N expressions only."
)
@DRY_RUN
@run_options
@verb
def evaluate_student(
    *,
    config: Path,
    run_dir: Path,
    overrides: tuple[str, ...],
    number: int,
    split: str,
    limit: int | None,
    dry_run: bool,
) -> int:
    """Measure a round's EMA teacher on every sentence of a split.

    Example: evaluate-student --round 1 --split testA
    """
    from train import evaluate
    from train.config import EvaluateConfig
    from train.trained import read_trained

    settings = Settings(config, run_dir, overrides)
    run_dir, section = settings.run_dir, settings.section("evaluate", EvaluateConfig)
    if dry_run:
        trained = read_trained(
            run_dir / f"round-{number}" / "student", f"train-student --round {number}"
        )
        click.echo(f"evaluate {split}: weights {trained.weights_sha256[:16]}")
        return 0
    result = locked(
        run_dir,
        lambda: evaluate.evaluate_student(section, run_dir, number, split, limit=limit),
    )
    print_table(f"round {number}, {split}, {result['sentences']} sentences", *metric_table(result))
    return report_failures(tuple(FailedItem(**failure) for failure in result["failed"]))


def metric_table(result: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Lay one evaluation out as columns and rows, in percent."""
    from train.evaluate import PROTOCOLS

    limits = list(result[PROTOCOLS[0]]["precision_at"])
    columns = ["protocol", "oIoU", "mIoU", *(f"P@{limit}" for limit in limits)]
    rows: list[list[Any]] = []
    for protocol in PROTOCOLS:
        figures = result[protocol]
        values = [figures["overall_iou"], figures["mean_iou"]]
        values += [figures["precision_at"][limit] for limit in limits]
        rows.append([protocol, *(f"{100 * value:.2f}" for value in values)])
    return columns, rows


@click.command(context_settings=CONTEXT)
@click.option(
    "--workers", type=click.IntRange(min=1), default=1, show_default=True,
    help="Local processes for the sharded stages; results do not depend on it.",
)  # fmt: skip
@click.option("--cluster", metavar="ADDRESS", help="Run the sharded stages on this Dask scheduler.")
@click.option(
    "--force", is_flag=True, help="Make anew what another config made, and keep the rest."
)
@DRY_RUN
@run_options
@verb
def run_rounds(
    *,
    config: Path,
    run_dir: Path,
    overrides: tuple[str, ...],
    workers: int,
    cluster: str | None,
    dry_run: bool,
    force: bool,
) -> int:
    """Run the whole job: data, candidates, burn-in, then teacher, refine, train, evaluate.

    Skips what is done, so the same command resumes a job that was stopped.

    Example: run-rounds --config stages.yaml --run-dir runs/demo --workers 2
    """
    from train import rounds

    settings = Settings(config, run_dir, overrides)
    run_dir, job = settings.run_dir, job_config(settings)
    if dry_run:
        click.echo(f"{config}: valid; {job.rounds.rounds} rounds -> {run_dir}")
        return 0
    summary = locked(
        run_dir,
        lambda: rounds.run_rounds(
            job,
            run_dir,
            engine=Engine(workers=workers, cluster=cluster),
            replace="differing" if force else "never",
            say=lambda line: click.echo(f"== {line}", err=True),
        ),
    )
    print_rounds(summary.rows)
    click.echo(f"contact sheet: {summary.sheet}")
    return report_failures(summary.failures)


def print_rounds(rows: list[dict[str, Any]]) -> None:
    """Print labels and student of every round, then the last student on every split."""
    from train import rounds

    split = next(iter(rows[0]["metrics"]), "val")
    columns = ["round", "raw", "refined", "matched", "helped", "hurt", "oIoU", "mIoU", "P@0.5"]
    title = f"pseudo-labels (raw, refined: mIoU with the truth) and student on {split}; percent"
    print_table(title, columns, rounds.summary_rows(rows, split))
    splits = rounds.split_rows(rows[-1])
    print_table("student of the last round; percent", ["split", *columns[-3:]], splits)


def job_config(settings: Settings) -> Any:
    """Parse every section, so that a mistake anywhere is found before any work."""
    from pipeline.candidate_config import CandidatesConfig
    from pipeline.data_config import DataConfig
    from refine.calibration import CalibrateConfig
    from refine.stage import RefineConfig
    from train.config import EvaluateConfig, RoundsConfig, TeacherConfig, TrainConfig
    from train.rounds import JobConfig

    return JobConfig(
        data=settings.section("data", DataConfig),
        candidates=settings.section("candidates", CandidatesConfig),
        teacher=settings.section("teacher", TeacherConfig),
        refine=settings.section("refine", RefineConfig),
        calibrate=settings.section("calibrate", CalibrateConfig),
        train=settings.section("train", TrainConfig),
        evaluate=settings.section("evaluate", EvaluateConfig),
        rounds=settings.section("rounds", RoundsConfig),
    )
