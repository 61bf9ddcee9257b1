"""Core: how the parts of a run follow from one another, told by where they lie."""

import re

from pipeline.places import Place, relative_name


def order_in_job(place: Place, run_dir: Place) -> tuple[int, int, str]:
    """Sort candidates, then calibration, then rounds; in a round as its steps follow."""
    parts = relative_name(place, run_dir).split("/")
    round_of = re.fullmatch(r"round-(\d+)", parts[0])
    steps = {"teacher.zarr": 0, "labels.zarr": 1, "student": 2, "metrics.json": 3}
    if parts[0] == "calibration":
        return 0, 1 - steps.get(place.name, 2), parts[1]
    return (int(round_of[1]) + 1 if round_of else -1), steps.get(place.name, 4), place.name


def previous_folder(place: Place) -> Place:
    """Give the folder of the round before, or a fold's own."""
    found = re.fullmatch(r"round-(\d+)", place.parent.name)
    return place.parent.with_name(f"round-{int(found[1]) - 1}") if found else place.parent


def run_dir_above(place: Place) -> Place:
    """Give the run directory of a store or a training, by the folder that it lies in."""
    folder = place.parent
    if re.fullmatch(r"round-\d+", folder.name):
        return folder.parent
    return folder.parent.parent if folder.parent.name == "calibration" else folder


def name_in_round(place: Place) -> str:
    """Give the short name of a part, such as round-1/teacher."""
    kind = place.stem
    return kind if kind == "candidates" else f"{place.parent.name}/{kind}"


def made_of(place: Place) -> list[str]:
    """Give the short names of the parts that a store, training or evaluation is made of."""
    folder = place.parent.name
    if place.stem == "labels":
        return ["candidates", f"{folder}/teacher"]
    before = f"{previous_folder(place).name}/student" if folder.startswith("round-") else ""
    if place.stem == "teacher":
        return [before or f"{folder}/student"]
    if place.stem == "metrics":
        return [f"{folder}/student"]
    return [f"{folder}/labels", before] if place.stem == "student" else []
