"""The verbs of the ground floor: prepare-data, sam-candidates, inspect-shards."""

from pathlib import Path
from typing import Any

import click

from pipeline.commands import (
    CONTEXT,
    EXIT_ERROR,
    MAX_FAILURES_SHOWN,
    DiskFile,
    PlaceType,
    Settings,
    finish_stage,
    force_to_replace,
    locked,
    print_facts,
    print_plan,
    print_table,
    report_failures,
    run_options,
    stage_options,
    verb,
)
from pipeline.data_config import DataConfig
from pipeline.engines import Engine
from pipeline.places import Place
from pipeline.records import run_lock
from pipeline.status_cli import COMMANDS


@click.command(context_settings=CONTEXT)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="The first N images only.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes that generate scenes; the result does not depend on it.",
)
@click.option("--dry-run", is_flag=True, help="Check the config; write nothing.")
@click.option(
    "--force", is_flag=True, help="Replace a manifest of another config or of other images."
)
@run_options
@verb
def prepare_data(
    *,
    config: Path,
    run_dir: Place,
    overrides: tuple[str, ...],
    limit: int | None,
    workers: int,
    dry_run: bool,
    force: bool,
) -> int:
    """Read a data set and write RUN_DIR/manifest.

    Example: prepare-data --config recipes/photos.yaml --run-dir runs/photos
    """
    from pipeline import prepare

    settings = Settings(config, run_dir, overrides)
    run_dir, data = settings.run_dir, settings.section("data", DataConfig)
    if dry_run:
        click.echo(f"data: reader {data.reader!r} -> {run_dir / 'manifest'}")
        return 0
    options: dict[str, Any] = {"limit": limit, "force": force, "workers": workers}
    with run_lock(run_dir), prepare.progress_bar() as progress:
        summary = prepare.prepare_data(data, run_dir, **options, progress=progress)
    click.echo(str(summary))
    failures, notes = prepare.read_failures(run_dir)
    for note in notes[:MAX_FAILURES_SHOWN]:
        click.echo(f"converted: {note.item}: {note.reason}", err=True)
    return report_failures(failures)


@click.command(context_settings=CONTEXT)
@click.option(
    "--difference",
    type=click.IntRange(min=1),
    metavar="N",
    help="Write nothing; make the first N images' candidates by the profiles reference and fast, "
    "and say how they differ.",
)
@stage_options
@verb
def sam_candidates(
    *,
    config: Path,
    run_dir: Place,
    overrides: tuple[str, ...],
    limit: int | None,
    engine: Engine,
    dry_run: bool,
    force: bool,
    difference: int | None,
) -> int:
    """Compute SAM's candidate masks of every training image into RUN_DIR/candidates.zarr.

    The costly pass, done once for all rounds and strategies. With model `imported` the masks are
    read from files instead: COCO RLE JSON, segment-anything's own output, SemiRES's, or npz.

    Example: sam-candidates --workers 2 --set candidates.model=vit_tiny_demo

    Example: sam-candidates --set candidates.model=imported
    --set 'candidates.masks={format: coco, path: masks.json}'
    """
    from pipeline import candidate_difference
    from pipeline import candidate_stage as stage
    from pipeline.candidate_config import CandidatesConfig

    settings = Settings(config, run_dir, overrides)
    run_dir, section = settings.run_dir, settings.section("candidates", CandidatesConfig)
    if difference is not None:
        facts = candidate_difference.measure_difference(section, run_dir, difference)
        print_facts(f"{section.model}: fast against reference", facts)
        return 0
    plan = stage.plan_candidates(section, run_dir)
    click.echo(f"{section.model}: sha256 {plan.decides['source_sha256']}")
    if dry_run:
        return print_plan(plan, limit, stage.VERB)
    summary = locked(
        run_dir,
        lambda: stage.sam_candidates(
            section,
            run_dir,
            engine=engine,
            limit=limit,
            replace=force_to_replace(force),
            plan=plan,
        ),
        engine,
    )
    return finish_stage(summary, candidate_facts(summary.counters))


def candidate_facts(counters: dict[str, float]) -> dict[str, Any]:
    """Give the means that the summary table shows."""
    images = counters.get("images", 0)
    if not images:
        return {}
    return {
        "candidates per image": counters["candidates"] / images,
        "cells per image": counters["cells"] / images,
        "share of pixels covered": counters["covered_share"] / images,
        "images without candidates": int(counters["images_without_candidates"]),
        "candidates dropped": int(counters["candidates_dropped"]),
        "images scaled to the canvas": int(counters.get("images_scaled", 0)),
    }


