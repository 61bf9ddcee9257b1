"""The verbs of the ground floor: prepare-data, sam-candidates, inspect-shards."""

from pathlib import Path
from typing import Any

import click

from pipeline.audit_cli import HASHING
from pipeline.budget import Budget
from pipeline.commands import (
    CONTEXT,
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
from pipeline.named_files import refuse_missing
from pipeline.option_sections import SectionCommand
from pipeline.places import Place
from pipeline.prepare_summary import refuse_data_left_out
from pipeline.records import run_lock
from pipeline.status_cli import COMMANDS
from pipeline.verb_options import BudgetType


@click.command(cls=SectionCommand, context_settings=CONTEXT)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="N",
    help="The first N images of every split, for trials; all of them then need --force.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes that generate scenes; the result does not depend on it.",
)
@click.option(
    "--max-failures",
    type=BudgetType(),
    metavar="N|P%",
    help="End with exit code 1 when more than this was left out, a share of images, objects and "
    "expressions together; the manifest is written.",
)
@click.option("--dry-run", is_flag=True, help="Check config and inputs; write nothing.")
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
    max_failures: Budget | None,
    dry_run: bool,
    force: bool,
) -> int:
    """Read a data set and write RUN_DIR/manifest.

    Example: prepare-data --config recipes/photos.yaml --run-dir runs/photos
    """
    settings = Settings(config, run_dir, overrides)
    run_dir, data = settings.run_dir, settings.section("data", DataConfig)
    from pipeline import prepare
    from pipeline.prepare_plan import plan_data

    if dry_run:
        refuse_missing({f"data.{name}": path for name, path in data.input_files().items()})
        found = plan_data(data, run_dir, limit=limit)
        state = "to do" if found is None else f"done, {found}"
        click.echo(f"data: reader {data.reader!r} -> {run_dir / 'manifest'}; {state}")
        return 0
    options: dict[str, Any] = {"limit": limit, "force": force, "workers": workers}
    with run_lock(run_dir), prepare.progress_bar() as progress:
        summary = prepare.prepare_data(data, run_dir, **options, progress=progress)
    click.echo(str(summary))
    failures, notes = prepare.read_failures(run_dir)
    for note in notes[:MAX_FAILURES_SHOWN]:
        click.echo(f"converted: {note.item}: {note.reason}", err=True)
    code = report_failures(failures)
    refuse_data_left_out(summary, run_dir, max_failures)
    return code


@click.command(cls=SectionCommand, context_settings=CONTEXT)
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
    from pipeline.candidate_config import CandidatesConfig

    settings = Settings(config, run_dir, overrides)
    run_dir, section = settings.run_dir, settings.section("candidates", CandidatesConfig)
    refuse_missing({f"candidates.{name}": path for name, path in section.input_files().items()})
    from pipeline import candidate_difference  # these import torch, which takes seconds
    from pipeline import candidate_stage as stage

    if difference is not None:
        facts = candidate_difference.measure_difference(section, run_dir, difference)
        print_facts(f"{section.model}: fast against reference", facts)
        return 0
    plan = stage.plan_candidates(section, run_dir)
    click.echo(f"{section.model}: sha256 {plan.decides['source_sha256']}")
    if dry_run:
        return print_plan(plan, limit, stage.VERB, engine, force=force)
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
    """Print what the manifest holds; arrays, bytes, shards and failed items of every store."""
    from pipeline import audit, prepare_summary, run_contents

    if (counts := prepare_summary.counts_of_run(path)) is not None:
        click.echo(counts)
    for store in run_contents.stores_of_run(path):
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
@click.option(
    "--candidate",
    "candidates",
    type=click.IntRange(min=0),
    multiple=True,
    metavar="N",
    help="Of candidates.zarr: candidate of each row, from 0; may be repeated. Without it the two "
    "of the best predicted IoU.",
)
@OUT
@verb
def show(*, path: Place, rows: tuple[int, ...], candidates: tuple[int, ...], out: Path) -> int:
    """Draw rows of a store as a PNG, each with what is known of it.

    A label is drawn with the teacher's probability and the candidates that it was made of, its
    weight and the truth, where they are there; a teacher's row with the outline of its mask.

    Example: inspect-shards show runs/demo/round-1/labels.zarr --row 3 --out labels.png

    Example: inspect-shards show runs/demo/candidates.zarr --row 5 --candidate 7 --out c.png
    """
    from pipeline import inspection

    inspection.save_rows(path, list(rows) or [0], out, candidates)
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

    Rows that failed or are not written yet are left out. In COCO, image_id is the row of the
    manifest; your own ids are dataset_image_id of every image and dataset_object_id of every label;
    row is the row that show --row draws.

    Example: inspect-shards export runs/demo/round-1/labels.zarr --format coco --out labels.json
    """
    from pipeline import export as exports

    if kind == "coco":
        click.echo(f"{out}: {exports.export_coco(path, out, list(rows) or None)} annotations")
    else:
        click.echo(f"{out}: {exports.export_html(path, out, list(rows) or None)} rows")
    return 0


for command in (*HASHING, *COMMANDS):
    inspect_shards.add_command(command)
