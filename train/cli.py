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
    engine: Engine,
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
            engine=engine,
            limit=limit,
            replace=force_to_replace(force),
            fold=fold,
        ),
        engine,
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

    With torchrun in front several processes share every step's samples.

    Example: train-student --round 2 --set train.student.steps=1000
    """
    from train import student
    from train.presets import train_section
    from train.processes import joined
    from train.training_folder import phase_of, student_plan

    settings = Settings(config, run_dir, overrides)
    run_dir, section = settings.run_dir, train_section(settings)
    number = number if fold is None else 0
    if dry_run:
        plan = student_plan(section, run_dir, number, limit, fold=fold)
        click.echo(f"train-{number}: {phase_of(section, number).steps} steps, {plan}")
        return 0
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
    title = f"train-{number}" if fold is None else f"train-0 without fold {fold}"
    print_facts(title, training_facts(summary))
    return report_failures(summary.failures)


def training_facts(summary: Any) -> dict[str, Any]:
    """Lay out what a training came to, a `TrainSummary`."""
    facts: dict[str, Any] = {
        "steps": summary.steps,
        "labelled expressions": summary.labelled,
        "refined labels": summary.refined,
        "resumed at step": summary.resumed_at,
        "seconds": "done before" if summary.already_done else summary.seconds,
        "last loss": summary.final_loss,
    }
    if summary.best.best_step is not None:
        facts["best on val"] = f"{summary.best.best_figure:.4f} after {summary.best.best_step}"
        facts["stopped early at"] = summary.stopped_at
    if not summary.already_done:
        facts["peak memory, MiB"] = f"{summary.peak_memory_bytes / 2**20:.0f}"
        if summary.peak_gpu_bytes:
            facts["peak GPU memory, MiB"] = f"{summary.peak_gpu_bytes / 2**20:.0f}"
    return facts


@click.command(context_settings=CONTEXT)
@ROUND
@click.option(
    "--split", type=click.Choice(SPLITS), default="val", show_default=True,
    help="Which sentences; their objects' masks must be known.",
)  # fmt: skip
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", help="The first N expressions only."
)
@click.option(
    "--against", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE",
    help="metrics.json of another round or run on the same data: how they differ, and the chance.",
)  # fmt: skip
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
    against: Path | None,
    dry_run: bool,
) -> int:
    """Measure a round's EMA teacher on every sentence of a split.

    The intervals hold 95 % of the results that images drawn anew would give. With torchrun in front
    several processes share the sentences.

    Example: evaluate-student --round 1 --split testA
    """
    from train import evaluate
    from train.config import EvaluateConfig
    from train.processes import joined
    from train.trained import read_trained

    settings = Settings(config, run_dir, overrides)
    run_dir, section = settings.run_dir, settings.section("evaluate", EvaluateConfig)
    if dry_run:
        trained = read_trained(
            run_dir / f"round-{number}" / "student", f"train-student --round {number}"
        )
        click.echo(f"evaluate {split}: weights {trained.weights_sha256[:16]}")
        return 0
    with joined() as processes, processes.holding(run_dir):
        result = evaluate.evaluate_student(
            section, run_dir, number, split, limit=limit, against=against, processes=processes
        )
    if not processes.is_first:
        return 0
    counted = f"{result['sentences']} sentences of {result['images']} images"
    title = f"round {number}, {split}, {counted}, percent; headline: {result['headline']}"
    print_table(title, *metric_table(result))
    if against is not None:
        title = f"this minus {against}, {result['against']['sentences']} sentences, points"
        print_table(title, *difference_table(result["against"]))
    return report_failures(tuple(FailedItem(**failure) for failure in result["failed"]))


def metric_table(result: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Lay one evaluation out in percent: by protocol its interval and its object sizes."""
    from train.measure import PROTOCOLS
    from train.outcomes import METRICS

    rows: list[list[Any]] = []
    for protocol in (name for name in PROTOCOLS if name in result):
        figures = result[protocol]
        values = [figures["overall_iou"], figures["mean_iou"], *figures["precision_at"].values()]
        rows.append([protocol, *(f"{100 * value:.2f}" for value in values)])
        if figures["interval"] is not None:
            ends = [figures["interval"][name] for name in METRICS]
            rows.append(["  95 %", *(f"{100 * low:.1f}–{100 * high:.1f}" for low, high in ends)])
        for name, part in figures["by_size"].items():
            both = (part["overall_iou"], part["mean_iou"])
            shown = [f"{100 * v:.2f}" if part["sentences"] else None for v in both]
            rows.append([f"  {name} ({part['sentences']})", *shown, *[None] * (len(METRICS) - 2)])
    return ["protocol", *METRICS], rows


def difference_table(found: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Lay out how two evaluations differ, in points; * where the interval leaves 0 out."""
    from train.measure import PROTOCOLS
    from train.outcomes import METRICS

    rows: list[list[Any]] = []
    for protocol in (name for name in PROTOCOLS if found.get(name) is not None):
        ends = [found[protocol][name] for name in METRICS]
        stars = ["*" if end["low"] > 0 or end["high"] < 0 else "" for end in ends]
        gains = [f"{100 * e['gain']:+.2f}{star}" for e, star in zip(ends, stars, strict=True)]
        rows.append([protocol, *gains])
        rows.append(["  95 %", *(f"{100 * e['low']:+.1f}…{100 * e['high']:+.1f}" for e in ends)])
    return ["protocol", *METRICS], rows


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
    print_rounds(summary.rows, summary.best)
    click.echo(f"contact sheet: {summary.sheet}")
    return report_failures(summary.failures)


def print_rounds(rows: list[dict[str, Any]], best: int) -> None:
    """Print labels and student of every round, then the best or last student on every split."""
    from train import rounds

    split = next(iter(rows[0]["metrics"]), "val")
    columns = ["round", "raw", "refined", "matched", "helped", "hurt", "oIoU", "mIoU", "P@0.5"]
    title = f"pseudo-labels (raw, refined: mIoU with the truth) and student on {split}; percent"
    print_table(title, columns, rounds.summary_rows(rows, split))
    chosen = next(row for row in rows if row["round"] == best)
    name = f"best round, {best}" if chosen.get("best") else "last round"
    splits = rounds.split_rows(chosen)
    print_table(f"student of the {name}; percent", ["split", *columns[-3:]], splits)


def job_config(settings: Settings) -> Any:
    """Parse every section, so that a mistake anywhere is found before any work."""
    from pipeline.candidate_config import CandidatesConfig
    from pipeline.data_config import DataConfig
    from refine.calibration import CalibrateConfig
    from refine.stage import RefineConfig
    from train.config import EvaluateConfig, RoundsConfig, TeacherConfig
    from train.presets import train_section
    from train.rounds import JobConfig

    return JobConfig(
        data=settings.section("data", DataConfig),
        candidates=settings.section("candidates", CandidatesConfig),
        teacher=settings.section("teacher", TeacherConfig),
        refine=settings.section("refine", RefineConfig),
        calibrate=settings.section("calibrate", CalibrateConfig),
        train=train_section(settings),
        evaluate=settings.section("evaluate", EvaluateConfig),
        rounds=settings.section("rounds", RoundsConfig),
    )
