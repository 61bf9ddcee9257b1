"""Shell: what a round gained on the one before, whether that is more than chance, when to stop."""

from typing import Any

from pipeline.errors import StoreError
from pipeline.paths import RunPaths
from pipeline.places import Place
from train.comparison import compare_with, stored_outcomes
from train.config import EvaluateConfig, StopConfig

_KEYS = {"mIoU": "mean_iou", "oIoU": "overall_iou"}


def gain_of_round(config: EvaluateConfig, run_dir: Place, number: int) -> dict[str, Any] | None:
    """Compare a round with the one before, on the first of `evaluate.splits`.

    Args:
        config: Headline and intervals.
        run_dir: Run directory; both rounds must be evaluated.
        number: The round, from 1.

    Returns:
        `split`, `over` (the round before), `sentences`, and by name of `outcomes.METRICS` the
        `gain` with the ends `low` and `high` of its 95 % interval; None where there is nothing to
        compare: no such split, or a single image.
    """
    paths = RunPaths(run_dir)
    for split in config.splits[:1]:
        try:
            result, outcomes = stored_outcomes(paths.metrics(number), split)
        except StoreError:  # the data set has no such split
            return None
        found = compare_with(config, result, outcomes, paths.metrics(number - 1), split)
        differences = found[config.headline]
        if differences is not None:
            about = {"split": split, "over": number - 1, "sentences": found["sentences"]}
            return {**about, **differences}
    return None


def gain_line(number: int, gain: dict[str, Any] | None) -> str:
    """Say in one line what a round gained, in points, and whether that is more than chance."""
    if gain is None:
        return f"round {number}: nothing to compare with round {number - 1}"
    ends = gain["mIoU"]
    chance = "outside" if ends["low"] > 0 or ends["high"] < 0 else "within"
    return (
        f"round {number}: mIoU on {gain['split']} {100 * ends['gain']:+.2f} over round "
        f"{gain['over']} (95 %: {100 * ends['low']:+.2f} to {100 * ends['high']:+.2f}), "
        f"{chance} what other images would change"
    )


def score_of(row: dict[str, Any], stop: StopConfig, config: EvaluateConfig) -> float | None:
    """Give a round's metric on the first of `evaluate.splits`; None if it was not evaluated."""
    result = row["metrics"].get(config.splits[0]) if config.splits else None
    return None if result is None else result[config.headline][_KEYS[stop.metric]]


def best_round(rows: list[dict[str, Any]], stop: StopConfig, config: EvaluateConfig) -> int:
    """Give the round that is best: the first that none beats by more than `min_gain`.

    Rounds that were not evaluated beat none; without any the last round is given.
    """
    best, best_score = rows[-1]["round"], None
    for row in rows:
        score = score_of(row, stop, config)
        if score is not None and (best_score is None or score > best_score + stop.min_gain):
            best, best_score = row["round"], score
    number: int = best
    return number


def reason_to_stop(
    rows: list[dict[str, Any]], stop: StopConfig | None, config: EvaluateConfig
) -> str | None:
    """Say in one line why no further round is worth it, or None to go on.

    Args:
        rows: Rounds so far, with `round` and `metrics`.
        stop: The rule; None never stops.
        config: Split and protocol that count.
    """
    if stop is None or score_of(rows[-1], stop, config) is None:
        return None
    best, number = best_round(rows, stop, config), rows[-1]["round"]
    if number - best < stop.patience:
        return None
    scores = {row["round"]: score_of(row, stop, config) for row in rows}
    shown = {n: "–" if score is None else f"{100 * score:.2f}" for n, score in scores.items()}
    return (
        f"stopped after round {number}: {stop.metric} on {config.splits[0]} {shown[number]}, "
        f"round {best} is best with {shown[best]}; {number - best} in a row did not beat it "
        f"by more than {100 * stop.min_gain:g} points"
    )
