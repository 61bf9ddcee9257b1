"""Shell: the whole job, in order, resuming where it was stopped."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from pipeline.budget import Budget, refuse_too_many
from pipeline.candidate_stage import sam_candidates
from pipeline.engines import Engine, shared_workers
from pipeline.folds import Fold
from pipeline.manifest import load_manifest
from pipeline.paths import RunPaths
from pipeline.places import Place
from pipeline.prepare import prepare_data, progress_bar, read_failures
from pipeline.prepare_summary import refuse_data_left_out
from pipeline.records import FailedItem, write_json
from pipeline.runner import Replace
from refine.calibration import calibrate
from refine.chosen import apply_best, is_chosen, reason_against
from refine.contact_sheet import write_contact_sheet
from refine.stage import config_of_round, refine_labels
from train.config import EvaluateConfig
from train.evaluate import evaluate_student, refuse_no_truth, splits_of_round
from train.gains import best_round, gain_line, gain_of_round, reason_to_stop
from train.job import JobConfig as JobConfig
from train.predict import predict_teacher
from train.student import train_student


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSummary:
    """What `run-rounds` came to: a row per round, the contact sheet, items that failed."""

    rows: list[dict[str, Any]]
    sheet: Place | None
    failures: tuple[FailedItem, ...]
    best: int
    """The round that `rounds.stop` finds best; without it the last one."""


def run_rounds(
    config: JobConfig,
    run_dir: Place,
    *,
    engine: Engine | None = None,
    limit: int | None = None,
    replace: Replace = "never",
    say: Callable[[str], None] = click.echo,
) -> JobSummary:
    """Run data, candidates, burn-in and every round; skip what is done.

    Args:
        config: All sections.
        run_dir: Run directory.
        engine: Where the stages run that are split into shards.
        limit: Images of every split that are kept, for trials; None keeps all.
        replace: Whether to make anew what another config made.
        say: Gets one line per step.

    Raises:
        SemiresError: If a step refuses or leaves out more than the engine's `max_failures`, or no
            split that is to be evaluated has a truth.
    """
    with shared_workers():
        return _run(config, run_dir, engine, limit, replace, say)


def _run(
    config: JobConfig,
    run_dir: Place,
    engine: Engine | None,
    limit: int | None,
    replace: Replace,
    say: Callable[[str], None],
) -> JobSummary:
    failures: list[FailedItem] = []
    say("data")
    workers = (engine or Engine()).workers
    with progress_bar() as progress:
        prepared = prepare_data(
            config.data,
            run_dir,
            limit=limit,
            workers=workers,
            force=replace != "never",
            progress=progress,
        )
    refuse_data_left_out(prepared, run_dir, _budget(engine))
    failures += read_failures(run_dir)[0]
    refuse_no_truth(config.evaluate, load_manifest(RunPaths(run_dir).manifest))
    say("candidates")
    stage: dict[str, Any] = {"engine": engine, "replace": replace}
    failures += sam_candidates(config.candidates, run_dir, **stage).failures
    rows: list[dict[str, Any]] = []
    for number in range(config.rounds.rounds + 1):
        last = number == config.rounds.rounds
        row: dict[str, Any] = {"round": number}
        if number:
            say(f"round {number}: teacher")
            failures += predict_teacher(config.teacher, run_dir, number, **stage).failures
            if config.rounds.calibrate:
                say(f"round {number}: calibrate")
                failures += _calibrate(config, run_dir, number, stage, say)
            say(f"round {number}: refine")
            chosen = config_of_round(config.refine, run_dir, number)
            summary, quality = refine_labels(chosen, run_dir, number, **stage)
            failures += summary.failures
            row |= {"quality": quality}
        say(f"round {number}: train" if number else "round 0: burn-in on labelled data")
        failures += _train(config, run_dir, number, stage)
        final = last and config.rounds.stop is None
        row["metrics"] = _evaluate(config.evaluate, run_dir, number, engine, final=final)
        rows.append(row)
        if number:
            row["gain"] = gain_of_round(config.evaluate, run_dir, number)
            if config.evaluate.splits:
                say(gain_line(number, row["gain"]))
        reason = reason_to_stop(rows, config.rounds.stop, config.evaluate)
        if reason is not None and not last:
            say(reason)
            break
    best = _mark_best(config, run_dir, rows, engine)
    for row in rows:
        for result in row["metrics"].values():
            failures += [FailedItem(**failure) for failure in result["failed"]]
    sheet = _sheet(config, run_dir, rows[-1]["round"])
    write_json(run_dir / "summary.json", rows)
    return JobSummary(rows=rows, sheet=sheet, failures=_distinct(failures), best=best)


def _calibrate(
    config: JobConfig,
    run_dir: Place,
    number: int,
    stage: dict[str, Any],
    say: Callable[[str], None],
) -> list[FailedItem]:
    """Choose a round's strategy on labelled images that a fold's burn-in has not seen."""
    failures: list[FailedItem] = []
    for part in range(1, config.calibrate.folds + 1):
        fold = Fold(part, config.calibrate.folds)
        failures += _train(config, run_dir, 0, stage, fold)
        failures += predict_teacher(config.teacher, run_dir, 1, fold=fold, **stage).failures
    if not is_chosen(config.calibrate, run_dir, number):
        document = calibrate(config.calibrate, run_dir, number)
        if apply_best(document, config.refine, run_dir) is None:
            say(f"round {number}: nothing to apply: {reason_against(document)}")
    return failures


def _train(
    config: JobConfig,
    run_dir: Place,
    number: int,
    stage: dict[str, Any],
    fold: Fold | None = None,
) -> tuple[FailedItem, ...]:
    """Train, within the engine's `max_failures` of the labelled images and the refined labels."""
    summary = train_student(config.train, run_dir, number, replace=stage["replace"], fold=fold)
    step = f"train-student --round {number}" if fold is None else f"train-student --fold {fold}"
    images = len(load_manifest(RunPaths(run_dir).manifest).labelled_images())
    budget = _budget(stage["engine"])
    refuse_too_many(summary.failures, images + summary.refined, budget, f"{run_dir}: '{step}'")
    return summary.failures


