"""The options that the verbs share: which run, how much of it, where it runs."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import click

from pipeline.budget import Budget, parse_budget
from pipeline.dask_clusters import refuse_credentials
from pipeline.engines import ENGINES, Engine
from pipeline.errors import SemiresError
from pipeline.locks import Part
from pipeline.option_sections import SectionOption
from pipeline.places import Place, is_local, is_url, place, reaching, redacted

_run_option = functools.partial(click.option, cls=SectionOption, section="The run")
_stage_option = functools.partial(click.option, cls=SectionOption, section="How much of it")
_engine_option = functools.partial(click.option, cls=SectionOption, section="Where and how it runs")


class DiskFile(click.Path):
    """A file on a disk, for what a command writes beside a run; a URL is refused, and not repeated.

    Args:
        advice: What to do instead of giving a URL.
        dir_okay: Whether to leave it to the command to refuse a folder.
    """

    def __init__(
        self, advice: str = "copy the file there after", *, dir_okay: bool = False
    ) -> None:
        super().__init__(dir_okay=dir_okay, path_type=Path)
        self._advice = advice

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Turn a text into a path."""
        if is_url(str(value)):
            self.fail(f"expected a path on a disk, found a URL; {self._advice}", param, ctx)
        return super().convert(value, param, ctx)


class PlaceType(click.ParamType["Place"]):
    """A path or a URL of an object store.

    Args:
        exists: Whether it has to be there: as a "folder" or a "file"; None does not look.
    """

    name = "place"

    def __init__(self, exists: Literal["folder", "file"] | None = None) -> None:
        self._exists = exists

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Place:
        """Turn a text into a place; what cannot be one is an unusable argument."""
        try:
            found = place(value) if isinstance(value, str) else value
            if not is_local(found) and found.protocol == "memory":
                self.fail("memory:// ends with the command; give a path or another URL", param, ctx)
            with reaching(found):
                there = self._exists is None or (
                    found.is_dir() if self._exists == "folder" else found.is_file()
                )
        except SemiresError as error:
            self.fail(redacted(str(error)), param, ctx)
        if not there:
            self.fail(f"expected a {self._exists} at {found}, found none", param, ctx)
        if is_local(found) and found.name in ("", ".."):  # "." and "..": stages need a name
            found = found.resolve()
        return cast("Place", found)


class BudgetType(click.ParamType["Budget"]):
    """How many failed items there may be, as `parse_budget` reads it."""

    name = "budget"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Budget:
        """Turn a text into a budget."""
        if isinstance(value, Budget):
            return value
        try:
            return parse_budget(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def run_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --config, --run-dir, --set: which run a command is about."""
    for option in (
        _run_option(
            "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE",
            help="Replace one value of the config; the value is YAML. May be repeated.",
        ),
        _run_option(
            "--run-dir", type=PlaceType(), default="runs/demo", metavar="PATH|URL",
            show_default=True,
            help="Where everything of the run lies: a folder, or a URL such as s3://bucket/runs/a.",
        ),
        _run_option(
            "--config", type=DiskFile("copy the file to a disk", dir_okay=True),
            default=Path("stages.yaml"), show_default=True, help="Values of all stages.",
        ),
    ):  # fmt: skip
        function = option(function)
    return function


def stage_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add what every stage takes: --limit, --dry-run, --force, how to run it, and on which run.

    The function gets `limit`, `dry_run`, `force`, and what `engine_options` and `run_options` give.
    """
    wrapped = engine_options(function)
    for option in (
        _stage_option("--force", is_flag=True, help="Make it anew, whatever is there."),
        _stage_option(
            "--dry-run", is_flag=True, help="Say what would be done and why; write nothing."
        ),
        _stage_option(
            "--limit", type=click.IntRange(min=1), metavar="N",
            help="Work on the first N items only (whole shards).",
        ),
    ):  # fmt: skip
        wrapped = option(wrapped)
    return run_options(wrapped)


def engine_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of how to run; the function gets an `engine` made of them."""

    @functools.wraps(function)
    def with_engine(*positional: Any, **arguments: Any) -> Any:
        given = {name: arguments.pop(name) for name in ENGINE_OPTIONS}
        return function(*positional, engine=_engine(**given), **arguments)

    wrapped: Callable[..., Any] = with_engine
    for option in (
        _engine_option(
            "--max-failures", type=BudgetType(), metavar="N|P%",
            help="Stop, with exit code 1, when more items of a stage than this have failed; in "
            "run-rounds also those that prepare-data, a training or an evaluation left out.",
        ),
        _engine_option(
            "--max-shard-seconds", type=float, metavar="S",
            help="End the process of a shard that takes longer to compute, and try again; an item "
            "that hangs is isolated as one that crashes.",
        ),
        _engine_option(
            "--lifetime", metavar="TIME",
            help="How long a SLURM worker takes tasks, e.g. 55m; nine tenths of its walltime by "
            "default.",
        ),
        _engine_option(
            "--num-shards", type=click.IntRange(min=1), metavar="N",
            help="For the static engine: into how many parts the stage is split.",
        ),
        _engine_option(
            "--shard-index", type=click.IntRange(min=0), metavar="I",
            help="For the static engine: the part to do, from 0.",
        ),
        _engine_option(
            "--engine", type=click.Choice(list(ENGINES)),
            help="Where to run; by default what the other options say: this process, --workers, "
            "--cluster, or --shard-index.",
        ),
        _engine_option(
            "--cluster", metavar="ADDRESS",
            help="Run on the Dask scheduler at this address, e.g. tcp://host:8786.",
        ),
        _engine_option(
            "--workers", type=click.IntRange(min=1), default=1, show_default=True, metavar="N",
            help="Local processes, or SLURM jobs; results do not depend on it.",
        ),
    ):  # fmt: skip
        wrapped = option(wrapped)
    return wrapped


ENGINE_OPTIONS = (
    "engine", "workers", "cluster", "shard_index", "num_shards", "lifetime", "max_failures",
    "max_shard_seconds",
)  # fmt: skip


def _engine(
    *,
    engine: str | None,
    shard_index: int | None,
    num_shards: int | None,
    **others: Any,
) -> Engine:
    """Make an engine of its options; what does not fit together is an unusable argument."""
    if engine == "static" and (shard_index is None or num_shards is None):
        raise click.UsageError(
            "--shard-index and --num-shards go with --engine static, which needs both: which part "
            "this process does, from 0, and of how many"
        )
    if (shard_index is None) != (num_shards is None):
        raise click.UsageError("--shard-index and --num-shards need each other")
    part = None
    if shard_index is not None and num_shards is not None:
        part = Part(shard_index, num_shards)
    if others["cluster"] is not None:
        try:
            refuse_credentials(others["cluster"])
        except SemiresError as error:
            raise click.UsageError(str(error)) from error
    try:
        return Engine(name=engine, part=part, **others)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
