"""The fault table's rows of object stores: drivers killed, the store out of reach, objects damaged.

The null stage runs against an S3 server of this machine, in processes of its own; its store is
compared object by object with that of an undisturbed run on a disk.
"""

import hashlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from benchmarks.null_runs import ITEMS, NULL, SHARD_SIZE, Row, null_hashes, until
from tests import object_server

NUM_SHARDS = ITEMS // SHARD_SIZE


def store_hashes(bucket: str, run: str) -> dict[str, str]:
    """Hash the objects of the null stage's store, by name in the run."""
    found = object_server.objects(bucket, run)
    return {
        name: hashlib.sha256(content).hexdigest()
        for name, content in found.items()
        if name.startswith("null.zarr/")
    }


def num_done(bucket: str, run: str) -> int:
    """Count the shards that are done."""
    done = f"{run}/null.stage/done"
    return len(object_server.objects(bucket, done))


def start(bucket: str, run: str, cache: Path, seconds: float) -> "subprocess.Popen[str]":
    """Start the null stage on the server."""
    command = [*NULL, "--run-dir", f"s3://{bucket}/{run}", "--seconds", str(seconds)]
    return object_server.start(command, cache)


def finished(bucket: str, run: str, cache: Path, expected: dict[str, str]) -> int:
    """Run the null stage to its end; give 1 if the store differs."""
    process = start(bucket, run, cache, 0)
    process.communicate()
    return int(process.returncode != 0 or store_hashes(bucket, run) != expected)


def kill_drivers(folder: Path, times: int, rng: np.random.Generator) -> Row:
    """SIGKILL the driver at random moments, and start it again."""
    expected, bucket = null_hashes(folder / "whole"), object_server.make_bucket()
    killed, stores, lost = 0, 0, 0
    while killed < times:
        run = f"killed-{stores}"
        process = start(bucket, run, folder / "cache", 0.01)
        goal = min(NUM_SHARDS - 1, num_done(bucket, run) + int(rng.integers(1, 9)))
        reached = _reached(bucket, run, goal)
        until(lambda: reached() or process.poll() is not None)  # noqa: B023 - asked at once
        time.sleep(float(rng.uniform(0, 0.1)))
        process.kill()
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        if num_done(bucket, run) >= NUM_SHARDS - 1:
            lost += finished(bucket, run, folder / "cache", expected)
            stores += 1
    lost += finished(bucket, f"killed-{stores}", folder / "cache", expected)
    return Row("SIGKILL of the driver, on S3", killed, f"{stores + 1} stores compared", lost)


def _reached(bucket: str, run: str, goal: int) -> Callable[[], bool]:
    return lambda: num_done(bucket, run) >= goal


def cut_off(folder: Path, times: int, rng: np.random.Generator) -> Row:
    """Take the server away in the middle of the stage: one line and exit 1, then go on."""
    expected, bucket = null_hashes(folder / "whole"), object_server.make_bucket()
    server = object_server.object_server()
    clean = wrong = 0
    for number in range(times):
        run = f"cut-{number}"
        process = start(bucket, run, folder / "cache", 0.01)
        reached = _reached(bucket, run, int(rng.integers(1, NUM_SHARDS // 2)))
        until(lambda: reached() or process.poll() is not None)  # noqa: B023 - asked at once
        server.trouble = lambda _method, _key: "drop"
        _, err = process.communicate()
        server.trouble = lambda _method, _key: None
        lines = [line for line in err.splitlines() if line.startswith("error:")]
        good = process.returncode == 1 and len(lines) == 1 and "object store" in lines[0]
        clean += good
        done = store_hashes(bucket, run)
        half = any(done.get(name, value) != value for name, value in expected.items())
        wrong += int(not good or half) + finished(bucket, run, folder / "cache", expected)
    outcome = f"one clear line, exit 1: {clean} times"
    return Row("object store out of reach, on S3", times, outcome, wrong)


def damage_objects(folder: Path, times: int, rng: np.random.Generator) -> Row:
    """Flip a bit of, cut or delete objects; verify, repair, run again, compare."""
    from pipeline.audit import repair, verify_store
    from pipeline.errors import StoreError
    from pipeline.places import place

    expected, bucket = null_hashes(folder / "whole"), object_server.make_bucket()
    missed = lost = 0
    lost += finished(bucket, "run", folder / "cache", expected)
    with object_server.used_here(folder / "cache"):
        store = place(f"s3://{bucket}/run/null.zarr")
        for _ in range(times):
            names = sorted(
                name
                for name in object_server.objects(bucket, "run")
                if not name.startswith(".lock")
            )
            name = str(rng.choice(names))
            damage_one(bucket, f"run/{name}", rng)
            missed += not any(
                p.state in ("damaged", "missing") for p in verify_store(store).problems
            )
            with suppress(StoreError):  # of a store without a plan, which the next run writes
                repair(store)
            lost += finished(bucket, "run", folder / "cache", expected)
    return Row(
        "object flipped, cut or deleted, on S3", times, f"{times - missed} found", missed + lost
    )


def damage_one(bucket: str, key: str, rng: np.random.Generator) -> None:
    """Damage one object in one of three ways."""
    content = bytearray(object_server.objects(bucket)[key])
    kind = int(rng.integers(3))
    if kind == 0 and content:
        content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        del content[int(rng.integers(max(1, len(content)))) :]
    object_server.put(bucket, key, None if kind == 2 else bytes(content))


def rows(folder: Path, rng: np.random.Generator) -> Iterator[Row]:
    """Do everything, the long version."""
    yield kill_drivers(folder, 15, rng)
    yield cut_off(folder, 6, rng)
    yield damage_objects(folder, 30, rng)
