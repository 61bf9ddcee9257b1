"""Compare strategies on one round of a run whose truth is known: `make bench-strategies`.

Every strategy refines the same teacher predictions against the same candidates, with PWA where it
does not answer; nothing is written. Times are of one process, reading, upsampling and packing
included.
"""

import time
from pathlib import Path

import click

from pipeline.commands import print_table
from pipeline.paths import RunPaths
from pipeline.records import stored_plan
from refine.quality import report
from refine.stage import RefineConfig, RefineWork, with_strategy
from refine.strategies import STRATEGIES

COLUMNS = ["strategy", "matched", "mIoU", "oIoU", "helped", "hurt", "helped share", "labels/s"]


def measure(run_dir: Path, number: int, strategy: str, limit: int | None) -> list[str]:
    """Refine a round in memory; give the strategy's row, percentages with two digits."""
    paths = RunPaths(run_dir)
    plan = stored_plan(paths.teacher(number), "predict-teacher")["plan"]
    canvas = int(stored_plan(paths.candidates, "sam-candidates")["plan"]["canvas"])
    config = with_strategy(RefineConfig(), strategy)
    work = RefineWork(run_dir=run_dir, number=number, canvas=canvas, config=config)
    count = min(limit or plan["num_items"], plan["num_items"])
    sums: dict[str, float] = {}
    started = time.monotonic()
    for start in range(0, count, 256):
        for name, value in work(range(start, min(start + 256, count))).counters.items():
            sums[name] = sums.get(name, 0) + value
    seconds = time.monotonic() - started
    figures = report(sums)
    shares = [figures[k] for k in ("match_rate", "refined_mean_iou", "refined_overall_iou")]
    precision = figures["correction_precision"]
    return [
        strategy,
        *(f"{100 * share:.2f}" for share in shares),
        str(figures["helped"]),
        str(figures["hurt"]),
        "–" if precision is None else f"{100 * precision:.1f}",
        f"{count / seconds:.0f}",
    ]


@click.command()
@click.option("--run-dir", type=click.Path(path_type=Path), default=Path("runs/demo"))
@click.option("--round", "number", type=click.IntRange(min=1), default=1)
@click.option("--limit", type=click.IntRange(min=1), help="The first N expressions only.")
def main(run_dir: Path, number: int, limit: int | None) -> None:
    """Print one row per strategy of `STRATEGIES`."""
    rows = [measure(run_dir, number, strategy, limit) for strategy in STRATEGIES]
    print_table(f"{run_dir}, round {number}, percent", COLUMNS, rows)


if __name__ == "__main__":
    main()
