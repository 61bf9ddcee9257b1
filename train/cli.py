"""The verbs of training: predict-teacher, train-student, evaluate-student, run-rounds."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.commands import (
    CONTEXT,
    PlaceType,
    Settings,
    engine_options,
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
from pipeline.named_files import refuse_missing
from pipeline.option_sections import SectionCommand
from pipeline.places import Place
from pipeline.records import FailedItem
from train import tables

if TYPE_CHECKING:
    from train.job import JobConfig

# What needs torch is imported after the config is read: it takes seconds, which a mistake in the
# config need not wait.

ROUND = click.option(
    "--round", "number", type=click.IntRange(min=0), default=1, show_default=True,
    metavar="R", help="The round; 0 is the burn-in on labelled data alone.",
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


@click.command(cls=SectionCommand, context_settings=CONTEXT)
@ROUND
@FOLD
@stage_options
@verb
def predict_teacher(
    *,
    config: Path,
    run_dir: Place,
    overrides: tuple[str, ...],
    number: int,
    fold: Fold | None,
    limit: int | None,
    engine: Engine,
    dry_run: bool,
    force: bool,
) -> int:
    """Predict every unlabelled expression with the teacher of round R - 1.

    With --fold: the labelled expressions of that fold, with the burn-in that has not seen them, for
    'refine-labels calibrate'.

    Example: predict-teacher --round 1 --workers 2
    """
    from train.config import TeacherConfig

    settings = Settings(config, run_dir, overrides)
    run_dir, section = settings.run_dir, settings.section("teacher", TeacherConfig)
    from train import predict

    number = number if fold is None else 1
    if dry_run:
        plan = predict.plan_teacher(section, run_dir, number, fold)[0]
        return print_plan(plan, limit, f"predict-teacher --round {number}", engine, force=force)
    summary = locked(
        run_dir,
        lambda: predict.predict_teacher(
            section,
            run_dir,
            number,
            engine=engine,
            limit=limit,
            replace=force_to_replace(force),
            fold=fold,
        ),
        engine,
    )
    return finish_stage(summary)


@click.command(cls=SectionCommand, context_settings=CONTEXT)
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
    run_dir: Place,
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

    With torchrun in front several processes share every step's samples.

    Example: train-student --round 2 --set train.student.steps=1000
    """
    from train.presets import train_section

    settings = Settings(config, run_dir, overrides)
    run_dir, section = settings.run_dir, train_section(settings)
    number = number if fold is None else 0
    files = section.network.input_files(starts=number == 0)
    refuse_missing({f"train.network.{name}": path for name, path in files.items()})
    title = f"train-{number}" if fold is None else f"train-0 without fold {fold}"
    from train import student
    from train.processes import joined
    from train.training_plan import plan_training

    if dry_run:
        return tables.print_training(title, plan_training(section, run_dir, number, limit, fold))
    with joined() as processes, processes.holding(run_dir):
        summary = student.train_student(
            section,
            run_dir,
            number,
            limit=limit,
            replace=force_to_replace(force),
            fold=fold,
            processes=processes,
        )
    if not processes.is_first:
        return 0
    print_facts(title, tables.training_facts(summary))
    return report_failures(summary.failures)


@click.command(cls=SectionCommand, context_settings=CONTEXT)
@ROUND
@click.option(
    "--split", type=click.Choice(SPLITS), default="val", show_default=True,
    help="Which sentences; their objects' masks must be known.",
)  # fmt: skip
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", help="The first N expressions only."
)
@click.option(
    "--against", type=PlaceType("file"), metavar="FILE",
    help="metrics.json of another round or run on the same data: how they differ, and the chance.",
)  # fmt: skip
@DRY_RUN
@run_options
@verb
def evaluate_student(
    *,
    config: Path,
    run_dir: Place,
    overrides: tuple[str, ...],
    number: int,
    split: str,
    limit: int | None,
    against: Place | None,
    dry_run: bool,
) -> int:
    """Measure a round's EMA teacher on every sentence of a split.

    The intervals hold 95 % of the results that images drawn anew would give. With torchrun in front
    several processes share the sentences.

    Example: evaluate-student --round 1 --split testA
    """
    from train.config import EvaluateConfig

    settings = Settings(config, run_dir, overrides)
    run_dir, section = settings.run_dir, settings.section("evaluate", EvaluateConfig)
    from train import evaluate
    from train.processes import joined

    if dry_run:
        done, size = evaluate.plan_evaluation(section, run_dir, number, split)
        click.echo(f"evaluate-{number} {split}: {size}; {'done' if done else 'to do'}")
        return 0
    with joined() as processes, processes.holding(run_dir):
        result = evaluate.evaluate_student(
            section, run_dir, number, split, limit=limit, against=against, processes=processes
        )
    if not processes.is_first:
        return 0
    counted = f"{result['sentences']} sentences of {result['images']} images"
    title = f"round {number}, {split}, {counted}, percent; headline: {result['headline']}"
    print_table(title, *tables.metric_table(result))
    if against is not None:
        title = f"this minus {against}, {result['against']['sentences']} sentences, points"
        print_table(title, *tables.difference_table(result["against"]))
    return report_failures(tuple(FailedItem(**failure) for failure in result["failed"]))


@click.command(cls=SectionCommand, context_settings=CONTEXT)
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N",
    help="The first N images of every split only, for trials; the same again to resume.",
)  # fmt: skip
@click.option(
    "--force", is_flag=True, help="Make anew what another config made, and keep the rest."
)
@click.option(
    "--dry-run", is_flag=True,
    help="Say what every step would do, or why it would refuse; write nothing.",
)  # fmt: skip
@run_options
@engine_options
@verb
def run_rounds(
    *,
    config: Path,
    run_dir: Place,
    overrides: tuple[str, ...],
    engine: Engine,
    limit: int | None,
    dry_run: bool,
    force: bool,
) -> int:
    """Run the whole job: data, candidates, burn-in, then teacher, refine, train, evaluate.

    Skips what is done, so the same command resumes a job that was stopped.

    Example: run-rounds --config stages.yaml --run-dir runs/demo --workers 2
    """
    if engine.part is not None:
        raise click.UsageError(
            "--shard-index: a part cannot train; give it to the stages, and run-rounds the rest"
        )
    from train.job import notes_on, refuse_missing_files

    settings = Settings(config, run_dir, overrides)
    run_dir, job = settings.run_dir, job_config(settings)
    refuse_missing_files(job)
    if dry_run:
        from train.job_plan import plan_job

        steps = plan_job(job, run_dir, limit=limit, force=force)
        return tables.print_job(steps, notes_on(job), run_dir)
    from train import rounds

    summary = locked(
        run_dir,
        lambda: rounds.run_rounds(
            job,
            run_dir,
            engine=engine,
            limit=limit,
            replace="differing" if force else "never",
            say=lambda line: click.echo(f"== {line}", err=True),
        ),
    )
    tables.print_rounds(summary.rows, summary.best)
    click.echo(f"contact sheet: {summary.sheet}")
    return report_failures(summary.failures)


def job_config(settings: Settings) -> "JobConfig":
    """Parse every section, so that a mistake anywhere is found before any work."""
    from train.job import parse_job

    return parse_job(settings)