@click.group(context_settings=CONTEXT)
def inspect_shards() -> None:
    """Look into, export, verify and repair the stores of a run, and say what is to be done.

    PATH is a .zarr folder or, for summary, verify and repair, a run directory; RUN is one.

    Example: inspect-shards summary runs/demo
    """


PATH = click.argument("path", type=PlaceType("folder"))
ROWS = click.option(
    "--row",
    "rows",
    type=click.IntRange(min=0),
    multiple=True,
    metavar="N",
    help="Row of the store, from 0; may be repeated. Without it: show row 0, export all rows as "
    "COCO or the first 8 as HTML.",
)
OUT = click.option(
    "--out",
    type=DiskFile(),
    required=True,
    help="File to write; it is replaced if it is there, and its folder is made.",
)


@inspect_shards.command(context_settings=CONTEXT)
@PATH
@verb
def summary(*, path: Place) -> int:
    """Print arrays, bytes, finished shards and failed items of every store."""
    from pipeline import audit

    for store in audit.find_stores(path):
        facts = audit.describe(store)
        arrays = facts.pop("arrays")
        failures = facts.pop("failures")
        per_item = sum(row[-1] for row in arrays) / max(1, facts["items"])
        print_facts(
            str(store), {**facts, "failed items": len(failures), "bytes per item": per_item}
        )
        print_table("arrays", ["array", "type", "shape", "chunk", "stored bytes"], arrays)
        report_failures(tuple(failures))
    return 0


@inspect_shards.command(context_settings=CONTEXT)
@PATH
@ROWS
@OUT
@verb
def show(*, path: Place, rows: tuple[int, ...], out: Path) -> int:
    """Draw rows of a store as a PNG.

    Example: inspect-shards show runs/demo/round-1/labels.zarr --row 3 --out labels.png
    """
    from pipeline import inspection

    inspection.save_rows(path, list(rows) or [0], out)
    click.echo(str(out))
    return 0


@inspect_shards.command(context_settings=CONTEXT)
@PATH
@click.option(
    "--format",
    "kind",
    type=click.Choice(["coco", "html"]),
    default="coco",
    show_default=True,
    help="COCO annotations with RLE masks, or a page with pictures.",
)
@ROWS
@OUT
@verb
def export(*, path: Place, kind: str, rows: tuple[int, ...], out: Path) -> int:
    """Write a store as COCO RLE JSON, or rows of it as one HTML page.

    Rows that failed or are not written yet are left out.

    Example: inspect-shards export runs/demo/round-1/labels.zarr --format coco --out labels.json
    """
    from pipeline import export as exports

    if kind == "coco":
        click.echo(f"{out}: {exports.export_coco(path, out, list(rows) or None)} annotations")
    else:
        click.echo(f"{out}: {exports.export_html(path, out, list(rows) or None)} rows")
    return 0


@inspect_shards.command(context_settings=CONTEXT)
@PATH
@verb
def verify(*, path: Place) -> int:
    """Compare every file of a run with its recorded hash; exit 1 if one is damaged.

    Of a run directory this is the manifest, all stores and all finished students; shards and
    students that are not made yet are named, but are no damage.
    """
    from pipeline import audit

    reports = audit.verify_all(path)
    for report in reports:
        for problem in report.problems:
            click.echo(f"{report.place}: {problem}")
        click.echo(f"{report.place}: {report.intact} of {report.total} {report.unit} intact")
    return EXIT_ERROR if any(report.damaged for report in reports) else 0


@inspect_shards.command(context_settings=CONTEXT)
@PATH
@click.option(
    "--failed", is_flag=True, help="Let shards that contain failed items be made again, too."
)
@verb
def repair(*, path: Place, failed: bool) -> int:
    """Delete damaged shards, so that running the stage again makes just them anew."""
    from pipeline import audit

    for store in audit.find_stores(path):
        states = [state.state for state in audit.repair(store, failed=failed)]
        counts = f"{states.count('damaged')} damaged shards removed"
        if failed:
            counts += f", {states.count('failed')} with failed items to be tried again"
        click.echo(f"{store}: {counts}" + (f"; run '{audit.verb_of(store)}'" if states else ""))
    return 0


for command in COMMANDS:
    inspect_shards.add_command(command)
