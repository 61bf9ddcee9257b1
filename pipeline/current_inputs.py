"""Shell: what the inputs of a stage are now, and what became of them since, in words."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.config import differences
from pipeline.errors import SemiresError
from pipeline.json_files import read_json
from pipeline.manifest import images_fingerprint, load_manifest
from pipeline.places import Place, relative_name
from pipeline.records import content_fingerprint, records_folder
from pipeline.run_order import previous_folder, run_dir_above

_WEIGHTS = "teacher.safetensors"
_MOST_RETRIES = 1000
"""Retries that are looked back upon; a plan with more is damaged, not retried."""


def input_differences(place: Place, run_dir: Place, plan: dict[str, Any]) -> list[str]:
    """Say which inputs are others now than when the plan was made, one line each, in words.

    Args:
        place: The store, or the folder of a training, that the plan is of.
        run_dir: The run directory.
        plan: `plan` of its plan.json; nothing is said of inputs that are not among `INPUTS`.
    """
    recorded = plan.get("inputs")
    if not isinstance(recorded, dict):
        return []
    now = {name: INPUTS[name].now(place, run_dir) if name in INPUTS else old
           for name, old in recorded.items()}  # fmt: skip
    return _told(place, run_dir, recorded, now)


def plan_differences(place: Place, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Name what differs between a plan that was followed and one of now, one line each.

    Args:
        place: The store, or the folder of a training, that both are of.
        old: The plan that lies there.
        new: The plan of now.

    Returns:
        Of settings `key: old, now new`; of inputs, which are hashes, what became of them.
    """
    lines: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        before, now = old.get(key), new.get(key)
        if key == "inputs" and isinstance(before, dict) and isinstance(now, dict):
            lines += _told(place, run_dir_above(place), before, now)
        else:
            lines += differences(before, now, key)
    return lines


def _told(
    place: Place, run_dir: Place, old: Mapping[str, Any], new: Mapping[str, Any]
) -> list[str]:
    lines: list[str] = []
    for name in sorted(old.keys() | new.keys()):
        before, now = old.get(name), new.get(name)
        if before == now:
            continue
        if name not in INPUTS or before is None:
            lines += differences(before, now, f"inputs.{name}")
        elif name == "weights_sha256" and old.get("student") != new.get("student"):
            continue  # the student is told already
        else:
            lines.append(f"inputs.{name}: {_what_became(name, before, now, place, run_dir)}")
    return lines


def _what_became(name: str, before: Any, now: Any, place: Place, run_dir: Place) -> str:
    source = INPUTS[name].place(place, run_dir)
    called = _name(source, run_dir)
    if now is None:
        return f"{called} is not there, or damaged"
    if _tried_again(source, before):
        return f"failed items of {called} were tried again"
    if name == "images":
        return f"{called} has other training images than then"
    return f"{called} was made anew since"


def _name(source: Place, run_dir: Place) -> str:
    try:
        return relative_name(source, run_dir)
    except ValueError:  # a run directory of no name, such as "."
        return str(source)


def _tried_again(store: Place, before: Any) -> bool:
    """Tell whether a store is the one of then but for failed items, by the note of its plan."""
    try:
        document = read_json(records_folder(store) / "plan.json")
        times = document.get("retried", 0)
        if type(times) is not int or not 0 < times <= _MOST_RETRIES:
            return False
        return any(content_fingerprint({**document, "retried": n}) == before for n in range(times))
    except (SemiresError, KeyError, TypeError, AttributeError):
        return False


def _manifest(_place: Place, run_dir: Place) -> str | None:
    return _or_none(lambda: load_manifest(run_dir / "manifest").fingerprint)


def _images(_place: Place, run_dir: Place) -> str | None:
    return _or_none(lambda: images_fingerprint(load_manifest(run_dir / "manifest")))


def _plan_of(store: Place) -> str | None:
    return _or_none(lambda: content_fingerprint(read_json(records_folder(store) / "plan.json")))


def _student(place: Place, run_dir: Place) -> str | None:
    path = _student_place(place, run_dir) / "student.json"
    return _or_none(lambda: str(read_json(path)["fingerprint"]))


def _weights(place: Place, run_dir: Place) -> str | None:
    return _weights_in(_student_place(place, run_dir))


def _weights_in(student: Place) -> str | None:
    return _or_none(lambda: str(read_json(student / "student.json")["files"][_WEIGHTS]))


def _or_none(read: Callable[[], str]) -> str | None:
    try:
        return read()
    except (SemiresError, KeyError, TypeError):
        return None


def _manifest_place(_place: Place, run_dir: Place) -> Place:
    return run_dir / "manifest"


def _candidates_place(_place: Place, run_dir: Place) -> Place:
    return run_dir / "candidates.zarr"


def _student_place(place: Place, _run_dir: Place) -> Place:
    return previous_folder(place) / "student"


@dataclass(frozen=True, slots=True)
class Input:
    """One entry of a plan's `inputs`."""

    place: Callable[[Place, Place], Place]
    """Where it lies, given the store or folder that was made of it, and the run."""
    now: Callable[[Place, Place], str | None]
    """What the entry would be now, given the same; None if it is not there or damaged."""


INPUTS: dict[str, Input] = {
    "images": Input(_manifest_place, _images),
    "manifest": Input(_manifest_place, _manifest),
    "candidates": Input(
        _candidates_place, lambda place, run_dir: _plan_of(_candidates_place(place, run_dir))
    ),
    "teacher": Input(
        lambda place, _: place.parent / "teacher.zarr",
        lambda place, _: _plan_of(place.parent / "teacher.zarr"),
    ),
    "labels": Input(
        lambda place, _: place.parent / "labels.zarr",
        lambda place, _: _plan_of(place.parent / "labels.zarr"),
    ),
    "student": Input(_student_place, _student),
    "previous_student": Input(_student_place, _student),
    "weights_sha256": Input(_student_place, _weights),
    "weights": Input(  # of an evaluation, which lies beside what it evaluates
        lambda place, _: place.parent / "student",
        lambda place, _: _weights_in(place.parent / "student"),
    ),
}
"""Inputs that are a part of the run, by their name in plans."""
