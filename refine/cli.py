"""The verbs of refinement: refine-labels, and its calibrate."""

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from pipeline.commands import (
    CONTEXT,
    Settings,
    finish_stage,
    force_to_replace,
    locked,
    print_facts,
    print_plan,
    print_table,
    run_options,
    stage_options,
    verb,
)
from pipeline.engines import Engine
from pipeline.option_sections import SectionCommand, SectionGroup
from pipeline.paths import RunPaths
from pipeline.places import Place
from refine import calibration
from refine.calibration import CalibrateConfig
from refine.chosen import apply_best, best_by_strategy, reason_against, section_text, with_best
from refine.plots import write_calibration_plot
from refine.quality import SIZES
from refine.stage import RefineConfig, config_of_round, plan_refinement, with_strategy
from refine.stage import refine_labels as refine_labels_stage
from refine.strategies import STRATEGIES


@verb
def _refine(
    *,
    config: Path,
    run_dir: Place,
    overrides: tuple[str, ...],
    number: int,
    strategy: str | None,
    limit: int | None,
    engine: Engine,
    dry_run: bool,
    force: bool,
) -> int:
    settings = Settings(config, run_dir, overrides)
    run_dir, section = settings.run_dir, settings.section("refine", RefineConfig)
    if strategy is not None:
        section = with_strategy(section, strategy)
    given = section
    if strategy is None:
        section = config_of_round(section, run_dir, number)
    if dry_run:
        plan = plan_refinement(section, run_dir, number)
        return print_plan(plan, limit, f"refine-labels --round {number}", engine, force=force)
    summary, quality = locked(
        run_dir,
        lambda: refine_labels_stage(
            section,
            run_dir,
            number,
            engine=engine,
            limit=limit,
            replace=force_to_replace(force),
        ),
        engine,
    )
    facts = {"chain": ", ".join(link.strategy for link in section.chain)}
    if section is not given:
        facts["chosen by"] = str(RunPaths(run_dir).chosen_strategy(number))
    return finish_stage(summary, facts | quality_facts(quality))


@click.group(cls=SectionGroup, context_settings=CONTEXT, invoke_without_command=True)
@click.option(
    "--round", "number", type=click.IntRange(min=1), default=1, show_default=True,
    metavar="R", help="The round whose teacher has predicted.",
)  # fmt: skip
@click.option(
    "--strategy",
    type=click.Choice(list(STRATEGIES)),
    help="Use this strategy, with PWA where it does not answer, instead of the config's chain.",
)
@stage_options
@click.pass_context
def refine_labels(context: click.Context, /, **arguments: Any) -> None:
    """Refine a round's teacher predictions into RUN_DIR/round-R/labels.zarr.

    Minutes on a CPU; repeat with --force to try another strategy. Without --strategy it follows
    round-R/strategy.json, which 'calibrate --apply' wrote, and else the config's chain.

    Example: refine-labels --strategy cpi --round 1
    """
    if context.invoked_subcommand is None:
        _refine(**arguments)
    for name in context.params:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"put options after '{context.invoked_subcommand}'")


