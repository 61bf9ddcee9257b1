"""Shell: what the inputs of a stage are now, to compare with what they were when it was begun."""

import re
from collections.abc import Callable
from typing import Any

from pipeline.config import differences
from pipeline.errors import SemiresError
from pipeline.json_files import read_json
from pipeline.manifest import images_fingerprint, load_manifest
from pipeline.places import Place
from pipeline.records import content_fingerprint, records_folder

_WEIGHTS = "teacher.safetensors"


def input_differences(place: Place, run_dir: Place, plan: dict[str, Any]) -> list[str]:
    """Name the inputs that are others now than when the plan was made, with both values."""
    recorded = plan.get("inputs")
    if not isinstance(recorded, dict):
        return []
    now = {name: INPUTS[name](place, run_dir) if name in INPUTS else old
           for name, old in recorded.items()}  # fmt: skip
    return differences({"inputs": recorded}, {"inputs": now})


def previous_folder(place: Place) -> Place:
    """Give the folder of the round before, or a fold's own."""
    found = re.fullmatch(r"round-(\d+)", place.parent.name)
    return place.parent.with_name(f"round-{int(found[1]) - 1}") if found else place.parent


def _manifest(_place: Place, run_dir: Place) -> str | None:
    return _or_none(lambda: load_manifest(run_dir / "manifest").fingerprint)


def _images(_place: Place, run_dir: Place) -> str | None:
    return _or_none(lambda: images_fingerprint(load_manifest(run_dir / "manifest")))


def _plan_of(store: Place) -> str | None:
    return _or_none(lambda: content_fingerprint(read_json(records_folder(store) / "plan.json")))


def _student(place: Place, _run_dir: Place) -> str | None:
    path = previous_folder(place) / "student" / "student.json"
    return _or_none(lambda: str(read_json(path)["fingerprint"]))


def _weights(place: Place, _run_dir: Place) -> str | None:
    path = previous_folder(place) / "student" / "student.json"
    return _or_none(lambda: str(read_json(path)["files"][_WEIGHTS]))


def _or_none(read: Callable[[], str]) -> str | None:
    try:
        return read()
    except (SemiresError, KeyError, TypeError):
        return None


INPUTS: dict[str, Callable[[Place, Place], str | None]] = {
    "images": _images,
    "manifest": _manifest,
    "candidates": lambda _place, run_dir: _plan_of(run_dir / "candidates.zarr"),
    "teacher": lambda place, _run_dir: _plan_of(place.parent / "teacher.zarr"),
    "labels": lambda place, _run_dir: _plan_of(place.parent / "labels.zarr"),
    "student": _student,
    "previous_student": _student,
    "weights_sha256": _weights,
}
"""Per entry of a plan's `inputs`, what it would be now; given the store or folder, and the run."""
