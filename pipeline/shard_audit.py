"""Shell: whether the files of shards are what their done records say."""

import functools
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from pipeline.bars import bar_options
from pipeline.errors import StoreError
from pipeline.in_threads import in_order
from pipeline.places import Place
from pipeline.records import DoneRecord, begun_shards, read_all_done
from pipeline.run_contents import Layout
from pipeline.shard_files import sha256_of_shard

_SILENT_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardState:
    """One shard: `done`, `missing` (never finished), `damaged` or `failed`, with the reason."""

    shard: int
    state: str
    reason: str


Audited = tuple[ShardState, DoneRecord | None]
"""A shard, and its done record if that can be used."""


def audit_shards(
    store: Place, layout: Layout | None, threads: int
) -> Generator[Audited, None, None]:
    """Hash every file of every shard against its done record, and show how far that is.

    Args:
        store: The Zarr group.
        layout: Its shards and plan; None where the plan is lost: then the shards that have a done
            record, each as of the plan that this names.
        threads: Shards that are read at a time; in memory, in an object store.

    Yields:
        The shards in order, those that were never finished as well.
    """
    begun = begun_shards(store)
    if layout is not None:
        begun = [shard for shard in begun if shard < layout.num_shards]
    finished = set(begun)
    plans = None if layout is None else {layout.fingerprint, layout.growing}
    audit = functools.partial(_audit_shard, store, plans)
    results = in_order(audit, read_all_done(store, begun), threads)
    with closing(results) as found, progress(store, "shards", len(begun)) as bar:
        for shard in begun if layout is None else range(layout.num_shards):
            if shard in finished:
                yield next(found)
                bar.update()
            else:
                yield ShardState(shard=shard, state="missing", reason="no done record"), None


def progress(place: Place, unit: str, total: int) -> "tqdm[Any]":
    """Make a bar on stderr, as that of a stage; none is shown of what takes an instant."""
    return tqdm(
        total=total,
        desc=f"{place.parent.name}/{place.name}",
        unit=f" {unit}",
        **bar_options(),
        delay=_SILENT_SECONDS,
    )


def _audit_shard(
    store: Place, plans: set[str] | None, numbered: tuple[int, DoneRecord | None]
) -> Audited:
    """Hash the files of a shard that has a done record, readable or not."""
    shard, record = numbered
    if record is not None and not _is_sound(shard, record):
        record = None
    if record is None or (plans is not None and record.fingerprint not in plans):
        reason = "done record unreadable or of another plan"
        return ShardState(shard=shard, state="damaged", reason=reason), record
    reason = _difference(store, record)
    state = "damaged" if reason else "done"
    return ShardState(shard=shard, state=state, reason=reason), record


def _is_sound(shard: int, record: DoneRecord) -> bool:
    """Tell whether a record is of the shard, names files of a store, and holds what is asked."""
    files: Any = record.files  # of a JSON file, whatever the types say
    attempts: Any = record.attempts
    return (
        record.shard == shard  # else the files of another one would be deleted with it
        and isinstance(files, dict)
        and all(isinstance(entry, dict) for entry in files.values())
        and isinstance(attempts, dict)
        and {str} >= {type(failure.item) for failure in record.failures}
    )


def _difference(store: Place, record: DoneRecord) -> str:
    """Say in which file a shard differs from its record; "" if in none."""
    try:
        found = sha256_of_shard([store / name for name in record.files], store, force=False)
    except StoreError as error:
        return str(error)
    for name, entry in record.files.items():
        if found[name] != entry:
            what = "sha256" if found[name]["bytes"] == entry.get("bytes") else "length"
            return f"{name}: {what} differs"
    return ""
