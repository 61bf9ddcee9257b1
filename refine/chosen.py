"""Shell: the strategy that calibration found best: which it is, and that a round follows it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import yaml

from pipeline.config import to_plain
from pipeline.paths import RunPaths
from pipeline.places import Place
from pipeline.records import read_json, write_json
from refine.calibrate_config import HOLLOW, CalibrateConfig
from refine.calibration import choice_fingerprint
from refine.stage import RefineConfig
from refine.strategies import ChainLink


def best_by_strategy(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Give the best row of each strategy, best first."""
    best: dict[str, dict[str, Any]] = {}
    for row in document["rows"]:
        best.setdefault(row["strategy"], row)
    return list(best.values())


def reason_against(document: dict[str, Any]) -> str | None:
    """Say why the best setting is not to be applied, with the numbers compared; None if it is.

    It must be better than the teacher's own masks by what decides, and clearly better than marking
    the whole image by mean IoU, as it is not with a teacher that knows nothing.
    """
    best, by = document["rows"][0], document["by"]
    own, whole = document["teacher"][by], document["whole_image_mean_iou"]
    names = {"mean_iou": "mIoU", "overall_iou": "oIoU"}
    if not best[by] > own:
        return (
            f"the best setting ({best['strategy']}, {names[by]} {100 * best[by]:.2f}) is no better "
            f"than the teacher's own masks ({100 * own:.2f})"
        )
    if best["mean_iou"] < HOLLOW * whole:
        return (
            f"the best setting ({best['strategy']}, mIoU {100 * best['mean_iou']:.2f}) is below "
            f"{HOLLOW:g} times marking the whole image ({100 * whole:.2f}, times {HOLLOW:g} is "
            f"{100 * HOLLOW * whole:.2f}): with so weak a teacher any large mask looks good"
        )
    return None


def with_best(document: dict[str, Any], refine: RefineConfig) -> RefineConfig:
    """Give a config with the best setting.

    Its link takes the place of the chain's own; `drop` before it and the fallback after it stay.

    Args:
        document: What `calibrate` gave.
        refine: The config whose chain and probability it changes.
    """
    best = document["rows"][0]
    link = ChainLink(strategy=best["strategy"], params=best["params"], min_gain=best["min_gain"])
    drops = [one for one in refine.chain if one.strategy == "drop"]
    return dataclasses.replace(
        refine,
        chain=(*drops, link, refine.chain[-1]),
        probability=document["probabilities"][best["probability"]],
    )


def section_text(config: RefineConfig, given: Mapping[str, Any]) -> str:
    """Write a config as the `refine` section of stages.yaml, in place of the one given.

    Args:
        config: Whose chain and probability are written in full; what a link has by default is not.
        given: The section as it stands, whose other keys are kept.

    Returns:
        YAML, which parsed gives the config again.
    """
    section = {
        **given,
        "chain": [_without_defaults(link) for link in config.chain],
        "probability": to_plain(config.probability),
    }
    return yaml.safe_dump(
        {"refine": section},
        sort_keys=False,
        default_flow_style=None,
        width=1000,
        allow_unicode=True,
    )


def _without_defaults(link: ChainLink) -> dict[str, Any]:
    usual = to_plain(ChainLink(strategy=""))
    return {name: value for name, value in to_plain(link).items() if value != usual[name]}


def apply_best(document: dict[str, Any], refine: RefineConfig, run_dir: Place) -> Place | None:
    """Write the best setting to `round-R/strategy.json`, which `refine-labels` follows.

    Where `reason_against` has a reason, an earlier choice is taken back.

    Args:
        document: What `calibrate` gave.
        refine: The config whose chain it changes.
        run_dir: Where.

    Returns:
        The file, or None if there was nothing better.
    """
    best, by = document["rows"][0], document["by"]
    path = RunPaths(run_dir).chosen_strategy(document["round"])
    if reason_against(document) is not None:
        path.unlink(missing_ok=True)
        return None
    config = with_best(document, refine)
    write_json(
        path,
        {
            "fingerprint": document["fingerprint"],
            "inputs": document["inputs"],
            "chain": config.chain,
            "probability": config.probability,
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
