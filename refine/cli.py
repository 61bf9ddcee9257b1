"""The verb of refinement: refine-labels."""

from pathlib import Path
from typing import Any

import click

from pipeline.commands import (
    CONTEXT,
    Settings,
    finish_stage,
    force_to_replace,
    locked,
    print_plan,
    stage_options,
    verb,
)
from pipeline.engines import Engine
from refine.stage import RefineConfig, plan_refinement, with_strategy
from refine.stage import refine_labels as refine_labels_stage
from refine.strategies import STRATEGIES


@click.command(context_settings=CONTEXT)
@click.option(
    "--round", "number", type=click.IntRange(min=1), default=1, show_default=True,
    help="The round whose teacher has predicted.",
)  # fmt: skip
@click.option(
    "--strategy",
    type=click.Choice(list(STRATEGIES)),
    help="Use this strategy, with PWA where it does not answer, instead of the config's chain.",
)
@stage_options
@verb
def refine_labels(
    *,
    config: Path,
    run_dir: Path,
    overrides: tuple[str, ...],
    number: int,
    strategy: str | None,
    limit: int | None,
    workers: int,
    cluster: str | None,
    dry_run: bool,
    force: bool,
) -> int:
    """Refine a round's teacher predictions into RUN_DIR/round-R/labels.zarr.

    Minutes on a CPU; repeat with --force to try another strategy.

    Example: refine-labels --strategy cpi --round 1
    """
    settings = Settings(config, run_dir, overrides)
    run_dir, section = settings.run_dir, settings.section("refine", RefineConfig)
    if strategy is not None:
        section = with_strategy(section, strategy)
    if dry_run:
        plan = plan_refinement(section, run_dir, number)
        return print_plan(plan, limit, f"refine-labels --round {number}")
    summary, quality = locked(
        run_dir,
        lambda: refine_labels_stage(
            section,
            run_dir,
            number,
            engine=Engine(workers=workers, cluster=cluster),
            limit=limit,
            replace=force_to_replace(force),
        ),
    )
    return finish_stage(summary, quality_facts(quality))


def quality_facts(quality: dict[str, Any]) -> dict[str, Any]:
    """Give the figures that the summary table shows, fractions as in quality.json."""
    facts = {
        "labels by source": ", ".join(f"{k} {v}" for k, v in quality["sources"].items()),
        "match rate": quality["match_rate"],
        "mean expected IoU": quality["mean_expected_iou"],
        "mean weight": quality["mean_weight"],
    }
    if quality["truths"]:
        facts |= {
            "label mIoU, raw -> refined": _arrow(quality, "mean_iou"),
            "label oIoU, raw -> refined": _arrow(quality, "overall_iou"),
            "best candidate mIoU": quality["best_candidate_mean_iou"],
            "helped / hurt / unchanged": f"{quality['helped']} / {quality['hurt']} / "
            f"{quality['unchanged']}",
        }
    return facts


def _arrow(quality: dict[str, Any], name: str) -> str:
    return f"{quality['raw_' + name]:.4f} -> {quality['refined_' + name]:.4f}"
