"""Shell: what a manifest says of how it came about: counts, what was left out or converted."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.assemble import Leaks
from pipeline.config import to_plain
from pipeline.errors import ManifestError
from pipeline.failure_groups import grouped
from pipeline.found_values import why
from pipeline.manifest import (
    SPLITS,
    Manifest,
    load_manifest,
    read_description,
)
from pipeline.places import Place
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
    labelled_images: int
    """Images whose truth training may use."""
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
        splits = ", ".join(f"{name} {count}" for name, count in self.splits.items())
        lines = [
            f"{self.folder}: {'unchanged' if self.reused else 'written'}",
            f"{self.images} images, {self.objects} objects, {self.expressions} expressions "
            f"({splits})",
            f"labelled: {self.labelled_images} images, {self.labelled_expressions} expressions",
        ]
        if self.failed or self.notes:
            lines.append(
                f"{self.failed} left out, {self.notes} converted: see {self.folder / FAILURES}"
            )
        if self.leaking_images:
            lines.append(f"{self.leaking_images} images left train: another split holds them")
        return "\n".join(lines)


def summary_of(folder: Place, *, reused: bool) -> Summary:
    """Read the counts of a manifest, for printing."""
    manifest = load_manifest(folder)
    document = read_description(folder)
    return Summary(
        folder=folder,
        fingerprint=manifest.fingerprint,
        images=manifest.num_images,
        objects=manifest.num_objects,
        expressions=manifest.num_expressions,
        labelled_images=document["labelled_images"],
        labelled_expressions=document["labelled_expressions"],
        splits={
            split: document["splits"][split] for split in SPLITS if split in document["splits"]
        },
        failed=document["failed"],
        notes=document["notes"],
        leaking_images=document["leaking"]["images"],
        reused=reused,
    )


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
    path = run_dir / MANIFEST / FAILURES
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        entries = [_failure(json.loads(line)) for line in lines]
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ManifestError(f"{path} is damaged ({why(error)}); prepare the data again") from error
    failed, noted = (
        grouped([entry for entry in entries if entry.severity == severity])
        for severity in ("failed", "note")
    )
    return failed, noted


def failure_lines(failures: Sequence[Failure]) -> bytes:
    """Give the content of failures.jsonl, which `read_failures` reads."""
    entries = [to_plain(failure) for failure in failures]
    for entry in entries:
        if not entry["leads_to"]:
            del entry["leads_to"]
    return "".join(json.dumps(entry) + "\n" for entry in entries).encode()


def _failure(entry: Any) -> Failure:
    """Read a line of failures.jsonl; what others wrote may be anything."""
    if not isinstance(entry, dict) or not all(isinstance(text, str) for text in entry.values()):
        raise TypeError("expected a mapping of text")
    failure = Failure(**entry)
    if failure.leads_to and not failure.leads_to.startswith("/"):
        raise ValueError("expected the absolute path that a link leads to")
    return failure
