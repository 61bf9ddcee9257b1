"""What a run directory in an object store costs beside one on a disk, in one run.

python -m benchmarks.object_store --items 400 --shard-size 10 --latency 0.02

The null stage (three small arrays) on a disk, on an S3 server of this machine, and on that server
when every request takes `--latency` seconds longer: time per shard, requests per shard, and the
seconds in which a run with all done is found to be done. The last table divides all
that the commands of a small job ask for, start-up and images included, by their shards.
"""

import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import click

from pipeline.commands import print_table
from tests import object_server


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


@click.command()
@click.option("--items", type=int, default=400, help="Items of the null stage.")
@click.option("--shard-size", type=int, default=10, help="Items per shard.")
@click.option("--latency", type=float, default=0.02, help="Seconds that a request takes longer.")
@click.option("--workers", type=int, default=2, help="Also with this many processes.")
def main(items: int, shard_size: int, latency: float, workers: int) -> None:
    """Print a table of the null stage, and one of the requests of real shards."""
    server, shards = object_server.object_server(), -(-items // shard_size)
    rows = []
    with tempfile.TemporaryDirectory(prefix="semires-objects-") as name:
        folder = Path(name)
        places = [
            ("disk", 0.0, False),
            ("S3", 0.0, True),
            (f"S3 + {1000 * latency:g} ms", latency, True),
        ]
        for title, seconds, remote in places:
            server.trouble = lambda _method, _key, wait=seconds: wait or None
            for count in dict.fromkeys((1, workers)):
                where = (
                    f"s3://{object_server.make_bucket()}/run"
                    if remote
                    else str(folder / str(count))
                )
                command = null_command(items, shard_size, count, where)
                before = len(server.log)
                first, _ = stage_seconds(command, folder / "cache")
                requests = counted(before)
                before = len(server.log)
                again, _ = stage_seconds(command, folder / "cache")
                shown = ", ".join(
                    f"{n / shards:.1f} {method}" for method, n in sorted(requests.items())
                )
                total = len(server.since(before))
                rows.append(
                    [title, count, f"{1000 * first / shards:.0f}", shown, f"{again:.2f}", total]
                )
        server.trouble = lambda _method, _key: None
        columns = [
            "where",
            "workers",
            "ms per shard",
            "requests per shard",
            "all done, s",
            "requests",
        ]
        print_table(f"null stage, {shards} shards of {shard_size}", columns, rows)
        print_table(
            "requests of real shards", ["stage", "shards", "requests per shard"], real(folder)
        )


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