@refine_labels.command(cls=SectionCommand, context_settings=CONTEXT)
@click.option(
    "--round", "number", type=click.IntRange(min=1), default=1, show_default=True,
    metavar="R", help="The round for which a strategy is sought.",
)  # fmt: skip
@click.option("--apply", is_flag=True, help="Let refine-labels follow the best from now on.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="About N expressions only.")
@run_options
@verb
def calibrate(
    *,
    config: Path,
    run_dir: Place,
    overrides: tuple[str, ...],
    number: int,
    apply: bool,
    limit: int | None,
) -> int:
    """Try strategies and thresholds on labelled images that the teacher has not seen.

    Needs 'train-student --fold K/N' and 'predict-teacher --fold K/N' for every fold K of N
    (calibrate.folds in the config). Writes round-R/calibration.json and .png, and prints the best
    setting as the config's `refine` section: --apply and that section give the same labels.

    Example: refine-labels calibrate --round 1 --apply
    """
    settings = Settings(config, run_dir, overrides)
    run_dir, section = settings.run_dir, settings.section("calibrate", CalibrateConfig)
    refine = settings.section("refine", RefineConfig)
    document = locked(run_dir, lambda: calibration.calibrate(section, run_dir, number, limit=limit))
    table = [calibration_row(row) for row in best_by_strategy(document)]
    title = f"best setting of each strategy by {section.by}, percent"
    print_table(title, CALIBRATION_COLUMNS, table)
    plot = write_calibration_plot(document, run_dir / f"round-{number}" / "calibration.png")
    facts = calibration_facts(document) | {"curves": plot}
    reason = reason_against(document)
    if apply:
        applied = locked(run_dir, lambda: apply_best(document, refine, run_dir))
        facts["applied"] = applied or "nothing"
    print_facts(f"calibrate, round {number}", facts)
    if reason is not None:
        click.echo(f"nothing to apply: {reason}")
    all_the_same = "" if reason is None else " all the same"
    click.echo(f"the best setting{all_the_same}, in place of the config's refine section:\n")
    click.echo(section_text(with_best(document, refine), settings.given("refine")))
    return 0


def calibration_facts(document: dict[str, Any]) -> dict[str, Any]:
    """Give the figures that the summary table shows, fractions as in calibration.json."""
    low, high = document["gain_interval"]
    facts = {
        "settings tried": document["settings"],
        "expressions, images": f"{document['expressions']}, {document['images']}",
        "predictions": document["predictions"],
        "teacher's own masks, mIoU": document["teacher"]["mean_iou"],
        "marking the whole image, mIoU": document["whole_image_mean_iou"],
        "gain of choosing, mIoU": f"{document['gain']:.4f} ({low:.4f} to {high:.4f}, 95 %)",
        "skipped, truth unknown": document["skipped"],
        "seconds": document["seconds"],
    }
    if low <= 0:
        facts["beware"] = "the gain may be chance: its interval holds 0"
    return facts


CALIBRATION_COLUMNS = [
    "strategy", "probability", "settings", "mIoU", "oIoU", "refined", "helped/hurt", "S / M / L",
]  # fmt: skip


def calibration_row(row: dict[str, Any]) -> list[Any]:
    """Lay one setting out for a table, its keys as a config has them; shares in percent.

    Last comes the mIoU by size.
    """
    given = row["params"] | {"min_gain": row["min_gain"]}
    settings = [
        f"{name}: {value:g}" if isinstance(value, float) else f"{name}: {value}"
        for name, value in given.items()
        if value is not None
    ]
    sizes = [row["by_size"].get(size) for size in SIZES]
    return [
        row["strategy"],
        row["probability"],
        "\n".join(settings),
        *(f"{100 * row[name]:.2f}" for name in ("mean_iou", "overall_iou", "match_rate")),
        f"{row['helped']}/{row['hurt']}",
        " / ".join("–" if iou is None else f"{100 * iou:.0f}" for iou in sizes),
    ]


def quality_facts(quality: dict[str, Any]) -> dict[str, Any]:
    """Give the figures that the summary table shows, fractions as in quality.json."""
    facts = {
        "labels by source": ", ".join(f"{k} {v}" for k, v in quality["sources"].items()),
        "match rate": quality["match_rate"],
        "mean expected IoU": quality["mean_expected_iou"],
        "mean weight": quality["mean_weight"],
        "area, refined / raw": quality["area_ratio"],
    }
    if quality["truths"]:
        facts |= {
            "label mIoU, raw -> refined": _arrow(quality, "mean_iou"),
            "label oIoU, raw -> refined": _arrow(quality, "overall_iou"),
            "best candidate / union mIoU": f"{quality['best_candidate_mean_iou']:.4f} / "
            f"{quality['best_union_mean_iou']:.4f}",
            "helped / hurt / unchanged": f"{quality['helped']} / {quality['hurt']} / "
            f"{quality['unchanged']}",
        }
    return facts


def _arrow(quality: dict[str, Any], name: str) -> str:
    return f"{quality['raw_' + name]:.4f} -> {quality['refined_' + name]:.4f}"
