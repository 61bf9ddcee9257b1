"""Shell: what trainings and evaluations left in a run, told without what made them.

`round-R/student/plan.json` names the labelled images that were left out, `student.json` beside it
the samples that were skipped on the way, `round-R/metrics.json` the sentences that could not be
evaluated.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import ItemError, StoreError
from pipeline.found_values import shown
from pipeline.images import read_image
from pipeline.json_files import read_checked
from pipeline.manifest import Manifest
from pipeline.places import Place
from pipeline.records import FailedItem

_FOLD = re.compile(r"fold-(\d+)-of-(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What is recorded of the evaluation of one split."""

    metrics: Place
    """The metrics.json of its round."""
    split: str
    sentences: int
    """Those that were measured."""
    failed: tuple[FailedItem, ...]
    """Those that were not."""
    inputs: dict[str, Any]
    """Hashes of the weights and of the data that it is of."""

    @property
    def verb(self) -> str:
        """The command that makes it."""
        return f"{verb_of_evaluations(self.metrics)} --split {self.split}"


def trainings_below(path: Place) -> list[Place]:
    """List the trainings that were begun in a run directory, or in a folder of one."""
    patterns = ("round-*/student", "calibration/*/student", "fold-*/student")
    folders = [path / "student", *(found for pattern in patterns for found in path.glob(pattern))]
    return [folder for folder in folders if _begun(folder)]


def _begun(folder: Place) -> bool:
    return (folder / "plan.json").exists() or (folder / "student.json").exists()


def verb_of_training(folder: Place) -> str:
    """Name the command of a training by its folder."""
    fold = _FOLD.fullmatch(folder.parent.name)
    if fold:
        return f"train-student --fold {fold[1]}/{fold[2]}"
    return f"train-student --round {folder.parent.name.removeprefix('round-')}"


def left_out_of(folder: Place) -> list[str]:
    """List the labelled images that a training left out, since they could not be read.

    Raises:
        StoreError: If its plan is missing or damaged.
    """
    path = folder / "plan.json"
    found = read_checked(path).get("left_out", [])
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise StoreError(
            f"{path}: damaged (expected left_out as a list of images, found {shown(found)}); "
            f"delete it and run '{verb_of_training(folder)}'"
        )
    return found


def skipped_in(folder: Place) -> tuple[FailedItem, ...]:
    """List the samples that a finished training skipped (`damaged: skip`); none of another.

    Raises:
        StoreError: If its description is damaged.
    """
    path = folder / "student.json"
    if not path.exists():
        return ()
    found = read_checked(path).get("skipped", [])
    try:
        return tuple(_failed_item(entry) for entry in found)
    except TypeError as error:
        raise StoreError(
            f"{path}: damaged (expected skipped as a list of samples, found {shown(found)}); run "
            f"'{verb_of_training(folder)} --force'"
        ) from error


def still_left_out(manifest: Manifest, names: Sequence[str]) -> list[str]:
    """List those of the images that a training left out that it would leave out now."""
    return [name for name, reason in left_out_now(manifest, names).items() if reason is not None]


def left_out_now(manifest: Manifest, names: Sequence[str]) -> dict[str, str | None]:
    """Look why images that a training left out cannot be read now.

    Args:
        manifest: The data set.
        names: Of images, as `left_out_of` gives them; these are read, and no others.

    Returns:
        The reason by name, None for one that can be read; names that are not of a labelled image
        are left out.
    """
    if not names:
        return {}
    rows = {manifest.image_path[int(row)]: int(row) for row in manifest.labelled_images()}
    reasons: dict[str, str | None] = {}
    for name in filter(rows.__contains__, names):
        row, reasons[name] = rows[name], None
        try:
            path, sha256 = manifest.image_file(row), manifest.image_sha256[row]
            read_image(path, canvas=None, size=manifest.size_of(row), sha256=sha256)
        except ItemError as error:
            reasons[name] = str(error)
    return reasons


def left_out_differences(before: Sequence[str], now: Sequence[str]) -> list[str]:
    """Say in words how the images that a training left out differ from those of now.

    Args:
        before: Images that were left out.
        now: Images that would be.
    """
    mended = [name for name in before if name not in now]
    lost = [name for name in now if name not in before]
    lines = []
    if mended:
        were = "was" if len(mended) == 1 else "were"
        lines.append(f"{_images(mended)} {were} left out that can be read now{_some(mended)}")
    if lost:
        lines.append(f"{_images(lost)} cannot be read now that had not been left out{_some(lost)}")
    return lines


def _images(names: Sequence[str]) -> str:
    return f"{len(names)} image{'s' if len(names) != 1 else ''}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f" ({names[0]}{more})"


def metrics_below(path: Place) -> list[Place]:
    """List the metrics.json of a run directory, or of a folder of one."""
    found = [path / "metrics.json", *path.glob("round-*/metrics.json")]
    return [metrics for metrics in found if metrics.exists()]


def verb_of_evaluations(metrics: Place) -> str:
    """Name the command whose results a metrics.json holds."""
    return f"evaluate-student --round {metrics.parent.name.removeprefix('round-')}"


def evaluations_in(metrics: Place) -> list[Evaluation]:
    """Read what is recorded of the evaluations of a round, in the order of the file.

    Raises:
        StoreError: If the file is missing or damaged.
    """
    recorded = read_checked(metrics)
    try:
        return [
            Evaluation(
                metrics=metrics,
                split=split,
                sentences=int(found["sentences"]),
                failed=tuple(_failed_item(entry) for entry in found["failed"]),
                inputs=dict(found["inputs"]),
            )
            for split, found in recorded.items()
        ]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise StoreError(
            f"{metrics}: damaged (expected figures by split, found another: "
            f"{type(error).__name__}); delete it and run '{verb_of_evaluations(metrics)}'"
        ) from error


def _failed_item(entry: Any) -> FailedItem:
    if not isinstance(entry, dict) or not all(isinstance(text, str) for text in entry.values()):
        raise TypeError("expected a mapping of text")
    return FailedItem(**entry)
