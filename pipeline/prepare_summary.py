"""Shell: what a manifest says of how it came about: counts, what was left out or converted."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.assemble import Leaks
from pipeline.budget import Budget, refuse_too_many
from pipeline.config import to_plain
from pipeline.errors import ManifestError
from pipeline.failure_groups import grouped
from pipeline.found_values import why
from pipeline.labelled import annotated_images
from pipeline.manifest import (
    DESCRIPTION,
    SPLITS,
    Manifest,
    load_manifest,
    read_description,
)
from pipeline.places import Place, has_files
from pipeline.readers.base import Failure
from pipeline.records import FailedItem

MANIFEST = "manifest"
FAILURES = "failures.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a manifest holds, for printing."""

    folder: Place
    """The manifest folder."""
    fingerprint: str
    """Of the manifest."""
    images: int
    """Images."""
    objects: int
    """Objects."""
    expressions: int
    """Expressions."""
    annotated_images: int
    """Training images that have the masks of all their objects: those that may be labelled."""
    labelled_images: int
    """Images whose truth training may use."""
    labelled_by: str
    """The setting that chose them, such as "ratio 0.1"; "" if none is set."""
    labelled_expressions: int
    """Training expressions on them."""
    splits: dict[str, int]
    """Expressions by split; splits without any are left out."""
    failed: int
    """Lines of failures.jsonl about things that were left out."""
    notes: int
    """Lines of failures.jsonl about things that were converted."""
    leaking_images: int
    """Images whose training objects `drop_leaking` left out."""
    reused: bool
    """True if the manifest was there already, of the same config and inputs."""

    def __str__(self) -> str:
        return f"{self.folder}: {'unchanged' if self.reused else 'written'}\n{self.counts()}"

    def counts(self) -> str:
        """Give what was written, a line for each kind of thing."""
        splits = ", ".join(f"{name} {count}" for name, count in self.splits.items())
        lines = [
            f"{self.images} images, {self.objects} objects, {self.expressions} expressions "
            f"({splits})",
            f"labelled: {self.labelled_images} of {self.annotated_images} training images with "
            f"all masks ({self.labelled_by or 'none is asked for'}), {self.labelled_expressions} "
            "expressions",
        ]
        if not self.labelled_images:
            lines.append(f"warning: no image is labelled, and round 0 cannot train; {self._way()}")
        if self.failed or self.notes:
            lines.append(
                f"{self.failed} left out, {self.notes} converted: see {self.folder / FAILURES}"
            )
        if self.leaking_images:
            lines.append(f"{self.leaking_images} images left train: another split holds them")
        return "\n".join(lines)

    def _way(self) -> str:
        """Say what gives labelled images where there are none."""
        if not self.annotated_images:
            return "give training images the masks of all their objects"
        return (
            f"set data.labelled.ratio (1.0 takes all {self.annotated_images} images with all "
            "masks), ids or file"
        )


def summary_of(folder: Place, *, reused: bool) -> Summary:
    """Read the counts of a manifest, for printing.

    Raises:
        ManifestError: If it is damaged, or `prepare_data` did not make it.
    """
    manifest = load_manifest(folder)
    try:
        return _summary(manifest, folder, read_description(folder), reused)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, ManifestError):
            raise
        raise ManifestError(
            f"{folder / DESCRIPTION}: expected the counts that prepare-data writes, found others "
            f"({type(error).__name__}: {why(error)}); prepare the data again with --force"
        ) from error


def counts_of_run(run_dir: Place) -> str | None:
    """Give what the manifest of a run holds, for printing; None if the run has none.

    Where it cannot be read, that is said instead.
    """
    folder = run_dir / MANIFEST
    if not has_files(folder):
        return None
    try:
        return f"{folder}\n{summary_of(folder, reused=True).counts()}"
    except ManifestError as error:
        return str(error)


