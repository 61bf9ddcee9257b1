"""Shell: what a store holds, whether it is intact, and how to mend it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import StoreError
from pipeline.records import DoneRecord, done_path, read_done, records_folder, stored_plan
from pipeline.store import open_store, sha256_of_shard


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardState:
    """One shard: `done`, `missing` (never finished) or `damaged`, with the reason."""

    shard: int
    state: str
    reason: str


def find_stores(path: Path) -> list[Path]:
    """List the stores at a path: the path itself, or all below a run directory.

    Raises:
        StoreError: If there is none.
    """
    if (path / "zarr.json").exists():
        return [path]
    stores = sorted(found.parent for found in path.glob("**/*.zarr/zarr.json"))
    if not stores:
        raise StoreError(f"{path}: no store there; give a .zarr folder or a run directory")
    return stores


def describe(store: Path) -> dict[str, Any]:
    """Give a store's figures: arrays with shape, type and bytes, shards, failures, plan."""
    document = stored_plan(store, "the stage that makes it")
    plan = document["plan"]
    num_shards = -(-int(plan["num_items"]) // int(plan["shard_size"]))
    records = [read_done(store, shard, document["fingerprint"]) for shard in range(num_shards)]
    done = [record for record in records if record is not None]
    return {
        "stage": plan["stage"],
        "fingerprint": document["fingerprint"],
        "items": int(plan["num_items"]),
        "unit": document["unit"],
        "shards": num_shards,
        "done": len(done),
        "failures": [failure for record in done for failure in record.failures],
        "seconds": sum(record.seconds for record in done),
        "arrays": _describe_arrays(store, done),
    }


def _describe_arrays(store: Path, done: list[DoneRecord]) -> list[list[Any]]:
    stored: dict[str, int] = {}
    for record in done:
        for file, entry in record.files.items():
            owner = file.split("/", 1)[0]
            stored[owner] = stored.get(owner, 0) + int(entry["bytes"])
    rows: list[list[Any]] = []
    for name, array in sorted(open_store(store).arrays(), key=lambda pair: pair[0]):
        shape = "x".join(map(str, array.shape))
        chunks = "x".join(map(str, array.chunks))
        rows.append([name, str(array.dtype), shape, chunks, stored.get(name, 0)])
    return rows


def verify(store: Path) -> list[ShardState]:
    """Hash every file of every shard against its done record.

    Returns:
        One state per shard, in order.
    """
    document = stored_plan(store, "the stage that makes it")
    plan, fingerprint = document["plan"], document["fingerprint"]
    num_shards = -(-int(plan["num_items"]) // int(plan["shard_size"]))
    return [_verify_shard(store, shard, fingerprint) for shard in range(num_shards)]


def _verify_shard(store: Path, shard: int, fingerprint: str) -> ShardState:
    record = read_done(store, shard, fingerprint)
    if record is None:
        present = done_path(store, shard).exists()
        reason = "done record unreadable or of another plan" if present else "no done record"
        return ShardState(shard=shard, state="damaged" if present else "missing", reason=reason)
    for name, entry in record.files.items():
        try:
            found = sha256_of_shard([store / name], store)[name]
        except StoreError as error:
            return ShardState(shard=shard, state="damaged", reason=str(error))
        if found != entry:
            what = "sha256" if found["bytes"] == entry["bytes"] else "length"
            return ShardState(shard=shard, state="damaged", reason=f"{name}: {what} differs")
    return ShardState(shard=shard, state="done", reason="")


def repair(store: Path) -> list[ShardState]:
    """Delete damaged shards, proof first, so that the stage's next run makes them anew.

    Returns:
        The damaged shards.
    """
    damaged = [state for state in verify(store) if state.state == "damaged"]
    for state in damaged:
        record = read_done(store, state.shard, stored_plan(store, "")["fingerprint"])
        done_path(store, state.shard).unlink(missing_ok=True)
        for name in record.files if record is not None else ():
            (store / name).unlink(missing_ok=True)
    for partial in records_folder(store).glob("**/.*.partial"):
        partial.unlink()
    return damaged
