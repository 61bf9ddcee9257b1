"""Shell: what decided a store's bytes, and how one is replaced.

Beside `candidates.zarr` lies `candidates.stage/` with `plan.json`, everything that decided the
result and its fingerprint, and the done records of the shards.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zarr

from pipeline.config import differences, fingerprint, to_plain
from pipeline.done_records import DoneRecord as DoneRecord
from pipeline.done_records import FailedItem as FailedItem
from pipeline.done_records import begun_shards as begun_shards
from pipeline.done_records import done_path as done_path
from pipeline.done_records import file_lengths as file_lengths
from pipeline.done_records import files_are_whole as files_are_whole
from pipeline.done_records import read_all_done as read_all_done
from pipeline.done_records import read_any_done as read_any_done
from pipeline.done_records import read_done as read_done
from pipeline.done_records import records_folder as records_folder
from pipeline.done_records import shard_is_done as shard_is_done
from pipeline.done_records import versions as versions
from pipeline.done_records import write_done as write_done
from pipeline.errors import StoreError
from pipeline.found_values import shown
from pipeline.json_files import atomic_write as atomic_write
from pipeline.json_files import read_checked, write_checked
from pipeline.json_files import read_json as read_json
from pipeline.json_files import sync_folder as sync_folder
from pipeline.json_files import write_json as write_json
from pipeline.locks import run_lock as run_lock
from pipeline.places import Place, has_files, is_local, remove_tree
from pipeline.store import ArraySpec, open_store
from pipeline.store_links import refuse_links
from pipeline.zarr_limits import open_arrays, specs_of_plan

PLAN_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a stage will write, and all that decides its bytes."""

    stage: str
    """Name of the stage, as the verbs and messages say it."""
    store: Place
    """The Zarr group."""
    specs: tuple[ArraySpec, ...]
    num_items: int
    shard_size: int
    """Items per shard; part of the fingerprint, since batches and files follow it."""
    unit: str
    """What an item is: "images" or "expressions"."""
    decides: dict[str, Any]
    """Config, inputs' fingerprints and algorithm version: everything that changes the result."""
    attributes: dict[str, Any] = field(default_factory=dict)
    """JSON attributes of the group, for readers with plain zarr."""

    @property
    def num_shards(self) -> int:
        """Number of tasks."""
        return -(-self.num_items // self.shard_size)

    @property
    def fingerprint(self) -> str:
        """sha256 over everything that decides the store's bytes."""
        return fingerprint(self._identity())

    def rows(self, shard: int) -> range:
        """Give the item rows of a shard."""
        start = shard * self.shard_size
        return range(start, min(start + self.shard_size, self.num_items))

    def _identity(self) -> dict[str, Any]:
        return {
            "format": PLAN_FORMAT,
            "stage": self.stage,
            "num_items": self.num_items,
            "shard_size": self.shard_size,
            "arrays": to_plain(self.specs),
            **to_plain(self.decides),
        }

    def document(self) -> dict[str, Any]:
        """Give what `plan.json` holds."""
        return {"fingerprint": self.fingerprint, "unit": self.unit, "plan": self._identity()}


def stored_plan(store: Place, made_by: str) -> dict[str, Any]:
    """Read a store's plan.

    Raises:
        StoreError: If the store was never begun; names the command that makes it.
    """
    path = records_folder(store) / "plan.json"
    missing = StoreError(f"{store}: not there; run '{made_by}' first")
    if not has_files(store):
        raise missing
    try:
        document = read_checked(path)
    except StoreError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise missing from error
        raise
    known = {"plan", "fingerprint", "unit", "metadata", "retried", "growing"}
    if (
        not {"plan", "fingerprint"} <= document.keys() <= known
        or not isinstance(document["plan"], dict)
        or not isinstance(document["fingerprint"], str)
    ):
        raise StoreError(f"{path}: damaged; delete it and run '{made_by}'")
    return document


def open_planned(store: Place) -> dict[str, zarr.Array[Any]]:
    """Open all arrays of a store by name; they have to be those of its plan, where it has one.

    Raises:
        StoreError: If there is no store, or its metadata asks for what no stage writes.
    """
    specs, num_rows = None, None
    with suppress(StoreError):  # a store that was copied without its records has none
        plan = stored_plan(store, "the stage that makes it")["plan"]
        specs = specs_of_plan(plan)
        num_rows = plan["num_items"] if type(plan.get("num_items")) is int else None
    return open_arrays(open_store(store), str(store), specs, num_rows)


def write_plan(plan: Plan, metadata: dict[str, str]) -> None:
    """Write a store's plan; with the hashes of its zarr.json files, by path in the store."""
    refuse_links(plan.store)
    path = records_folder(plan.store) / "plan.json"
    document = {**plan.document(), "metadata": metadata}
    with suppress(StoreError):
        document.update({k: v for k, v in read_checked(path).items() if k == "retried"})
    write_checked(path, document)


def content_fingerprint(document: dict[str, Any]) -> str:
    """Name what a store holds, for what is made of it.

    Args:
        document: As `stored_plan` gives it.

    Returns:
        The plan's fingerprint. A plan cannot know which items failed: once something was made of a
        store, and failed items of it are tried again, it is another name, and what was made of the
        store before is stale.
    """
    retried = document.get("retried", 0)
    name: str = document["fingerprint"]
    return fingerprint({"fingerprint": name, "retried": retried}) if retried else name


def note_growth(store: Place, grown: str) -> None:
    """Note the fingerprint of the plan that a store is being stamped with."""
    refuse_links(store)
    path = records_folder(store) / "plan.json"
    write_checked(path, {**read_checked(path), "growing": grown})


def note_retry(store: Place) -> None:
    """Note that failed items of a store, of which something was made, are tried again."""
    refuse_links(store)
    path = records_folder(store) / "plan.json"
    document = read_checked(path)
    write_checked(path, {**document, "retried": int(document.get("retried", 0)) + 1})


def refuse_other_plan(
    plan: Plan,
    made_by: str,
    told: Callable[[dict[str, Any], dict[str, Any]], list[str]] = differences,
) -> None:
    """Refuse to mix results: a store begun with another plan is left as it is.

    Args:
        plan: The plan of now.
        made_by: The verb, for messages.
        told: Names what differs between the plan that lies there and that of now.

    Raises:
        StoreError: Names up to five differences; those of the arrays, which follow from the
            others, only where there are no others. Also if a folder of the store is a link.
    """
    refuse_links(plan.store)
    document = stored_plan(plan.store, made_by)
    if document["fingerprint"] == plan.fingerprint:
        return
    lines = told(document["plan"], plan.document()["plan"])
    lines = [line for line in lines if not line.startswith("arrays")] or lines
    shown = "; ".join(lines[:5]) + (f"; and {len(lines) - 5} more" if len(lines) > 5 else "")
    raise StoreError(
        f"{plan.store}: made otherwise ({shown}); go back to that, choose a new --run-dir, "
        f"or add --force to replace it"
    )


def settle_replaced(folders: tuple[Place, ...], has_begun: Callable[[], bool]) -> None:
    """End a replacement that was killed: the old comes back where the new has not begun.

    Args:
        folders: As `replacing` took them.
        has_begun: As of `replacing`.
    """
    aside = {f: f.with_name(f.name + ".replaced") for f in folders if is_local(f)}
    aside = {folder: old for folder, old in aside.items() if os.path.lexists(old)}
    if aside and not has_begun():
        for folder, old in aside.items():
            remove_tree(folder, ignore_errors=True)
            old.rename(folder)
    drop_replaced(*folders)


def drop_replaced(*folders: Place) -> None:
    """Delete what a killed replacement left aside."""
    for folder in folders:
        if is_local(folder):
            remove_tree(folder.with_name(folder.name + ".replaced"), ignore_errors=True)


@contextmanager
def replacing(folders: tuple[Place, ...], has_begun: Callable[[], bool]) -> Iterator[None]:
    """Put finished work aside while it is made anew, and back if that fails at once.

    An object store cannot rename: there the old work is deleted. A folder that is a link is made
    here, and what the link leads to stays.

    Args:
        folders: What is replaced; those that exist are renamed to `NAME.replaced`.
        has_begun: Asked when the body raises: whether anything of the new work is worth keeping.
            If not, the old comes back; in every other case it is deleted.
    """
    aside: dict[Path, Path] = {}
    for folder in folders:
        if is_local(folder):
            aside[folder] = folder.with_name(folder.name + ".replaced")
        else:
            remove_tree(folder)
    for folder, old in aside.items():
        if os.path.lexists(folder):
            remove_tree(old, ignore_errors=True)
            folder.rename(old)
    try:
        yield
    except BaseException:
        if not has_begun():
            for folder, old in aside.items():
                if os.path.lexists(old):
                    remove_tree(folder, ignore_errors=True)
                    old.rename(folder)
        raise
    finally:
        drop_replaced(*folders)


def require_rows(store: Place, made_by: str, rows: range | None = None) -> str:
    """Check that a stage's store is done for the rows that a later stage reads.

    Args:
        store: The Zarr group.
        made_by: The verb that makes it, for the message.
        rows: Item rows that will be read; None means all.

    Returns:
        The store's fingerprint.

    Raises:
        StoreError: If shards are missing.
    """
    document = stored_plan(store, made_by)
    plan = document["plan"]
    size, items = plan.get("shard_size"), plan.get("num_items")
    if type(size) is not int or type(items) is not int or not (size >= 1 and 0 <= items < 2**31):
        raise StoreError(
            f"{store}: expected numbers of items in its plan, found {shown(items)} in shards of "
            f"{shown(size)}; delete its .stage folder and run '{made_by}'"
        )
    rows = range(items) if rows is None else rows
    needed = range(rows.start // size, -(-rows.stop // size)) if len(rows) else range(0)
    name: str = document["fingerprint"]
    begun = set(begun_shards(store))
    if absent := len(needed) - sum(shard in needed for shard in begun):  # of a plan that lies, many
        first = next(shard for shard in needed if shard not in begun)
        raise StoreError(
            f"{store}: {absent} of {len(needed)} shards are not done (first: {first}); "
            f"run '{made_by}' to the end"
        )
    lengths = file_lengths(store)
    missing = [
        shard
        for shard, record in read_all_done(store, needed)
        if record is None
        or record.fingerprint != name
        or not files_are_whole(store, record, lengths)
    ]
    if missing:
        raise StoreError(
            f"{store}: {len(missing)} of {len(needed)} shards are not done (first: {missing[0]}); "
            f"run '{made_by}' to the end"
        )
    return name
