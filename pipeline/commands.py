"""What all verbs share: their options, errors as one line, exit codes, the summary table.

Exit codes: 0 done, 1 refused (one line says why), 2 unusable arguments, 3 done but some items
failed, 75 interrupted: run the same command again to go on.
"""

import functools
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import click
from rich.console import Console
from rich.table import Table

from pipeline.config import load_document, parse_config
from pipeline.errors import SemiresError
from pipeline.records import FailedItem, Plan, run_lock
from pipeline.runner import Replace, StageSummary, check_plan, pending_shards, shards_of

EXIT_ERROR, EXIT_FAILED_ITEMS, EXIT_INTERRUPTED = 1, 3, 75
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
MAX_FAILURES_SHOWN = 20

C = TypeVar("C")
Verb = Callable[..., int]


class Settings:
    """The config file and run directory of one command; sections are parsed when asked for."""

    def __init__(self, config: Path, run_dir: Path, overrides: tuple[str, ...]) -> None:
        self.config = config
        self.run_dir = run_dir.resolve()  # workers may have started elsewhere
        self._sections = load_document(config, overrides)

    def section(self, name: str, cls: type[C]) -> C:
        """Parse one section of stages.yaml into its dataclass."""
        return parse_config(cls, self._sections[name], f"{self.config}: {name}")


def run_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --config, --run-dir, --set: which run a command is about."""
    for option in (
        click.option(
            "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE",
            help="Replace one value of the config; the value is YAML. May be repeated.",
        ),
        click.option(
            "--run-dir", type=click.Path(path_type=Path), default=Path("runs/demo"),
            show_default=True, help="Where everything of the run lies.",
        ),
        click.option(
            "--config", type=click.Path(path_type=Path), default=Path("stages.yaml"),
            show_default=True, help="Values of all stages.",
        ),
    ):  # fmt: skip
        function = option(function)
    return function


def stage_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add what every stage takes: --limit, --workers, --cluster, --dry-run, --force."""
    for option in (
        click.option("--force", is_flag=True, help="Make it anew, whatever is there."),
        click.option(
            "--dry-run", is_flag=True, help="Say what would be done and why; write nothing."
        ),
        click.option(
            "--cluster", metavar="ADDRESS",
            help="Run on the Dask scheduler at this address, e.g. tcp://host:8786.",
        ),
        click.option(
            "--workers", type=click.IntRange(min=1), default=1, show_default=True,
            help="Local processes; results do not depend on it.",
        ),
        click.option(
            "--limit", type=click.IntRange(min=1), metavar="N",
            help="Work on the first N items only (whole shards).",
        ),
    ):  # fmt: skip
        function = option(function)
    return run_options(function)


def verb(function: Verb) -> Callable[..., None]:
    """Turn a function that returns an exit code into a command's body.

    Known errors become one line on stderr and exit 1, an interruption (ctrl-C, SIGTERM) exit 75;
    anything else keeps its traceback.
    """

    @functools.wraps(function)
    def wrapped(**arguments: Any) -> NoReturn:
        signal.signal(signal.SIGTERM, _interrupt)
        try:
            code = function(**arguments)
        except SemiresError as error:
            # An error of a loading process arrives with its traceback; its last line is the error.
            message = str(error).strip().splitlines()[-1].removeprefix("pipeline.errors.")
            click.echo(f"error: {message}", err=True)
            code = EXIT_ERROR
        except KeyboardInterrupt:
            click.echo("interrupted; run the same command again to go on", err=True)
            code = EXIT_INTERRUPTED
        sys.exit(code)

    return wrapped


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def force_to_replace(force: bool) -> Replace:
    """Turn --force of a stage into what the runner knows: make it anew, whatever is there."""
    return "always" if force else "never"


def locked(run_dir: Path, function: Callable[[], C]) -> C:
    """Run a function while holding the run directory."""
    with run_lock(run_dir):
        return function()


def print_plan(plan: Plan, limit: int | None, made_by: str) -> int:
    """Say what a stage would do, or that it would refuse (--dry-run); give the exit code."""
    wanted = range(plan.num_shards if limit is None else shards_of(plan, limit))
    try:
        check_plan(plan, made_by)
    except SemiresError as error:
        click.echo(f"would refuse: {error}")
        click.echo(f"with --force: all {len(wanted)} shards")
        return EXIT_ERROR
    todo = [shard for shard in pending_shards(plan) if shard in wanted]
    click.echo(
        f"{plan.stage}: {plan.num_items} {plan.unit} in {plan.num_shards} shards of "
        f"{plan.shard_size}; {len(todo)} to do -> {plan.store}"
    )
    click.echo(f"fingerprint {plan.fingerprint[:16]}")
    return 0


def finish_stage(summary: StageSummary, rows: Mapping[str, Any] | None = None) -> int:
    """Print a stage's summary table and its failed items; give the exit code."""
    rate = summary.items_done_now / summary.seconds if summary.seconds > 0 else 0.0
    facts: dict[str, Any] = {
        summary.unit: summary.num_items,
        "shards": f"{summary.shards_done_now} done now, {summary.shards_done_before} before, "
        f"of {summary.num_shards}",
        "seconds": f"{summary.seconds:.1f}",
    }
    if summary.shards_done_now:
        facts[f"{summary.unit} per second"] = f"{rate:.1f}"
    print_facts(summary.stage, {**facts, **(rows or {})})
    return report_failures(summary.failures)


def report_failures(failures: tuple[FailedItem, ...]) -> int:
    """Name the first failed items on stderr; give the exit code."""
    for failure in failures[:MAX_FAILURES_SHOWN]:
        click.echo(f"failed: {failure.item}: {failure.reason}", err=True)
    if len(failures) > MAX_FAILURES_SHOWN:
        click.echo(f"and {len(failures) - MAX_FAILURES_SHOWN} more; see the done records", err=True)
    return EXIT_FAILED_ITEMS if failures else 0


def print_facts(title: str, facts: Mapping[str, Any]) -> None:
    """Print names and values as a table on stdout."""
    click.echo(title)  # apart from the table, which would wrap it to its own width
    table = Table(show_header=False)
    for name, value in facts.items():
        table.add_row(name, format_value(value))
    _console().print(table)


def print_table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """Print rows under column names as a table on stdout; the first column is text."""
    click.echo(title)
    table = Table()
    for position, column in enumerate(columns):
        table.add_column(column, justify="left" if position == 0 else "right")
    for row in rows:
        table.add_row(*(format_value(value) for value in row))
    _console().print(table)


def _console() -> Console:
    width = None if sys.stdout.isatty() else 110
    return Console(width=width, highlight=False)


def format_value(value: Any) -> str:
    """Give the text of a table cell; None is a dash, a float has four digits."""
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
