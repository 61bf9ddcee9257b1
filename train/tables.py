"""What the verbs of training print."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from pipeline.commands import EXIT_ERROR, print_table
from pipeline.errors import SemiresError
from pipeline.places import Place

if TYPE_CHECKING:  # both import torch
    from train.job_plan import Step
    from train.training_plan import TrainingPlan


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


def print_rounds(rows: list[dict[str, Any]], best: int) -> None:
    """Print labels and student of every round, then the best or last student on every split.

    Where no round was evaluated the labels alone are printed.
    """
    from train import rounds

    split = next((split for row in rows for split in row["metrics"]), None)
    labels = ["round", "raw", "refined", "matched", "helped", "hurt"]
    title = "pseudo-labels (raw, refined: mIoU with the truth)"
    if split is None:
        table = [row[: len(labels)] for row in rounds.summary_rows(rows, "")]
        print_table(f"{title}; percent; no round is evaluated", labels, table)
        return
    figures = ["oIoU", "mIoU", "P@0.5"]
    title = f"{title} and student on {split}; percent"
    print_table(title, [*labels, *figures], rounds.summary_rows(rows, split))
    chosen = next(row for row in rows if row["round"] == best)
    name = f"best round, {best}" if chosen.get("best") else "last round"
    splits = rounds.split_rows(chosen)
    print_table(f"student of the {name}; percent", ["split", *figures], splits)


def print_training(title: str, training: "TrainingPlan") -> int:
    """Say what a training would do, or that it would refuse (--dry-run); give the exit code."""
    try:
        state = "done" if training.is_done() else "to do"
    except SemiresError as error:
        click.echo(f"{title}: would refuse: {error}")
        return EXIT_ERROR
    click.echo(f"{title}: {training.text}; {state}")
    return 0


def print_job(steps: Iterable["Step"], notes: Iterable[str], run_dir: Place) -> int:
    """Say what every step of a job would do (--dry-run); give the exit code."""
    states: list[str] = []
    for step in steps:
        click.echo(step.text)
        states.append(step.state)
    for note in notes:
        click.echo(note)
    refused = states.count("refuses")
    counts = ", ".join(f"{states.count(state)} {state}" for state in ("done", "to do"))
    more = f", {states.count('waits')} waiting" if "waits" in states else ""
    more += f", {refused} would refuse" if refused else ""
    click.echo(f"{run_dir}: {counts}{more}")
    return EXIT_ERROR if refused else 0
