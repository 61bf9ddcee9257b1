"""A stage without networks, with the options of every stage: what is left is the runner.

python -m benchmarks.null_stage --run-dir runs/null --items 1000 --shard-size 10 --workers 2
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from pipeline.commands import finish_stage, force_to_replace, locked, stage_options, verb
from pipeline.engines import Engine
from pipeline.records import Plan
from pipeline.runner import run_stage
from pipeline.shards import ShardResult
from pipeline.store import ArraySpec

SPECS = (
    ArraySpec(name="square", dtype="int64"),
    ArraySpec(name="row", dtype="uint8", row_shape=(16,)),
    ArraySpec(name="bytes", dtype="uint8", payload=True),
)


@dataclass(frozen=True, slots=True)
class Null:
    """Write i * i, in its time."""

    seconds: float = 0.0

    def __call__(self, rows: range) -> ShardResult:
        """Give the columns of some rows."""
        time.sleep(self.seconds)
        values = np.array(rows, np.int64)
        columns: dict[str, Any] = {
            "square": values**2,
            "row": np.repeat(values[:, None] % 251, 16, axis=1),
            "bytes": np.asarray(values % 256, np.uint8),
        }
        return ShardResult(columns=columns, counters={"items": len(rows)})


def null_plan(folder: Path, num_items: int, shard_size: int) -> Plan:
    """Plan a store of squares in a folder."""
    return Plan(
        stage="null",
        store=folder / "null.zarr",
        specs=SPECS,
        num_items=num_items,
        shard_size=shard_size,
        unit="items",
        decides={"power": 2},
    )


@click.command()
@click.option("--items", type=int, default=1000, help="Items of the stage.")
@click.option("--shard-size", type=int, default=10, help="Items per shard.")
@click.option("--seconds", type=float, default=0.0, help="How long the null model takes a shard.")
@stage_options
@verb
def null_stage(
    *,
    run_dir: Path,
    items: int,
    shard_size: int,
    seconds: float,
    limit: int | None,
    engine: Engine,
    force: bool,
    **_others: Any,
) -> int:
    """Write squares."""
    plan = null_plan(run_dir.resolve(), items, shard_size)

    def run() -> int:
        options: dict[str, Any] = {"limit": limit, "replace": force_to_replace(force)}
        summary = run_stage(plan, Null(seconds), engine=engine, made_by="null-stage", **options)
        return finish_stage(summary)

    return locked(plan.store.parent, run, engine)


if __name__ == "__main__":
    from benchmarks import null_stage as module  # by its own name, for the workers

    module.null_stage()
