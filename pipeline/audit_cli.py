"""The verbs of inspect-shards that hash what a run holds: verify, repair, retry-failed."""

from typing import TYPE_CHECKING

import click

from pipeline.commands import CONTEXT, EXIT_ERROR, PlaceType, verb
from pipeline.places import Place

if TYPE_CHECKING:
    from pipeline.file_audit import Report

THREADS = click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Shards that are read at a time; the report does not depend on it. By default one per "
    "core on a disk, since hashing takes a core (more may help a network's), and 8 of an object "
    "store, since there it is the waiting that takes the time; its shards are held in memory.",
)


@click.command(context_settings=CONTEXT)
@click.argument("path", type=PlaceType("folder"))
@THREADS
@verb
def verify(*, path: Place, threads: int | None) -> int:
    """Compare every file of a run with its recorded hash; exit 1 if one is damaged.

    Of a run directory this is the manifest, all stores and all finished students; shards and
    students that are not made yet are named, but are no damage.
    """
    from pipeline import audit

    damaged = False
    for report in audit.verify_all(path, threads):
        _print_problems(report)
        click.echo(f"{report.place}: {report.intact} of {report.total} {report.unit} intact")
        damaged = damaged or report.damaged
    return EXIT_ERROR if damaged else 0


@click.command(context_settings=CONTEXT)
@click.argument("path", type=PlaceType("folder"))
@click.option(
    "--failed", is_flag=True, help="Let shards that contain failed items be made again, too."
)
@THREADS
@verb
def repair(*, path: Place, failed: bool, threads: int | None) -> int:
    """Delete damaged shards, so that running the stage again makes just them anew.

    Of a run directory the manifest and the students are looked at, too: what is damaged of them is
    named with the command that makes it anew, and the exit code is 1 until that was run.
    """
    from pipeline import audit

    for store in audit.stores_of_any_run(path):
        dropped = audit.repair(store, failed=failed, threads=threads)
        states = [state.state for state in dropped]
        counts = f"{states.count('damaged')} damaged shards removed"
        if failed:
            counts += f", {states.count('failed')} with failed items to be tried again"
        click.echo(f"{store}: {counts}" + (f"; run '{audit.verb_of(store)}'" if states else ""))
    remaining = [report for report in audit.verify_unsharded(path, threads) if report.damaged]
    for report in remaining:
        _print_problems(report)
    return EXIT_ERROR if remaining else 0


def _print_problems(report: "Report") -> None:
    for problem in report.problems:
        click.echo(f"{report.place}: {problem}")
    if report.advice:
        click.echo(f"{report.place}: {report.advice}")


@click.command(context_settings=CONTEXT)
@click.argument("run", type=PlaceType("folder"))
@THREADS
@verb
def retry_failed(*, run: Place, threads: int | None) -> int:
    """Let the shards that hold failed items be made again by the stages' next run.

    Example: inspect-shards retry-failed runs/demo
    """
    from pipeline import audit

    for store in audit.find_stores(run):
        dropped = audit.repair(store, failed=True, threads=threads)
        states = [state.state for state in dropped]
        counts = (
            f"{states.count('failed')} shards with failed items, {states.count('damaged')} damaged"
        )
        click.echo(f"{store}: {counts}" + (f"; run '{audit.verb_of(store)}'" if states else ""))
    return 0


HASHING = (verify, repair, retry_failed)
"""What `inspect-shards` takes over."""
