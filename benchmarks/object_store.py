"""What a run directory in an object store costs beside one on a disk, in one run.

python -m benchmarks.object_store --items 400 --shard-size 10 --latency 0.02

The null stage (three small arrays) on a disk, on an S3 server of this machine, and on that server
when every request takes `--latency` seconds longer: time per shard, requests per shard, and the
seconds in which a run with all done is found to be done. Then how long it takes to verify that
store, and one of large shards, with one thread and with several. The last table divides all
that the commands of a small job ask for, start-up and images included, by their shards.
"""

import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import click
import numpy as np

from pipeline.commands import print_table
from pipeline.records import Plan
from pipeline.runner import run_stage
from pipeline.shards import ShardResult
from pipeline.store import ArraySpec
from tests import object_server

LARGE_SHARDS, LARGE_BYTES = 40, 1 << 22
VERIFY = """
import sys, time
from pipeline.audit import verify_store
from pipeline.places import place
store, threads = place(sys.argv[1]), int(sys.argv[2])
for _ in range(2):
    began = time.monotonic()
    intact = verify_store(store, threads).intact
    seconds = time.monotonic() - began
print(intact, seconds)
"""
"""Twice, for the connection and the disk's cache are not what is compared."""


def null_command(items: int, shard_size: int, workers: int, run_dir: str) -> list[str]:
    """Give the command line of the null stage."""
    command = [sys.executable, "-m", "benchmarks.null_stage", "--items", str(items)]
    command += ["--shard-size", str(shard_size), "--run-dir", run_dir]
    return [*command, "--workers", str(workers)] if workers > 1 else command


def stage_seconds(command: list[str], cache: Path) -> tuple[float, float]:
    """Run a stage; give the seconds of the stage as it prints them, and of the process."""
    began = time.monotonic()
    ended = object_server.run(command, cache)
    if ended.code:
        raise RuntimeError(ended.err)
    found = re.search(r"seconds\s+\S\s+([\d.]+)", ended.out)
    if found is None:
        raise RuntimeError(f"no seconds in {ended.out}")
    return float(found[1]), time.monotonic() - began


def counted(start: int) -> Counter[str]:
    """Count the requests since one, by method."""
    return Counter(request.method for request in object_server.object_server().since(start))


def large_store(folder: Path) -> Path:
    """Write a store of large shards on a disk: bytes that do not compress."""
    store = folder / "large.zarr"

    def random_rows(rows: range) -> ShardResult:
        rng = np.random.default_rng(rows.start)
        values = rng.integers(0, 256, (len(rows), LARGE_BYTES), np.uint8)
        return ShardResult(columns={"noise": values})

    spec = ArraySpec(name="noise", dtype="uint8", row_shape=(LARGE_BYTES,))
    plan = Plan(
        stage="large", store=store, specs=(spec,), num_items=LARGE_SHARDS, shard_size=1,
        unit="items", decides={},
    )  # fmt: skip
    run_stage(plan, random_rows, made_by="large")
    return store


def sent(store: Path, bucket: str) -> str:
    """Put a store and its records into a bucket, without a request; give its URL."""
    for file in store.parent.rglob("*"):
        if file.is_file():
            key = f"large/{file.relative_to(store.parent).as_posix()}"
            object_server.put(bucket, key, file.read_bytes())
    return f"s3://{bucket}/large/{store.name}"


def verify_seconds(store: str, shards: int, threads: int, cache: Path) -> float:
    """Verify a store in a process of its own; give the seconds without its start."""
    ended = object_server.run([sys.executable, "-c", VERIFY, store, str(threads)], cache)
    if ended.code:
        raise RuntimeError(ended.err)
    intact, seconds = ended.out.split()
    if int(intact) != shards:
        raise RuntimeError(f"{store}: {intact} of {shards} shards intact")
    return float(seconds)


