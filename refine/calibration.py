"""Shell: try strategies and thresholds on labelled images that the teacher has not seen.

The predictions are those of the folds' burn-ins (`train-student --fold`, `predict-teacher --fold`):
each was trained without the images that it predicts. They stand in for the teacher of any round;
a later teacher is better, so that its best threshold may lie elsewhere.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.errors import ConfigError, StoreError
from pipeline.folds import Fold
from pipeline.manifest import load_manifest
from pipeline.paths import RunPaths
from pipeline.records import require_rows, stored_plan, write_json
from refine.choice import count_truth
from refine.evidence import FloatArray, ImageEvidence
from refine.predictions import Prediction, Predictions
from refine.probability import Context, ProbabilityConfig, fit_probability
from refine.quality import mask_iou, size_of
from refine.strategies import KEEP_LABEL, STRATEGIES, ParameterValue
from refine.sweep import (
    DEFAULT_GATES,
    DEFAULT_GRID,
    Answers,
    Records,
    Setting,
    ask_all,
    collect,
    expand,
    figures,
    gain_interval,
)

ROWS_AT_ONCE = 256
FIT_EXPRESSIONS, FIT_PIXELS = 400, 200


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrateConfig:
    """The `calibrate` section of stages.yaml."""

    folds: int = 4
    """Parts of the labelled images, at least 2; each is predicted by a burn-in on the others."""
    by: Literal["mean_iou", "overall_iou"] = "mean_iou"
    """What decides: the mean over labels, as a student sees them, or the sum over pixels."""
    contexts: tuple[Context, ...] = ("none", "siblings", "rivals")
    """Values of `refine.probability.context` to try, with slope and bias fitted to the truth of the
    labelled images; beside them always the teacher's own probability."""
    sharpness: tuple[float, ...] = (1.0, 1.6, 2.5)
    """Factors on the fitted slope. The fit is right on average over all pixels; which candidate
    is best is decided by few of them, of which the teacher may be surer."""
    grid: dict[str, dict[str, tuple[ParameterValue, ...]]] = field(default_factory=dict)
    """Strategy -> parameter -> values to try; empty takes `DEFAULT_GRID`. Strategies that see P
    alone are tried with the teacher's own probability only."""
    gates: tuple[float | None, ...] = DEFAULT_GATES
    """Values of `min_gain` to try with every setting."""

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise ValueError(f"folds: expected at least 2, found {self.folds}")
        if not self.gates or any(not factor > 0 for factor in self.sharpness):
            raise ValueError("expected at least one of gates, and sharpness above 0")
        self.settings()

    def settings(self) -> list[Setting]:
        """Give the settings before gating.

        Raises:
            ValueError: If the grid does not hold together.
        """
        return expand(self.grid or DEFAULT_GRID)


@dataclass(frozen=True, slots=True)
class _Known:
    """One prediction whose truth is known."""

    image: int
    evidence: ImageEvidence
    prediction: Prediction
    truth_HW: npt.NDArray[np.bool_]


