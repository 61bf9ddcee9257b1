"""The verb import-weights."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.commands import CONTEXT, DiskFile, Settings, run_options, verb
from pipeline.option_sections import SectionCommand
from pipeline.places import Place, is_local
from train.published.layouts import LAYOUTS
from train.published.tables import ignored_lines, mapped_lines

if TYPE_CHECKING:  # its import loads torch, which --help does without
    from train.import_weights import Surveyed

MAX_NAMES = 3
"""Missing tensors that are named."""


@click.command(cls=SectionCommand, context_settings=CONTEXT)
@click.argument("path", required=False)
@click.option(
    "--from", "layout", type=click.Choice(list(LAYOUTS)),
    help="What kind of file it is; told by its names if left out, but for a BERT on the hub.",
)  # fmt: skip
@click.option(
    "--out", type=DiskFile(), metavar="FILE",
    help="The safetensors file to write.  [default: RUN_DIR/weights/KIND.safetensors]",
)  # fmt: skip
@click.option(
    "--resize-position-tables", "resize", is_flag=True,
    help="Interpolate Swin's position tables (bicubic) where the window is another.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Read and compare; write nothing.")
@click.option("--force", is_flag=True, help="Replace the file that is there.")
@run_options
@verb
def import_weights(
    *,
    config: Path,
    run_dir: Place,
    overrides: tuple[str, ...],
    path: str | None,
    layout: str | None,
    out: Path | None,
    resize: bool,
    dry_run: bool,
    force: bool,
) -> int:
    """Turn published weights into ours: LAVT, SemiRES, Microsoft's Swin, BERT.

    PATH is a .pth, a .safetensors, a folder that transformers saved or, with --from bert, a name
    on the hub. Every tensor is mapped, left out for a stated reason, or an error. Nothing in the
    file is executed. docs/weights.md has the maps.

    Example: import-weights --from swin swin_base_patch4_window12_384_22k.pth
    """
    from train.presets import train_section

    settings = Settings(config, run_dir, overrides)
    section = train_section(settings)
    if path is None:
        raise click.UsageError("PATH is missing: the published file, e.g. refcoco.pth")
    from train.import_weights import survey_published, write_imported

    surveyed = survey_published(section.network, path, layout, resize_tables=resize)
    print_survey(surveyed)
    if out is None and not is_local(settings.run_dir):
        raise click.UsageError("--out is missing: weights are written to a disk")
    folder = Path(settings.run_dir / "weights") if is_local(settings.run_dir) else Path()
    target = out or folder / f"{surveyed.layout}.safetensors"
    if dry_run and surveyed.refused is None:
        click.echo(f"would write {target}")
        return 0
    sha256 = write_imported(surveyed, target, replace=force)
    click.echo(f"wrote {target}: {len(surveyed.survey.placed)} tensors, sha256 {sha256}")
    return 0


def print_survey(surveyed: "Surveyed") -> None:
    """Print what became of every tensor: mapped, left out, missing; then what is worth knowing."""
    result = surveyed.survey
    click.echo(f"{surveyed.published.path}: {LAYOUTS[surveyed.layout].title}")
    for title, lines in (("mapped", mapped_lines(result)), ("left out", ignored_lines(result))):
        click.echo("\n".join([f"{title}:", *(lines or ["  nothing"])]))
    missing = [problem.text for problem in result.problems if problem.kind == "missing"]
    shown = f": {', '.join(missing[:MAX_NAMES])}" if missing else ""
    click.echo(f"missing: {len(missing)}{shown}{', ...' if len(missing) > MAX_NAMES else ''}")
    if surveyed.untouched:
        click.echo(f"not in such a file, so as initialised: {', '.join(surveyed.untouched)}")
    for note in result.notes:
        click.echo(f"note: {note}")
