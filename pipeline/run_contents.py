"""Shell: what a run holds: its stores, the commands that make them, their plans and arrays."""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import zarr

from pipeline.config import fingerprint as fingerprint_of
from pipeline.errors import SemiresError, StoreError
from pipeline.paths import RunPaths
from pipeline.places import Place, has_files, is_local, names_in
from pipeline.records import (
    DoneRecord,
    open_planned,
    read_all_done,
    read_json,
    records_folder,
    stored_plan,
)
from pipeline.store import PAYLOAD_CAPACITY_BYTES

_SUFFIXES = (".zarr", ".stage")
DAMAGE = (ValueError, RuntimeError, OSError, LookupError, TypeError, AttributeError,
          ArithmeticError, MemoryError)  # fmt: skip
"""What zarr, its codecs and JSON raise on damaged files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What a store's plan says of its shards."""

    stage: str
    fingerprint: str
    unit: str
    num_items: int
    num_shards: int
    growing: str
    """Fingerprint of the plan that its shards are being stamped with; "" if of none."""
    metadata: dict[str, str] | None
    """sha256 of every zarr.json by path in the store; None in a plan that does not say."""


@contextmanager
def one_line(what: str, store: Place) -> Iterator[None]:
    """Turn whatever damaged files raise into one StoreError.

    Args:
        what: The store, and the row if it is about one, for the message.
        store: What to verify.
    """
    try:
        yield
    except SemiresError:
        raise
    except DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise StoreError(
            f"{what} cannot be read ({reason}); run 'inspect-shards verify {store}'"
        ) from error


def find_stores(path: Place) -> list[Place]:
    """List the stores at a path: the path itself, or all below a run directory.

    Raises:
        StoreError: If there is none.
    """
    if is_store(path):
        return [path]
    stores = stores_below(path)
    if not stores:
        raise StoreError(f"{path}: no store there; give a .zarr folder or a run directory")
    return stores


def is_store(path: Place) -> bool:
    """Tell whether a path is a store, by its metadata or, should that be lost, by its plan."""
    if (path / "zarr.json").exists():
        return True
    return bool(path.name) and plan_path(path).exists()  # a bucket and the root have no name


def stores_of_run(path: Place) -> list[Place]:
    """List the stores at a path; none in a run that holds no more than its manifest yet.

    Raises:
        StoreError: If there is neither a store nor a manifest.
    """
    return stores_below(path) if has_files(RunPaths(path).manifest) else find_stores(path)


def stores_below(path: Place) -> list[Place]:
    """List stores by their metadata or, should that be lost, by their plan."""
    if not is_local(path):  # a search below everything would list every object of the run
        places = [found / name for found in _folders(path) for name in names_in(found)]
        stores = {found.with_suffix(".zarr") for found in places if found.suffix in _SUFFIXES}
        return sorted(stores, key=str)
    by_metadata = {found.parent for found in path.glob("**/*.zarr/zarr.json")}
    by_plan = {found.parent.with_suffix(".zarr") for found in path.glob("**/*.stage/plan.json")}
    return sorted(by_metadata | by_plan)


def _folders(run_dir: Place) -> list[Place]:
    """List the folders of a run that may hold stores: the run, its rounds and folds."""
    rounds = [run_dir / name for name in names_in(run_dir) if name.startswith("round-")]
    folds = run_dir / "calibration"
    return [run_dir, *rounds, *(folds / name for name in names_in(folds))]


def plan_path(store: Place) -> Place:
    """Give the place of a store's plan."""
    return records_folder(store) / "plan.json"


def verb_of(store: Place) -> str:
    """Name the command that makes a store, by its plan or, without one, by its place."""
    try:
        stage = str(read_json(plan_path(store))["plan"]["stage"])
    except (StoreError, *DAMAGE):
        number = re.sub(r"^round-", "", store.resolve().parent.name)
        names = {"teacher": f"teacher-{number}", "labels": f"refine-{number}"}
        stage = names.get(store.stem, store.stem)
    kind, _, number = stage.partition("-")
    verbs = {
        "candidates": "sam-candidates",
        "teacher": f"predict-teacher --round {number}",
        "fold": f"predict-teacher --fold {number}",
        "refine": f"refine-labels --round {number}",
    }
    return verbs.get(kind, "the stage that makes it")