def _summary(
    manifest: Manifest, folder: Place, document: Mapping[str, Any], reused: bool
) -> Summary:
    annotated = annotated_images(
        manifest.object_image,
        manifest.object_split,
        manifest.object_rle.lengths() > 0,
        manifest.num_images,
    )
    return Summary(
        folder=folder,
        fingerprint=manifest.fingerprint,
        images=manifest.num_images,
        objects=manifest.num_objects,
        expressions=manifest.num_expressions,
        annotated_images=int(annotated.sum()),
        labelled_images=document["labelled_images"],
        labelled_by=_labelled_by(document["config"]["labelled"]),
        labelled_expressions=document["labelled_expressions"],
        splits={
            split: document["splits"][split] for split in SPLITS if split in document["splits"]
        },
        failed=document["failed"],
        notes=document["notes"],
        leaking_images=document["leaking"]["images"],
        reused=reused,
    )


def _labelled_by(labelled: Mapping[str, Any]) -> str:
    """Name the setting that chose the labelled images, given `data.labelled` as plain values."""
    if labelled["ratio"] is not None:
        return f"ratio {labelled['ratio']}"
    if labelled["ids"] is not None:
        return f"{len(labelled['ids'])} ids"
    return "" if labelled["file"] is None else f"file {labelled['file']}"


def facts_of(manifest: Manifest, failures: list[Failure], leaks: Leaks) -> dict[str, Any]:
    """Give what `Summary` says beyond the counts of rows, as kept in manifest.json."""
    expressions = {split: len(manifest.expressions_of(split)) for split in SPLITS}
    return {
        "labelled_images": int(manifest.image_labelled.sum()),
        "labelled_expressions": len(manifest.expressions_of("train", labelled=True)),
        "splits": {split: count for split, count in expressions.items() if count},
        "failed": sum(failure.severity == "failed" for failure in failures),
        "notes": sum(failure.severity == "note" for failure in failures),
        "leaking": to_plain(leaks),
    }


def read_failures(run_dir: Place) -> tuple[tuple[FailedItem, ...], tuple[FailedItem, ...]]:
    """Read what a manifest left out and what it converted, for printing: see `grouped`.

    Returns:
        The items that were left out, and those that were converted and kept.
    """
    entries = failures_of_manifest(run_dir)
    failed, noted = (
        grouped([entry for entry in entries if entry.severity == severity])
        for severity in ("failed", "note")
    )
    return failed, noted


def refuse_data_left_out(summary: Summary, run_dir: Place, budget: Budget | None) -> None:
    """Refuse to go on with a manifest from which more was left out than a budget allows.

    A share is of images, objects and expressions together, those that were left out with them.

    Raises:
        StoreError: Names the first of them.
        ManifestError: If the list of them is damaged.
    """
    if budget is None or not summary.failed:
        return
    failed = [
        FailedItem(item=entry.item, reason=entry.reason)
        for entry in failures_of_manifest(run_dir)
        if entry.severity == "failed"
    ]
    kept = summary.images + summary.objects + summary.expressions
    refuse_too_many(failed, kept + len(failed), budget, f"{run_dir}: 'prepare-data'")


def failures_of_manifest(run_dir: Place) -> list[Failure]:
    """Read everything that a manifest left out or converted, one by one.

    Raises:
        ManifestError: If the list is missing or damaged.
    """
    path = run_dir / MANIFEST / FAILURES
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [_failure(json.loads(line)) for line in lines]
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ManifestError(f"{path} is damaged ({why(error)}); prepare the data again") from error


def failure_lines(failures: Sequence[Failure]) -> bytes:
    """Give the content of failures.jsonl, which `read_failures` reads."""
    return b"".join(map(_line_of, failures))


def _line_of(failure: Failure) -> bytes:
    entry = to_plain(failure)
    if not entry["leads_to"]:
        del entry["leads_to"]
    return f"{json.dumps(entry)}\n".encode()


def _failure(entry: Any) -> Failure:
    """Read a line of failures.jsonl; what others wrote may be anything."""
    if not isinstance(entry, dict) or not all(isinstance(text, str) for text in entry.values()):
        raise TypeError("expected a mapping of text")
    failure = Failure(**entry)
    if failure.leads_to and not failure.leads_to.startswith("/"):
        raise ValueError("expected the absolute path that a link leads to")
    return failure