class HeldOut:
    """The predictions of all folds of a run."""

    def __init__(self, config: CalibrateConfig, run_dir: Path, limit: int | None) -> None:
        self._paths = RunPaths(run_dir)
        contexts: tuple[Context, ...] = tuple(dict.fromkeys(("none", *config.contexts)))
        candidates = stored_plan(self._paths.candidates, "sam-candidates")
        self._canvas = int(candidates["plan"]["canvas"])
        self._limit = limit
        self._stores: list[tuple[Predictions, int]] = []
        for number in range(1, config.folds + 1):
            fold = Fold(number, config.folds)
            path, made_by = self._paths.fold_teacher(fold), f"predict-teacher --fold {fold}"
            plan = stored_plan(path, made_by)["plan"]
            require_rows(path, made_by, None)
            manifest = load_manifest(self._paths.manifest)
            if plan["inputs"]["manifest"] != manifest.fingerprint:
                raise StoreError(f"{path}: made of another data set; run '{made_by} --force'")
            predictions = Predictions(run_dir=run_dir, teacher=path, contexts=contexts)
            self._stores.append((predictions, int(plan["num_items"])))

    def visit(self, each: Callable[[Predictions, _Known], None], at_most: int | None = None) -> int:
        """Call a function for every prediction whose truth is known; give how many were skipped.

        With a limit, whole images are taken evenly from the folds until there are enough.
        """
        limit = min(x for x in (self._limit, at_most, 1 << 62) if x is not None)
        skipped = 0
        for predictions, count in self._stores:
            seen = 0
            share = -(-limit // len(self._stores))
            for start in range(0, count, ROWS_AT_ONCE):
                if seen >= share:
                    break
                rows = range(start, min(start + ROWS_AT_ONCE, count))
                for image, evidence, group in predictions.by_image(rows):
                    if seen >= share:
                        break
                    for prediction in group:
                        truth_HW = predictions.truth(prediction, self._canvas)
                        if prediction.problem is not None or truth_HW is None:
                            skipped += 1
                            continue
                        each(predictions, _Known(image, evidence, prediction, truth_HW))
                        seen += 1
        return skipped


def fit_variants(config: CalibrateConfig, held_out: HeldOut) -> dict[str, ProbabilityConfig]:
    """Fit slope and bias in every context to pixels drawn from some held-out expressions.

    Returns:
        Name -> how p is made; the first, "own", is the teacher's own.
    """
    rng = np.random.default_rng(0)
    margins: dict[Context, list[FloatArray]] = {context: [] for context in config.contexts}
    truths: list[npt.NDArray[np.bool_]] = []

    def draw(_predictions: Predictions, known: _Known) -> None:
        height, width = known.prediction.own_hw.shape
        pixel = rng.integers(0, height * width, FIT_PIXELS)
        y, x = pixel // width, pixel % width
        # The corners of the network's map lie on the corners of the image.
        rows = np.rint(y * (known.truth_HW.shape[0] - 1) / max(height - 1, 1)).astype(int)
        columns = np.rint(x * (known.truth_HW.shape[1] - 1) / max(width - 1, 1)).astype(int)
        truths.append(known.truth_HW[rows, columns])
        for context, found in margins.items():
            found.append(known.prediction.margins[context][y, x])

    variants = {"own": ProbabilityConfig()}
    if margins:
        held_out.visit(draw, at_most=FIT_EXPRESSIONS)
    for context, found in margins.items() if truths else ():
        slope, bias = fit_probability(np.concatenate(found), np.concatenate(truths))
        for factor in config.sharpness:
            name = f"{'fitted' if context == 'none' else context} x{factor:g}"
            variants[name] = ProbabilityConfig(
                context=context, slope=round(slope * factor, 4), bias=round(bias * factor, 4)
            )
    return variants


def settings_of(settings: list[Setting], variant: str) -> list[Setting]:
    """Give the settings that are tried with one way to make the probability."""
    if variant == "own":
        return settings
    return [one for one in settings if STRATEGIES[one.strategy].sees_prob or one.strategy == "none"]


def sweep(
    settings: list[Setting], variants: dict[str, ProbabilityConfig], held_out: HeldOut
) -> tuple[dict[str, Records], int]:
    """Ask all settings about every held-out expression; give what they answered, and skipped ones.

    Raises:
        StoreError: If no expression has a truth.
    """
    answers: dict[str, list[Answers]] = {name: [] for name in variants}
    asked = {name: settings_of(settings, name) for name in variants}

    def ask(predictions: Predictions, known: _Known) -> None:
        size = size_of(known.truth_HW)
        for name, probability in variants.items():
            evidence, own_HW = predictions.see(known.evidence, known.prediction, probability)
            inside, union, _ = mask_iou(own_HW, known.truth_HW)
            truth = count_truth(evidence, known.truth_HW)
            answers[name].append(
                ask_all(asked[name], evidence, truth, (inside, union), size, known.image)
            )

    skipped = held_out.visit(ask)
    if not all(answers.values()):
        raise StoreError("no held-out expression has a known truth; nothing can be calibrated")
    return {name: collect(rows) for name, rows in answers.items()}, skipped


def calibrate(
    config: CalibrateConfig, run_dir: Path, number: int, limit: int | None = None
) -> dict[str, Any]:
    """Sweep all settings and write `round-R/calibration.json`.

    Args:
        config: What is tried.
        run_dir: Run directory with candidates and the folds' predictions.
        number: The round, from 1, for which a strategy is sought.
        limit: About so many expressions only.

    Returns:
        The document: a row per setting, best first; the teacher's own masks as the baseline.

    Raises:
        StoreError: If predictions are missing or stale.
    """
    started = time.monotonic()
    held_out = HeldOut(config, run_dir, limit)
    settings = config.settings()
    variants = fit_variants(config, held_out)
    records, skipped = sweep(settings, variants, held_out)
    rows = _rows(config, settings, records)
    first = next(iter(records.values()))
    own = _own_figures(first)
    best = rows[0]
    at = (best["setting"], best["min_gain"])
    interval = gain_interval(records[best["probability"]], *at)
    for row in rows:
        del row["setting"]
    document = {
        "round": number,
        "predictions": f"burn-ins on {config.folds - 1} of {config.folds} folds",
        "manifest": load_manifest(RunPaths(run_dir).manifest).fingerprint,
        "by": config.by,
        "expressions": len(first.image),
        "images": len(np.unique(first.image)),
        "skipped": skipped,
        "settings": len(rows),
        "seconds": round(time.monotonic() - started, 2),
        "probabilities": variants,
        "teacher": own,
        "best_gain": best["mean_iou"] - own["mean_iou"],
        "best_gain_interval": interval,
        "rows": rows,
    }
    RunPaths(run_dir).round(number).mkdir(parents=True, exist_ok=True)
    write_json(RunPaths(run_dir).calibration(number), document)
    return document


def _rows(
    config: CalibrateConfig, settings: list[Setting], records: dict[str, Records]
) -> list[dict[str, Any]]:
    rows = []
    for name, found in records.items():
        for at, setting in enumerate(settings_of(settings, name)):
            gates = (None,) if setting.strategy in KEEP_LABEL else config.gates
            for gate in gates:
                about = {
                    "setting": at,
                    "probability": name,
                    "strategy": setting.strategy,
                    "params": setting.params,
                    "min_gain": gate,
                }
                rows.append(about | figures(found, at, gate))
    # Of equal ones the first: the simplest probability, the earlier strategy, no gate.
    return sorted(rows, key=lambda row: -row[config.by])


def _own_figures(records: Records) -> dict[str, float]:
    inside, union = records.own
    iou = np.divide(inside, union, out=np.zeros_like(inside), where=union > 0)
    return {
        "mean_iou": float(iou.mean()),
        "overall_iou": float(inside.sum() / max(union.sum(), 1)),
    }


def best_by_strategy(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Give the best row of each strategy, best first."""
    best: dict[str, dict[str, Any]] = {}
    for row in document["rows"]:
        best.setdefault(row["strategy"], row)
    return list(best.values())


def apply_best(document: dict[str, Any], run_dir: Path) -> Path:
    """Write the best setting to `round-R/strategy.json`, which `refine-labels` follows.

    Raises:
        ConfigError: If no setting is better than the teacher's own masks.
    """
    best, own = document["rows"][0], document["teacher"]
    if not best[document["by"]] > own[document["by"]]:
        raise ConfigError(
            f"no setting is better than the teacher's own masks ({document['by']} "
            f"{own[document['by']]:.4f}); nothing is applied"
        )
    link = {name: best[name] for name in ("strategy", "params", "min_gain")}
    chain = [{"strategy": "pwa"}] if best["strategy"] in KEEP_LABEL else [link, {"strategy": "pwa"}]
    path = RunPaths(run_dir).chosen_strategy(document["round"])
    write_json(
        path,
        {
            "manifest": document["manifest"],
            "chain": chain,
            "probability": document["probabilities"][best["probability"]],
            "chosen_by": {document["by"]: best[document["by"]], "teacher": own[document["by"]]},
        },
    )
    return path
