"""Shell: try strategies and thresholds on labelled images that the teacher has not seen.

The predictions are those of the folds' burn-ins (`train-student --fold`, `predict-teacher --fold`):
each was trained without the images that it predicts. They stand in for the teacher of any round;
a later teacher is better, so that its best threshold may lie elsewhere.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config import fingerprint, to_plain
from pipeline.errors import StoreError
from pipeline.folds import Fold
from pipeline.manifest import load_manifest
from pipeline.paths import RunPaths
from pipeline.places import Place
from pipeline.records import content_fingerprint, require_rows, stored_plan, write_json
from pipeline.run_contents import plan_path
from refine.calibrate_config import CalibrateConfig as CalibrateConfig
from refine.choice import count_truth
from refine.evidence import FloatArray, ImageEvidence
from refine.predictions import Prediction, Predictions
from refine.probability import Context, ProbabilityConfig, fit_probability
from refine.quality import size_of
from refine.stage import candidates_plan, inputs_of_choice
from refine.strategies import KEEP_LABEL, STRATEGIES
from refine.sweep import (
    Answers,
    Records,
    Setting,
    ask_all,
    collect,
    figures,
    gain_of_choosing,
    interval,
    iou_of,
    outcome,
)

ALGORITHM_VERSION = 1
"""Raised whenever the same config and inputs would choose otherwise."""
ROWS_AT_ONCE = 256
FIT_EXPRESSIONS, FIT_PIXELS = 400, 200


@dataclass(frozen=True, slots=True)
class _Known:
    """One prediction whose truth is known."""

    image: int
    fold: int
    evidence: ImageEvidence
    prediction: Prediction
    truth_HW: npt.NDArray[np.bool_]


class HeldOut:
    """The predictions of all folds of a run."""

    def __init__(self, config: CalibrateConfig, run_dir: Place, limit: int | None) -> None:
        self._paths = RunPaths(run_dir)
        contexts: tuple[Context, ...] = tuple(dict.fromkeys(("none", *config.contexts)))
        manifest = load_manifest(self._paths.manifest)
        candidates = candidates_plan(self._paths.candidates, manifest)
        needed = np.searchsorted(manifest.images_of("train"), manifest.labelled_images())
        require_rows(
            self._paths.candidates, "sam-candidates", range(int(needed.max(initial=-1)) + 1)
        )
        self._canvas = int(candidates["plan"]["canvas"])
        self._limit = limit
        self._stores: list[tuple[Predictions, int]] = []
        for number in range(1, config.folds + 1):
            fold = Fold(number, config.folds)
            path, made_by = self._paths.fold_teacher(fold), f"predict-teacher --fold {fold}"
            plan = stored_plan(path, made_by)["plan"]
            require_rows(path, made_by, None)
            if plan["inputs"]["manifest"] != manifest.fingerprint:
                raise StoreError(
                    f"{path}: made of another data set; run 'train-student --fold {fold} --force' "
                    f"and '{made_by} --force'"
                )
            predictions = Predictions(run_dir=run_dir, teacher=path, contexts=contexts)
            self._stores.append((predictions, int(plan["num_items"])))

    def visit(self, each: Callable[[Predictions, _Known], None], at_most: int | None = None) -> int:
        """Call a function for every prediction whose truth is known; give how many were skipped.

        With a limit, whole images are taken evenly from the folds until there are enough.
        """
        limit = min(x for x in (self._limit, at_most, 1 << 62) if x is not None)
        skipped = 0
        for fold, (predictions, count) in enumerate(self._stores, 1):
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
                        each(predictions, _Known(image, fold, evidence, prediction, truth_HW))
                        seen += 1
        return skipped


def _require_folds(config: CalibrateConfig, run_dir: Place, number: int) -> None:
    """Refuse where folds are not predicted yet, naming all of them and what to run."""
    paths = RunPaths(run_dir)
    load_manifest(paths.manifest, verify=True)  # first: without data there are no folds
    folds = [Fold(part, config.folds) for part in range(1, config.folds + 1)]
    missing = [fold for fold in folds if not plan_path(paths.fold_teacher(fold)).exists()]
    if missing:
        first, others = missing[0], ", and so for the others" if missing[1:] else ""
        raise StoreError(
            f"{paths.fold(first).parent}: expected predictions of {config.folds} folds, found none "
            f"of {', '.join(map(str, missing))}; run 'train-student --fold {first}' and then run "
            f"'predict-teacher --fold {first}'{others}; or all of them by 'make stage-calibrate "
            f"ROUND={number} FOLDS={config.folds}' with your CONFIG and RUN"
        )


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
    return [one for one in settings if STRATEGIES[one.strategy].sees_prob]


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
            evidence = predictions.see(known.evidence, known.prediction, probability)
            truth = count_truth(evidence, known.truth_HW)
            answers[name].append(
                ask_all(asked[name], evidence, truth, size, known.image, known.fold)
            )

    skipped = held_out.visit(ask)
    if not all(answers.values()):
        raise StoreError(
            "no held-out expression has a known truth; label images with masks (data.labelled)"
        )
    return {name: collect(rows) for name, rows in answers.items()}, skipped


def calibrate(
    config: CalibrateConfig, run_dir: Place, number: int, limit: int | None = None
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
    _require_folds(config, run_dir, number)
    held_out = HeldOut(config, run_dir, limit)
    settings = config.settings()
    variants = fit_variants(config, held_out)
    records, skipped = sweep(settings, variants, held_out)
    tried = _tried(config, settings, records)
    first = next(iter(records.values()))
    raw, raw_overall = iou_of(*first.label), first.label[0].sum() / max(first.label[1].sum(), 1)
    parts = [outcome(records[t.variant], t.at, t.gate)[:2] for t in tried]
    gains = np.stack([iou_of(*part) - raw for part in parts])
    scores = gains
    if config.by == "overall_iou":  # a sum over pixels: every label counts by its union
        scores = np.stack([inside - raw_overall * union for inside, union in parts])
    gained = gain_of_choosing(scores, gains, first.fold)
    rows = [t.row(records[t.variant]) for t in tried]
    document = {
        "round": number,
        "fingerprint": choice_fingerprint(config, run_dir),
        "inputs": inputs_of_choice(run_dir),
        "predictions": f"burn-ins on {config.folds - 1} of {config.folds} folds",
        "by": config.by,
        "expressions": len(first.image),
        "images": len(np.unique(first.image)),
        "skipped": skipped,
        "settings": len(rows),
        "seconds": round(time.monotonic() - started, 2),
        "probabilities": variants,
        "teacher": {
            "mean_iou": float(raw.mean()),
            "overall_iou": float(raw_overall),
        },
        "whole_image_mean_iou": float(first.whole.mean()),
        "gain": float(gained.mean()),
        "gain_interval": interval(gained, first.image),
        # Of equal ones the first: the simplest probability, the earlier strategy, no gate.
        "rows": sorted(rows, key=lambda row: -row[config.by]),
    }
    write_json(RunPaths(run_dir).calibration(number), document)
    return document


@dataclass(frozen=True, slots=True)
class _Tried:
    """One setting with its probability and gate."""

    variant: str
    at: int
    setting: Setting
    gate: float | None

    def row(self, records: Records) -> dict[str, Any]:
        """Give its row of the document."""
        about = {
            "probability": self.variant,
            "strategy": self.setting.strategy,
            "params": self.setting.params,
            "min_gain": self.gate,
        }
        return about | figures(records, self.at, self.gate)


def _tried(
    config: CalibrateConfig, settings: list[Setting], records: dict[str, Records]
) -> list[_Tried]:
    return [
        _Tried(name, at, setting, gate)
        for name in records
        for at, setting in enumerate(settings_of(settings, name))
        for gate in ((None,) if setting.strategy in KEEP_LABEL else config.gates)
    ]


def choice_fingerprint(config: CalibrateConfig, run_dir: Place) -> str:
    """Name everything that decides which setting is best."""
    paths = RunPaths(run_dir)
    stores = [paths.fold_teacher(Fold(part, config.folds)) for part in range(1, config.folds + 1)]
    folds = [content_fingerprint(stored_plan(store, "predict-teacher --fold")) for store in stores]
    decides = {"algorithm_version": ALGORITHM_VERSION, "config": to_plain(config), "folds": folds}
    return fingerprint(decides | inputs_of_choice(run_dir))