def _budget(engine: Engine | None) -> Budget | None:
    return None if engine is None else engine.max_failures


def _mark_best(
    config: JobConfig, run_dir: Place, rows: list[dict[str, Any]], engine: Engine | None
) -> int:
    """Find the round that counts; with `rounds.stop` mark it and evaluate its final splits."""
    if config.rounds.stop is None:
        number: int = rows[-1]["round"]
        return number
    best = best_round(rows, config.rounds.stop, config.evaluate)
    row = next(row for row in rows if row["round"] == best)
    row["best"] = True
    row["metrics"] = _evaluate(config.evaluate, run_dir, best, engine, final=True)
    return best


def _evaluate(
    config: EvaluateConfig, run_dir: Place, number: int, engine: Engine | None, *, final: bool
) -> dict[str, dict[str, Any]]:
    """Evaluate every split of a round, each within the engine's `max_failures`."""
    results: dict[str, dict[str, Any]] = {}
    for split in splits_of_round(config, run_dir, final=final):
        result = results[split] = evaluate_student(config, run_dir, number, split)
        failed = [FailedItem(**entry) for entry in result["failed"]]
        step = f"{run_dir}: 'evaluate-student --round {number} --split {split}'"
        refuse_too_many(failed, result["sentences"] + len(failed), _budget(engine), step)
    return results


def _sheet(config: JobConfig, run_dir: Place, number: int) -> Place:
    path = RunPaths(run_dir).round(number) / "sheet.png"
    return write_contact_sheet(run_dir, number, path, config.rounds.sheet_rows)


def _distinct(failures: list[FailedItem]) -> tuple[FailedItem, ...]:
    return tuple(dict.fromkeys(failures))


def summary_rows(rows: list[dict[str, Any]], split: str) -> list[list[Any]]:
    """Lay a job's rounds out as table rows, percentages with two digits.

    Columns: round, mIoU of raw and of refined labels with the truth, match rate, labels helped,
    labels hurt; the student's oIoU, mIoU and P@0.5 by the headline's protocol on `split`.
    """
    table = []
    for row in rows:
        quality = row.get("quality", {})
        labels = [_percent(quality.get(f"{kind}_mean_iou")) for kind in ("raw", "refined")]
        counts = [quality.get(name) for name in ("helped", "hurt")]
        name = "0: supervised" if row["round"] == 0 else str(row["round"])
        figures = _figures(row["metrics"].get(split, {}))
        table.append([name, *labels, _percent(quality.get("match_rate")), *counts, *figures])
    return table


def split_rows(row: dict[str, Any]) -> list[list[Any]]:
    """Lay one round's student out by split: name, oIoU, mIoU, P@0.5 by the headline's protocol."""
    return [[split, *_figures(result)] for split, result in row["metrics"].items()]


def _figures(result: dict[str, Any]) -> list[str | None]:
    figures = result.get(result.get("headline", "square"), {})
    precision = figures.get("precision_at", {}).get("0.5")
    return [_percent(v) for v in (figures.get("overall_iou"), figures.get("mean_iou"), precision)]


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{100 * value:.2f}"
