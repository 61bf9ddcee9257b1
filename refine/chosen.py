"""Shell: the strategy that calibration found best: which it is, and that a round follows it."""

from typing import Any

from pipeline.paths import RunPaths
from pipeline.places import Place
from pipeline.records import read_json, write_json
from refine.calibrate_config import CalibrateConfig
from refine.calibration import choice_fingerprint
from refine.stage import RefineConfig
from refine.strategies import ChainLink

HOLLOW = 1.5
"""A best setting with less than so many times the mean IoU of labels that mark the whole image is
not applied: a student would learn to mark everything."""


def best_by_strategy(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Give the best row of each strategy, best first."""
    best: dict[str, dict[str, Any]] = {}
    for row in document["rows"]:
        best.setdefault(row["strategy"], row)
    return list(best.values())


def apply_best(document: dict[str, Any], refine: RefineConfig, run_dir: Place) -> Place | None:
    """Write the best setting to `round-R/strategy.json`, which `refine-labels` follows.

    Its link takes the place of the chain's own; `drop` before it and the fallback after it stay.
    Where no setting is better than the teacher's own masks, or clearly better than marking the
    whole image, as happens with a teacher that knows nothing, an earlier choice is taken back.

    Args:
        document: What `calibrate` gave.
        refine: The config whose chain it changes.
        run_dir: Where.

    Returns:
        The file, or None if there was nothing better.
    """
    best, by = document["rows"][0], document["by"]
    path = RunPaths(run_dir).chosen_strategy(document["round"])
    is_hollow = best["mean_iou"] < HOLLOW * document["whole_image_mean_iou"]
    if is_hollow or not best[by] > document["teacher"][by]:
        path.unlink(missing_ok=True)
        return None
    link = ChainLink(strategy=best["strategy"], params=best["params"], min_gain=best["min_gain"])
    chain = [one for one in refine.chain if one.strategy == "drop"] + [link, refine.chain[-1]]
    write_json(
        path,
        {
            "fingerprint": document["fingerprint"],
            "inputs": document["inputs"],
            "chain": chain,
            "probability": document["probabilities"][best["probability"]],
            "chosen_by": {by: best[by], "teacher": document["teacher"][by]},
        },
    )
    return path


def is_chosen(config: CalibrateConfig, run_dir: Place, number: int) -> bool:
    """Tell whether a round's choice is there and was made of what is there now."""
    path = RunPaths(run_dir).chosen_strategy(number)
    document = read_json(path) if path.exists() else None
    return isinstance(document, dict) and document.get("fingerprint") == choice_fingerprint(
        config, run_dir
    )
