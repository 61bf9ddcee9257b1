"""Compare strategies and weights on one round of a run whose truth is known.

`make bench-strategies`: every strategy at its defaults, the paper's beside ours, then the same with
probabilities that know their context, at the slope and bias that `refine-labels calibrate` fitted
to held-out labelled images. All refine the same teacher predictions against the same candidates,
with PWA where a strategy does not answer; nothing is written. Times are of one process, reading,
upsampling and packing included, measuring not.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

from pipeline.commands import print_table
from pipeline.paths import RunPaths
from pipeline.records import read_json, stored_plan
from refine.choice import draw
from refine.predictions import Predictions
from refine.probability import ProbabilityConfig
from refine.quality import report
from refine.stage import RefineConfig, RefineWork, config_of_round, with_strategy
from refine.strategies import STRATEGIES, ChainLink, choose
from refine.weighting import WEIGHTINGS

Counts = npt.NDArray[np.int64]

COLUMNS = [
    "strategy", "probability", "matched", "mIoU", "oIoU", "helped", "hurt", "helped share",
    "small", "medium", "large", "labels/s",
]  # fmt: skip
PAPER = ("none", "iom", "cpi", "cpi-u", "cpi-o", "drop")
OURS = ("soft-iou", "vote", "best-union")
PARAMS = {"soft-iou": {"min_iou": 0.0}, "best-union": {"min_expected_iou": 0.0}}
"""In context a strategy of ours is asked about every label."""


def contestants(run_dir: Path, number: int) -> Iterator[tuple[str, str, RefineConfig]]:
    """List name, probability and config of everything that is compared."""
    for strategy in sorted(STRATEGIES, key=lambda name: name not in PAPER):
        yield strategy, "own", with_strategy(RefineConfig(), strategy)
    path = RunPaths(run_dir).calibration(number)
    if not path.exists():
        return
    for name, values in read_json(path)["probabilities"].items():
        if not name.endswith(" x1"):  # own is above, sharper ones are the calibration's business
            continue
        config = replace(RefineConfig(), probability=ProbabilityConfig(**values))
        for strategy in OURS:
            link = ChainLink(strategy=strategy, params=dict(PARAMS.get(strategy, {})))
            yield strategy, name, replace(config, chain=(link, ChainLink(strategy="pwa")))


def measure(run_dir: Path, number: int, config: RefineConfig, limit: int | None) -> list[str]:
    """Refine a round in memory; give a row's figures, percentages with two digits."""
    paths = RunPaths(run_dir)
    plan = stored_plan(paths.teacher(number), "predict-teacher")["plan"]
    canvas = int(stored_plan(paths.candidates, "sam-candidates")["plan"]["canvas"])
    count = min(limit or plan["num_items"], plan["num_items"])
    sums: dict[str, float] = {}
    seconds = 0.0
    for measured in (True, False):
        chosen = replace(config, measure=measured)
        work = RefineWork(run_dir=run_dir, number=number, canvas=canvas, config=chosen)
        started = time.monotonic()
        for start in range(0, count, 256):
            counters = work(range(start, min(start + 256, count))).counters
            for name, value in counters.items() if measured else ():
                sums[name] = sums.get(name, 0) + value
        seconds = time.monotonic() - started
    figures = report(sums)
    shares = [figures[k] for k in ("match_rate", "refined_mean_iou", "refined_overall_iou")]
    precision = figures["correction_precision"]
    sizes = [figures["by_size"][size]["refined_mean_iou"] for size in ("small", "medium", "large")]
    return [
        *("–" if share is None else f"{100 * share:.2f}" for share in shares),
        str(figures["helped"]),
        str(figures["hurt"]),
        "–" if precision is None else f"{100 * precision:.1f}",
        *("–" if share is None else f"{100 * share:.1f}" for share in sizes),
        f"{count / seconds:.0f}",
    ]


def weight_auc(right: Counts, wrong: Counts) -> float:
    """Give the chance that a right pixel weighs more than a wrong one, ties as a half.

    Args:
        right: Right pixels per weight 0 to 255, (256,).
        wrong: Wrong ones.
    """
    below = np.cumsum(wrong) - wrong
    return float((right * (below + wrong / 2)).sum() / max(right.sum() * wrong.sum(), 1))


def measure_weights(
    run_dir: Path, number: int, config: RefineConfig, labels: int
) -> list[list[str]]:
    """Weigh the labels of a chain by every rule; a good rule weighs right pixels more."""
    paths = RunPaths(run_dir)
    count = stored_plan(paths.teacher(number), "predict-teacher")["plan"]["num_items"]
    canvas = int(stored_plan(paths.candidates, "sam-candidates")["plan"]["canvas"])
    contexts = (config.probability.context,)
    predictions = Predictions(run_dir=run_dir, teacher=paths.teacher(number), contexts=contexts)
    chain = config.parsed_chain()
    found = {name: np.zeros((2, 256), np.int64) for name in WEIGHTINGS}
    mean = dict.fromkeys(WEIGHTINGS, 0.0)
    for start in range(0, count, max(count * 16 // labels, 16)):
        for _, image, group in predictions.by_image(range(start, min(start + 16, count))):
            for prediction in group:
                truth = predictions.truth(prediction, canvas)
                if truth is None or prediction.problem is not None:
                    continue
                evidence = predictions.see(image, prediction, config.probability)
                mask = draw(evidence, choose(evidence, chain)[0])
                for name, rule in WEIGHTINGS.items():
                    weight = rule.function(evidence, mask, rule.config())
                    level = np.full(mask.shape, 255, np.uint8)
                    if weight is not None:
                        level = np.rint(weight * 255).astype(np.uint8)
                    for side, pixels in enumerate((mask == truth, mask != truth)):
                        found[name][side] += np.bincount(level[pixels], minlength=256)
    rows = []
    for name, counts in found.items():
        mean[name] = float((counts.sum(0) * np.arange(256)).sum() / 255 / max(counts.sum(), 1))
        rows.append([name, f"{weight_auc(*counts):.3f}", f"{mean[name]:.3f}"])
    return rows


@click.command()
@click.option("--run-dir", type=click.Path(path_type=Path), default=Path("runs/demo"))
@click.option("--round", "number", type=click.IntRange(min=1), default=1)
@click.option("--limit", type=click.IntRange(min=1), help="The first N expressions only.")
@click.option("--weights", type=click.IntRange(min=16), default=500, show_default=True)
def main(run_dir: Path, number: int, limit: int | None, weights: int) -> None:
    """Print one row per strategy, then one per weighting."""
    rows = []
    for strategy, probability, config in contestants(run_dir, number):
        rows.append([strategy, probability, *measure(run_dir, number, config, limit)])
    print_table(f"{run_dir}, round {number}, percent", COLUMNS, rows)
    chosen = config_of_round(RefineConfig(), run_dir, number)
    for title, config in (
        ("teacher's own masks", with_strategy(RefineConfig(), "none")),
        (", ".join(link.strategy for link in chosen.chain), chosen),
    ):
        table = measure_weights(run_dir, number, config, weights)
        print_table(f"weights of {title}", ["weight", "AUC, right over wrong", "mean"], table)


if __name__ == "__main__":
    main()
