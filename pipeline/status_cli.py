"""The verbs of inspect-shards that say how far a run is: status, plan, failures, retry-failed."""

from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import click

from pipeline.commands import CONTEXT, EXIT_ERROR, PlaceType, print_table, run_options, verb
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


@click.command(context_settings=CONTEXT)
@run_options
@verb
def plan(*, config: Path, run_dir: Place, overrides: tuple[str, ...]) -> int:
    """Say what every stage would do with this config, or why it would refuse; write nothing.

    Asks each stage's command with --dry-run; exit 1 if one would refuse.

    Example: inspect-shards plan --config stages.yaml --run-dir runs/demo
    """
    from pipeline import status as stages

    common = ["--config", str(config), "--run-dir", str(run_dir), "--dry-run"]
    common += [part for override in overrides for part in ("--set", override)]
    verbs = ["sam-candidates", *(stage.verb for stage in stages.run_status(run_dir))]
    return max(_dry_run(name, common) for name in dict.fromkeys(verbs))


def _dry_run(command: str, common: list[str]) -> int:
    """Ask a stage's command what it would do; give its exit code."""
    name, *options = command.split()
    (found,) = entry_points(group="console_scripts", name=name)
    click.echo(f"{command}:")
    try:
        found.load().main([*options, *common], prog_name=name)
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@click.command(context_settings=CONTEXT)
@RUN
@verb
def failures(*, run: Place) -> int:
    """List the failed items of a run or a store: item, stage, reason, attempts.

    Example: inspect-shards failures runs/demo
    """
    from pipeline import status as stages

    found = stages.failures_of(run)
    if found:
        rows = [[f.item, f.stage, f.reason, f.attempts] for f in found]
        print_table("failed items", ["item", "stage", "reason", "attempts"], rows)
    click.echo(f"{len(found)} failed items")
    return 0


@click.command(context_settings=CONTEXT)
@RUN
@verb
def retry_failed(*, run: Place) -> int:
    """Let the shards that hold failed items be made again by the stages' next run.

    Example: inspect-shards retry-failed runs/demo
    """
    from pipeline import audit

    for store in audit.find_stores(run):
        states = [state.state for state in audit.repair(store, failed=True)]
        counts = (
            f"{states.count('failed')} shards with failed items, {states.count('damaged')} damaged"
        )
        click.echo(f"{store}: {counts}" + (f"; run '{audit.verb_of(store)}'" if states else ""))
    return 0


COMMANDS = (status, plan, failures, retry_failed)
"""What `inspect-shards` takes over."""
