"""What all verbs share: their options, errors as one line, exit codes, the summary table.

Exit codes: 0 done; 1 refused, or stopped by an error that one line names; 2 unusable arguments;
3 done, but some items failed; 75 interrupted: run the same command again to go on.
"""

import functools
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import click
from rich.console import Console
from rich.table import Table
from upath import UPath

from pipeline import stopping
from pipeline.config import load_document, parse_config
from pipeline.disk_errors import line_of, system_error
from pipeline.engines import Engine
from pipeline.errors import SemiresError
from pipeline.locks import run_lock
from pipeline.places import Place, reaching, redacted
from pipeline.preparation import growth_of, refuse_force_of_a_part
from pipeline.records import FailedItem, Plan
from pipeline.runner import Replace, StageSummary, check_plan, pending_shards, shards_of
from pipeline.verb_options import DiskFile as DiskFile
from pipeline.verb_options import PlaceType as PlaceType
from pipeline.verb_options import engine_options as engine_options
from pipeline.verb_options import run_options as run_options
from pipeline.verb_options import stage_options as stage_options

EXIT_ERROR, EXIT_FAILED_ITEMS, EXIT_INTERRUPTED = 1, 3, 75
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
MAX_FAILURES_SHOWN = 20

C = TypeVar("C")
Verb = Callable[..., int]


class Settings:
    """The config file and run directory of one command; sections are parsed when asked for."""

    def __init__(self, config: Path, run_dir: Place, overrides: tuple[str, ...]) -> None:
        self.config = config
        self.run_dir = run_dir.resolve()  # workers may have started elsewhere
        self._sections = load_document(config, overrides)

    def given(self, name: str) -> Mapping[str, Any]:
        """Give what the file and `--set` say in one section, unparsed."""
        return self._sections[name]

    def section(self, name: str, cls: type[C]) -> C:
        """Parse one section of stages.yaml into its dataclass."""
        return parse_config(cls, self._sections[name], f"{self.config}: {name}")


def verb(function: Verb) -> Callable[..., None]:
    """Turn a function that returns an exit code into a command's body.

    Known errors, and what the operating system refuses, become one line on stderr and exit 1, an
    interruption exit 75; anything else keeps its traceback, but for credentials in it. SIGTERM
    lets a stage finish the shards that it is at; ctrl-C, or a second SIGTERM, ends it at once.
    """

    @functools.wraps(function)
    def wrapped(**arguments: Any) -> NoReturn:
        signal.signal(signal.SIGTERM, _interrupt)
        try:
            with _reaching_all(arguments):
                code = function(**arguments)
        except SemiresError as error:
            # An error of a loading process arrives with its traceback; its last line is the error.
            message = str(error).strip().splitlines()[-1].removeprefix("pipeline.errors.")
            click.echo(f"error: {redacted(message)}", err=True)
            code = EXIT_ERROR
        except KeyboardInterrupt as error:
            click.echo(
                f"{str(error) or 'interrupted'}; run the same command again to go on", err=True
            )
            code = EXIT_INTERRUPTED
        except BrokenPipeError:  # whoever read our output has seen enough; click's to handle
            raise
        except Exception as error:
            refused = system_error(error)
            if refused is not None:
                told = f"error: {redacted(line_of(refused, _about(arguments)))}"
            elif (told := redacted(whole := traceback.format_exc())) == whole:
                raise
            click.echo(told, err=True)
            code = EXIT_ERROR
        sys.exit(code)

    return wrapped


def _about(arguments: Mapping[str, Any]) -> object:
    """Give the run, store or file that a command is about; None if it has none."""
    return next((arguments[name] for name in ("run_dir", "run", "path") if name in arguments), None)


@contextmanager
def _reaching_all(arguments: Mapping[str, Any]) -> Iterator[None]:
    """Turn trouble with the object stores that a command is about into one line each."""
    with ExitStack() as stack:
        for value in arguments.values():
            if isinstance(value, UPath):
                stack.enter_context(reaching(value))
        yield


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    if not stopping.request():
        raise KeyboardInterrupt
    # Not by a buffered stream, which the signal may have interrupted.
    os.write(2, b"finishing the shards that are begun; once more to stop at once\n")


def force_to_replace(force: bool) -> Replace:
    """Turn --force of a stage into what the runner knows: make it anew, whatever is there."""
    return "always" if force else "never"


def locked(run_dir: Place, function: Callable[[], C], engine: Engine | None = None) -> C:
    """Run a function while holding the run directory, alone or as one part of a static run."""
    with run_lock(run_dir, None if engine is None else engine.part):
        return function()


def print_plan(
    plan: Plan, limit: int | None, made_by: str, engine: Engine, *, force: bool = False
) -> int:
    """Say what a stage would do, or that it would refuse (--dry-run); give the exit code.

    Args:
        plan: Of the stage.
        limit: As `run_stage` takes it.
        made_by: The verb, for messages.
        engine: Which shards are this process's: of a static run only those of its part.
        force: Whether the store would be made anew, whatever is there.
    """
    wanted = range(plan.num_shards if limit is None else shards_of(plan, limit))
    try:
        if not force:
            check_plan(plan, made_by)
        elif engine.part is not None:
            refuse_force_of_a_part(plan, made_by)
    except SemiresError as error:
        click.echo(f"would refuse: {redacted(str(error))}")
        if not force:
            click.echo(f"with --force: all {len(wanted)} shards")
        return EXIT_ERROR
    grown = None if force else growth_of(plan)
    kept = set() if grown is None else set(grown.kept)
    todo = list(wanted)
    if not force:
        todo = [shard for shard in pending_shards(plan) if shard in wanted and shard not in kept]
    mine = [shard for shard in todo if engine.takes(shard)]
    part = "" if engine.part is None else f" in this part, of {len(todo)}"
    click.echo(
        f"{plan.stage}: {plan.num_items} {plan.unit} in {plan.num_shards} shards of "
        f"{plan.shard_size}; {len(mine)} to do{part} -> {plan.store}"
    )
    if grown is not None:
        click.echo(f"grows from {grown.items} {plan.unit}; {len(kept)} whole shards are kept")
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
    """Name the first failed items on stderr, and where all are listed; give the exit code."""
    for failure in failures[:MAX_FAILURES_SHOWN]:
        click.echo(redacted(f"failed: {failure.item}: {failure.reason}"), err=True)
    more = len(failures) - MAX_FAILURES_SHOWN
    if more > 0:
        click.echo(
            f"and {more} more; 'inspect-shards failures {_run_of_command()}' lists all", err=True
        )
    return EXIT_FAILED_ITEMS if failures else 0


def _run_of_command() -> str:
    """Give the run, or the store, that the command of now is about, as it was given."""
    context = click.get_current_context(silent=True)
    return str((None if context is None else _about(context.params)) or "RUN")


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
