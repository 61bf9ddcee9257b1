"""Shell: stores whose inputs may grow: what was made of the first items stays.

New training images go to the end of the manifest's. When the stored plan differs in nothing but
the number of items and the fingerprint of the images, and the first images are the old ones by
path and content, whole shards keep their bytes; the last one, if it was not full, is made anew.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from pipeline.config import differences
from pipeline.errors import SemiresError
from pipeline.manifest import images_fingerprint, load_manifest
from pipeline.places import Place
from pipeline.records import (
    Plan,
    begun_shards,
    done_path,
    file_lengths,
    files_are_whole,
    note_growth,
    read_all_done,
    read_done,
    write_done,
    write_plan,
)
from pipeline.store import metadata_hashes, restore_metadata


def _first_images(run_dir: Place, count: int) -> dict[str, Any]:
    """Give the `inputs` of candidates of the first `count` training images."""
    return {"images": images_fingerprint(load_manifest(run_dir / "manifest"), count)}


GROWING: dict[str, Callable[[Place, int], dict[str, Any]]] = {"candidates": _first_images}
"""Per stage whose items keep their rows when new ones are appended: the inputs of its first items.

Teachers and labels are not among them: their items are expressions of images that are not
labelled, and the manifest as a whole, with its label split, is an input.
"""


def first_items_are(stage: str, run_dir: Place, plan: dict[str, Any]) -> bool:
    """Tell whether the first items of a run are those of a stored plan.

    Args:
        stage: The plan's stage.
        run_dir: The run directory.
        plan: `plan` of a plan.json.
    """
    if stage not in GROWING:
        return False
    try:
        return bool(GROWING[stage](run_dir, int(plan["num_items"])) == plan["inputs"])
    except (SemiresError, KeyError, TypeError, ValueError):
        return False


def has_grown(plan: Plan, stored: dict[str, Any]) -> bool:
    """Tell whether a plan is a stored one with more items after the old ones.

    Args:
        plan: The plan of now.
        stored: What plan.json holds.
    """
    old, new = stored["plan"], plan.document()["plan"]
    if plan.stage not in GROWING or not isinstance(old.get("num_items"), int):
        return False
    if not old["num_items"] < plan.num_items:
        return False
    others = {"num_items": old["num_items"], "inputs": old.get("inputs")}
    if differences(old, {**new, **others}):
        return False
    return first_items_are(plan.stage, plan.store.parent, old)


def kept_shards(plan: Plan, stored: dict[str, Any]) -> list[int]:
    """List the shards that stay as they are when a store is grown, rising; changes nothing.

    Args:
        plan: The grown plan.
        stored: What plan.json holds, of fewer items.
    """
    whole = stored["plan"]["num_items"] // plan.shard_size
    lengths = file_lengths(plan.store)
    return [
        shard
        for shard, record in read_all_done(plan.store)
        if record is not None
        and record.shard == shard < whole
        and record.fingerprint in (stored["fingerprint"], plan.fingerprint)
        and files_are_whole(plan.store, record, lengths)
    ]


def grow_store(plan: Plan, stored: dict[str, Any]) -> int:
    """Turn a store into one of the grown plan; may be interrupted and repeated.

    Whole shards are stamped with the new plan, the plan comes last; meanwhile the old one names the
    new, so that shards of either are known to be sound.

    Returns:
        How many shards are kept.
    """
    kept = 0
    whole = stored["plan"]["num_items"] // plan.shard_size
    note_growth(plan.store, plan.fingerprint)
    for shard in begun_shards(plan.store):
        path = done_path(plan.store, shard)
        record = read_done(plan.store, shard, stored["fingerprint"])
        if shard < whole and record is not None:
            write_done(plan.store, dataclasses.replace(record, fingerprint=plan.fingerprint))
        elif shard >= whole or read_done(plan.store, shard, plan.fingerprint) is None:
            path.unlink()
            continue
        kept += 1
    restore_metadata(plan.store, plan.specs, plan.num_items, plan.shard_size, plan.attributes)
    write_plan(plan, metadata_hashes(plan.store))
    return kept
