"""Shell: have a stage's store ready: made, grown, mended or replaced, before any shard is done."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NoReturn

from pipeline.attempts import held
from pipeline.current_inputs import plan_differences
from pipeline.errors import StoreError
from pipeline.growth import grow_store, has_grown, kept_shards
from pipeline.locks import Part
from pipeline.places import create_once, is_local, names_in
from pipeline.records import (
    Plan,
    begun_shards,
    read_all_done,
    records_folder,
    refuse_other_plan,
    replacing,
    settle_replaced,
    stored_plan,
    write_plan,
)
from pipeline.store import (
    ArraySpec,
    create_store,
    metadata_hashes,
    restore_metadata,
    space_needed,
)

Replace = Literal["never", "differing", "always"]
"""When a store that is there is made anew."""

_CLAIM = "preparing"
PREPARE_SECONDS = 120
"""How long one part of a static run waits for another to make the store."""


def check_plan(plan: Plan, made_by: str) -> bool:
    """Tell whether the store is there and of this plan; False if it has to be created.

    Writes nothing. A store whose plan is lost or damaged is of this plan if its shards are.

    Raises:
        StoreError: If another plan made it; names the differences.
    """
    if not plan.store.exists():
        return False
    try:
        stored = stored_plan(plan.store, made_by)
    except StoreError as error:
        if _shards_are_of(plan):
            return True
        if (records_folder(plan.store) / "plan.json").exists():
            raise
        if _holds_shards(plan):
            raise StoreError(
                f"{plan.store}: holds shards, but {records_folder(plan.store)} has no plan that "
                f"says of which settings; copy that folder beside it, go back to the settings that "
                f"all its shards were made with, or add --force to replace them"
            ) from error
        return False
    if stored["fingerprint"] != plan.fingerprint and not has_grown(plan, stored):
        refuse_other_plan(plan, made_by, partial(plan_differences, plan.store))
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """A store that a plan would grow."""

    items: int
    """What it holds now."""
    kept: tuple[int, ...]
    """Shards that stay as they are, rising."""


def growth_of(plan: Plan) -> Growth | None:
    """Say what a plan would grow and what stays of it; None if it grows nothing."""
    try:
        stored = stored_plan(plan.store, plan.stage)
    except StoreError:
        return None
    if stored["fingerprint"] == plan.fingerprint or not has_grown(plan, stored):
        return None
    kept = tuple(kept_shards(plan, stored))
    return Growth(items=int(stored["plan"]["num_items"]), kept=kept)


def refuse_force_of_a_part(plan: Plan, made_by: str) -> NoReturn:
    """Refuse to make a store anew in one part of a static run.

    Raises:
        StoreError: Always; says how the parts are started anew.
    """
    raise StoreError(
        f"{plan.store}: --force would delete what the other parts do; delete {plan.store} "
        f"and {records_folder(plan.store)}, or take a new --run-dir, and start the parts "
        f"of '{made_by}' without --force"
    )


@contextmanager
def prepared(plan: Plan, replace: Replace, made_by: str, part: Part | None) -> Iterator[None]:
    """Have the store of this plan ready, creating it where needed.

    Args:
        plan: What to write.
        replace: Whether to make a store anew that is there.
        made_by: The verb, for messages.
        part: Of a static run: the parts make the store once; none replaces it.

    Raises:
        StoreError: If another plan made it and it may not be replaced.
    """
    if part is not None:
        if replace == "always":
            refuse_force_of_a_part(plan, made_by)
        with _one_at_a_time(plan), space_needed(plan.store):
            if not _is_usable(plan, replace, made_by):
                _create(plan)
        yield
        return
    folders = plan.store, records_folder(plan.store)
    settle_replaced(folders, lambda: bool(begun_shards(plan.store)))
    with space_needed(plan.store):
        usable = replace != "always" and _is_usable(plan, replace, made_by)
    if usable:
        yield
        return
    with replacing(folders, lambda: bool(begun_shards(plan.store))):
        with space_needed(plan.store):
            _create(plan)
        yield


def _is_usable(plan: Plan, replace: Replace, made_by: str) -> bool:
    """Check the store; mend its plan and metadata, and let it grow, where needed."""
    try:
        usable = check_plan(plan, made_by)
    except StoreError:
        if replace == "never":
            raise
        return False
    if usable:
        _mend(plan, made_by)
    return usable


def _mend(plan: Plan, made_by: str) -> None:
    try:
        stored = stored_plan(plan.store, made_by)
    except StoreError:  # the shards prove which plan it was
        restore_metadata(plan.store, *_layout(plan))
        write_plan(plan, metadata_hashes(plan.store))
        return
    if stored["fingerprint"] != plan.fingerprint:
        grow_store(plan, stored)
    elif stored.get("metadata") != metadata_hashes(plan.store):
        restore_metadata(plan.store, *_layout(plan))


def _create(plan: Plan) -> None:
    create_store(plan.store, *_layout(plan))
    write_plan(plan, metadata_hashes(plan.store))


def _layout(plan: Plan) -> tuple[tuple[ArraySpec, ...], int, int, dict[str, Any]]:
    return plan.specs, plan.num_items, plan.shard_size, plan.attributes


def _shards_are_of(plan: Plan) -> bool:
    """Tell whether there are done shards, all of this plan."""
    prints = {record.fingerprint for _, record in read_all_done(plan.store) if record is not None}
    return prints == {plan.fingerprint}


def _holds_shards(plan: Plan) -> bool:
    """Tell whether there is a done record, or a shard's file in a store that came without records.

    Where records are kept and none is left, as after a repair that found none sound, no file
    counts.
    """
    if begun_shards(plan.store):
        return True
    if set(names_in(records_folder(plan.store))) - {_CLAIM}:
        return False
    return any(names_in(plan.store / spec.name / "c") for spec in plan.specs)


@contextmanager
def _one_at_a_time(plan: Plan) -> Iterator[None]:
    """Let one part of a static run look after the store: who holds a file, which only one can."""
    claim = records_folder(plan.store) / _CLAIM
    if is_local(claim):
        with held(claim, PREPARE_SECONDS):
            yield
        return
    waited_until = time.monotonic() + PREPARE_SECONDS
    # Whoever has it longer is gone: nobody needs two minutes.
    while not create_once(claim, b"") and time.monotonic() < waited_until:
        time.sleep(2.0)  # a thousand parts ask the same object store
    try:
        yield
    finally:
        claim.unlink(missing_ok=True)