def run_dir_of(path: Place) -> Place | None:
    """Give the run directory that a path is or lies in; None if there is no manifest above it."""
    place = path.resolve()
    return next((up for up in (place, *place.parents) if has_files(up / "manifest")), None)


def read_arrays(store: Place) -> dict[str, zarr.Array[Any]]:
    """Open all arrays of a store, by name.

    Raises:
        StoreError: If the store or one of its zarr.json is missing or damaged.
    """
    if not is_store(store) and (found := stores_below(store)):
        raise StoreError(
            f"{store}: expected a store, found a folder with {len(found)} of them; give one, such "
            f"as {found[-1]}"
        )
    with one_line(str(store), store):
        return open_planned(store)


def read_layout(store: Place) -> Layout:
    """Read what a store's plan says of its shards.

    Raises:
        StoreError: If there is no plan, or it is damaged.
    """
    document = stored_plan(store, verb_of(store))
    with one_line(str(plan_path(store)), store):
        plan = document["plan"]
        num_items, shard_size = int(plan["num_items"]), int(plan["shard_size"])
        metadata = document.get("metadata")
        if fingerprint_of(plan) != document["fingerprint"]:
            raise StoreError(f"{plan_path(store)}: damaged, it is not what its fingerprint names")
        return Layout(
            stage=str(plan["stage"]),
            fingerprint=str(document["fingerprint"]),
            growing=str(document.get("growing", "")),
            unit=str(document["unit"]),
            num_items=num_items,
            num_shards=-(-num_items // shard_size),
            metadata=None if metadata is None else dict(metadata),
        )


def describe(store: Place) -> dict[str, Any]:
    """Give a store's figures: arrays with shape, type and bytes, shards, failures, versions."""
    layout = read_layout(store)
    found = read_all_done(store, range(layout.num_shards))
    done = [record for _, record in found if record and record.fingerprint == layout.fingerprint]
    return {
        "stage": layout.stage,
        "fingerprint": layout.fingerprint,
        "items": layout.num_items,
        "unit": layout.unit,
        "shards": layout.num_shards,
        "done": len(done),
        "failures": [failure for record in done for failure in record.failures],
        "seconds": sum(record.seconds for record in done),
        "made with": _made_with(store, done),
        "arrays": _describe_arrays(store, done),
    }


def _made_with(store: Place, done: list[DoneRecord]) -> str:
    """Name versions and devices; where shards differ, each with the number of its shards."""
    counts: dict[str, Counter[str]] = {}
    with one_line(f"{records_folder(store)}: a done record", store):
        for record in done:
            for name, found in sorted(record.versions.items()):
                counts.setdefault(name, Counter())[str(found)] += 1
    named = []
    for name, values in counts.items():
        texts = [f"{value} (shards: {number})" for value, number in sorted(values.items())]
        named.append(f"{name} {' / '.join(texts) if len(texts) > 1 else next(iter(values))}")
    return ", ".join(named)


def _describe_arrays(store: Place, done: list[DoneRecord]) -> list[list[Any]]:
    stored: dict[str, int] = {}
    with one_line(f"{records_folder(store)}: a done record", store):
        for record in done:
            for file, entry in record.files.items():
                owner = file.split("/", 1)[0]
                stored[owner] = stored.get(owner, 0) + int(entry["bytes"])
    rows: list[list[Any]] = []
    for name, array in read_arrays(store).items():
        shape = _sizes(array.shape)
        chunks = _sizes(array.chunks)
        rows.append([name, str(array.dtype), shape, chunks, stored.get(name, 0)])
    return rows


def _sizes(lengths: tuple[int, ...]) -> str:
    """Give a shape as text; what a payload declares is no size that anything has."""
    if lengths[-1:] == (PAYLOAD_CAPACITY_BYTES,):
        return f"{lengths[0]} x ragged"
    return "x".join(map(str, lengths))
