"""The verbs of inspect-shards that say how far a run is: status, plan, failures."""

from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import click

from pipeline.commands import CONTEXT, EXIT_ERROR, PlaceType, print_table, run_options, verb
from pipeline.option_sections import SectionCommand
from pipeline.places import Place

RUN = click.argument("run", type=PlaceType("folder"))
STATUS_COLUMNS = ["made by", "state", "done", "missing", "damaged", "failed", "of", "items"]


@click.command(context_settings=CONTEXT)
@RUN
@verb
def status(*, run: Place) -> int:
    """Say per stage what is done, missing, stale or damaged, and why; exit 1 if stale or damaged.

    Compares inputs and lengths of files, not their hashes: that is 'verify'.

    Example: inspect-shards status runs/demo
    """
    from pipeline import locks
    from pipeline import status as stages

    found = stages.run_status(run)
    rows: list[list[Any]] = [
        [s.verb, s.state, s.done, s.missing, s.damaged, s.failed_items, s.shards,
         None if s.items is None else f"{s.items} {s.unit}"]
        for s in found
    ]  # fmt: skip
    print_table(str(run), STATUS_COLUMNS, rows)
    for stage in found:
        for reason in stage.reasons:
            click.echo(f"{stage.place}: {reason}")
    for holder in locks.holders(run):
        click.echo(f"in use by {holder}")
    return EXIT_ERROR if any(s.state in ("stale", "damaged") for s in found) else 0


@click.command(cls=SectionCommand, context_settings=CONTEXT)
@click.argument("run", type=PlaceType(), required=False)
@run_options
@verb
def plan(*, config: Path, run: Place | None, run_dir: Place, overrides: tuple[str, ...]) -> int:
    """Say what every step of the job would do with this config, or why it would refuse.

    The same as 'run-rounds --dry-run': writes nothing; exit 1 if a step would refuse. RUN is the
    same as --run-dir.

    Example: inspect-shards plan runs/demo --config stages.yaml
    """
    run_dir = _one_run(run, run_dir)
    options = ["--config", str(config), "--run-dir", str(run_dir), "--dry-run"]
    options += [part for override in overrides for part in ("--set", override)]
    # By its entry point, since the floors above are not imported here.
    (found,) = entry_points(group="console_scripts", name="run-rounds")
    found.load().main(options, prog_name="inspect-shards plan")
    return 0


def _one_run(run: Place | None, run_dir: Place) -> Place:
    """Give the run that is meant by RUN or --run-dir; two different ones are unusable arguments."""
    source = click.get_current_context().get_parameter_source("run_dir")
    given = source is not None and source is not click.core.ParameterSource.DEFAULT
    if run is not None and given and run.resolve() != run_dir.resolve():
        raise click.UsageError(f"expected one run, found RUN {run} and --run-dir {run_dir}")
    return run_dir if run is None else run


@click.command(context_settings=CONTEXT)
@RUN
@verb
def failures(*, run: Place) -> int:
    """List the failed items of a run or a store: item, stage, reason, attempts.

    Of a run these are those of all stages, of trainings and of evaluations.

    Example: inspect-shards failures runs/demo
    """
    from pipeline import status as stages

    found = stages.failures_of(run)
    if found:
        rows = [[f.item, f.stage, f.reason, f.attempts] for f in found]
        print_table("failed items", ["item", "stage", "reason", "attempts"], rows)
    click.echo(f"{len(found)} failed items")
    return 0


COMMANDS = (status, plan, failures)
"""What `inspect-shards` takes over."""