@click.command()
@click.option("--items", type=int, default=400, help="Items of the null stage.")
@click.option("--shard-size", type=int, default=10, help="Items per shard.")
@click.option("--latency", type=float, default=0.02, help="Seconds that a request takes longer.")
@click.option("--workers", type=int, default=2, help="Also with this many processes.")
@click.option("--threads", type=int, default=8, help="Verify also with this many threads.")
def main(items: int, shard_size: int, latency: float, workers: int, threads: int) -> None:
    """Print tables of the null stage, of verification, and of the requests of real shards."""
    server, shards = object_server.object_server(), -(-items // shard_size)
    rows: list[list[object]] = []
    verified: list[list[object]] = []
    with tempfile.TemporaryDirectory(prefix="semires-objects-") as name:
        folder = Path(name)
        (folder / "large").mkdir()
        large = large_store(folder / "large")
        for title, seconds, remote in (
            ("disk", 0.0, False),
            ("S3", 0.0, True),
            (f"S3 + {1000 * latency:g} ms", latency, True),
        ):
            server.trouble = lambda _method, _key, wait=seconds: wait or None
            bucket = object_server.make_bucket()
            above = f"s3://{bucket}" if remote else str(folder)
            for count in dict.fromkeys((1, workers)):
                command = null_command(items, shard_size, count, f"{above}/run-{count}")
                rows.append([title, count, *stage_row(command, shards, folder / "cache")])
            stores = (
                (f"{above}/run-1/null.zarr", shards),
                (sent(large, bucket) if remote else str(large), LARGE_SHARDS),
            )
            verified += [
                [title, number, *verify_row(stores, number, folder / "cache")]
                for number in dict.fromkeys((1, 2, threads))
            ]
        server.trouble = lambda _method, _key: None
        columns = ["where", "workers", "ms per shard", "requests per shard", "all done, s",
                   "requests"]  # fmt: skip
        print_table(f"null stage, {shards} shards of {shard_size}", columns, rows)
        columns = ["where", "threads", "ms per small shard", "requests per shard",
                   f"ms per shard of {LARGE_BYTES >> 20} MiB"]  # fmt: skip
        print_table("verify, the null stage's shards and large ones", columns, verified)
        print_table(
            "requests of real shards", ["stage", "shards", "requests per shard"], real(folder)
        )


def stage_row(command: list[str], shards: int, cache: Path) -> list[object]:
    """Run the null stage twice: what a shard cost, and what it cost to find all done."""
    before = len(object_server.object_server().log)
    first, _ = stage_seconds(command, cache)
    requests = counted(before)
    before = len(object_server.object_server().log)
    again, _ = stage_seconds(command, cache)
    shown = ", ".join(f"{n / shards:.1f} {method}" for method, n in sorted(requests.items()))
    total = sum(counted(before).values())
    return [f"{1000 * first / shards:.0f}", shown, f"{again:.2f}", total]


def verify_row(stores: tuple[tuple[str, int], ...], threads: int, cache: Path) -> list[object]:
    """Verify the store of small shards and that of large ones."""
    before = len(object_server.object_server().log)
    (small, shards), (large, large_shards) = stores
    seconds = verify_seconds(small, shards, threads, cache)
    requests = f"{sum(counted(before).values()) / 2 / shards:.1f}"
    large_seconds = verify_seconds(large, large_shards, threads, cache)
    return [
        f"{1000 * seconds / shards:.1f}", requests, f"{1000 * large_seconds / large_shards:.1f}",
    ]  # fmt: skip


def real(folder: Path) -> list[list[object]]:
    """Run the stages of a small job on S3; give a row for each stage that writes a store."""
    from tests.conftest import SMALL_JOB

    config = folder / "stages.yaml"
    config.write_text(SMALL_JOB)
    server, bucket = object_server.object_server(), object_server.make_bucket()
    options = ["--config", str(config), "--run-dir", f"s3://{bucket}/run"]
    rows: list[list[object]] = []
    for floor, verb, more, store in (
        ("pipeline", "prepare_data", [], None),
        ("pipeline", "sam_candidates", [], "candidates"),
        ("train", "train_student", ["--round", "0"], None),
        ("train", "predict_teacher", ["--round", "1"], "round-1/teacher"),
        ("refine", "refine_labels", ["--round", "1"], "round-1/labels"),
    ):
        before = len(server.log)
        ended = object_server.run([*object_server.verb(floor, verb), *options, *more], folder / "c")
        if ended.code:
            raise RuntimeError(ended.err)
        if store is not None:
            shards = len(object_server.objects(bucket, f"run/{store}.stage/done"))
            rows.append(
                [verb.replace("_", "-"), shards, f"{len(server.since(before)) / shards:.0f}"]
            )
    return rows


if __name__ == "__main__":
    main()
