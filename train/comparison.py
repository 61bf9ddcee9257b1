"""Shell: compare an evaluation with another one, by what was recorded of each."""

import re
from pathlib import PurePosixPath
from typing import Any

from pipeline.columns import file_sha256
from pipeline.config import to_plain
from pipeline.errors import StoreError
from pipeline.found_values import shown
from pipeline.places import Place
from pipeline.records import read_json
from train.config import EvaluateConfig
from train.outcomes import Outcomes, common, compare, load_outcomes

_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")


def compare_with(
    config: EvaluateConfig,
    result: dict[str, Any],
    outcomes: Outcomes,
    metrics: Place,
    split: str,
) -> dict[str, Any]:
    """Compare an evaluation with another one of the same data, sentence by sentence.

    Args:
        config: Intervals.
        result: Made by `evaluate_student`.
        outcomes: Its columns.
        metrics: `metrics.json` of the other.
        split: The split.

    Returns:
        `path`; `sentences` that both have; per protocol that both have `gain`, `low` and `high` by
        name of `METRICS`, None for less than two images.

    Raises:
        StoreError: If the other has not evaluated this split, on these data.
    """
    document, other = stored_outcomes(metrics, split)
    inputs = document.get("inputs")
    manifest = inputs.get("manifest") if isinstance(inputs, dict) else None
    if manifest != result["inputs"]["manifest"]:
        is_plain = isinstance(manifest, str) and _NAME.fullmatch(manifest)
        named = str(manifest)[:16] if is_plain else shown(manifest)
        raise StoreError(
            f"{metrics}: evaluated on other data (manifest {named}, here "
            f"{result['inputs']['manifest'][:16]}); only runs on the same data can be compared"
        )
    protocols = [name for name in outcomes.protocols if name in other.protocols]
    if not protocols:
        raise StoreError(
            f"{metrics}: evaluated by {', '.join(other.protocols)}, here by "
            f"{', '.join(outcomes.protocols)}; set evaluate.protocols to the same"
        )
    found: dict[str, Any] = {"path": str(metrics), "sentences": len(common(outcomes, other)[0])}
    for name in protocols:
        settings = {"resamples": config.resamples or 1000, "seed": config.seed}
        found[name] = to_plain(compare(outcomes, other, name, **settings))
    return found


def stored_outcomes(metrics: Place, split: str) -> tuple[dict[str, Any], Outcomes]:
    """Read what was recorded of a split, with its columns.

    Raises:
        StoreError: If it was not evaluated, or a file is missing or damaged.
    """
    recorded = read_json(metrics)
    found = recorded.get(split) if isinstance(recorded, dict) else None
    kept = found.get("outcomes") if isinstance(found, dict) else None
    if found is None or not isinstance(kept, dict) or not {"file", "sha256"} <= kept.keys():
        raise StoreError(
            f"{metrics}: no evaluation of {split!r} with its sentences; run 'evaluate-student "
            f"--split {split}' there"
        )
    name = PurePosixPath(str(kept["file"])).name
    if not _NAME.fullmatch(name):
        raise StoreError(
            f"{metrics}: expected the name of a file beside it, found {shown(kept['file'])}"
        )
    path = metrics.parent / name
    if not path.is_file() or file_sha256(path) != kept["sha256"]:
        raise StoreError(
            f"{path}: missing or damaged (sha256 differs); run 'evaluate-student --split {split}'"
        )
    return found, load_outcomes(path)
