"""Shell: measure a round's network on every sentence of a split, by both protocols."""

from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline.config import to_plain
from pipeline.devices import resolve_device, use_threads
from pipeline.errors import StoreError
from pipeline.manifest import Manifest, load_manifest
from pipeline.paths import RunPaths
from pipeline.records import FailedItem, read_json, write_json
from refine.upsample import upsample_align_corners
from train import augment
from train.config import EvaluateConfig
from train.metrics import THRESHOLDS, IoUSums, iou_sums
from train.predict import Predictor
from train.trained import load_trained, read_trained

PROTOCOLS = ("square", "image")
"""`square`: truth nearest-resized to the network's square (LAVT, SemiRES); `image`: the prediction
brought to the image's original size."""


def evaluate_student(
    config: EvaluateConfig,
    run_dir: Path,
    number: int,
    split: str,
    *,
    limit: int | None = None,
) -> dict[str, Any]:
    """Evaluate the EMA teacher of a round and record it in `round-R/metrics.json`.

    Results are kept per split, beside the hashes of weights and data that they belong to; asked for
    again, they are read back, unless an item failed.

    Args:
        config: Batch size and device.
        run_dir: Run directory; the round must be trained.
        number: The round.
        split: A split with known truth.
        limit: Only the first `limit` expressions; such a result is not recorded.

    Returns:
        Per protocol `overall_iou`, `mean_iou` and `precision_at`, fractions in [0, 1]; with
        `sentences`, `failed` items (item, reason) and the hashes of its `inputs`.

    Raises:
        StoreError: If the round is not trained or the split has no truth.
    """
    paths = RunPaths(run_dir)
    trained = read_trained(paths.student(number), f"train-student --round {number}")
    recorded = read_json(paths.metrics(number)) if paths.metrics(number).exists() else {}
    manifest = load_manifest(paths.manifest)
    inputs = {"weights": trained.weights_sha256, "manifest": manifest.fingerprint}
    found: dict[str, Any] | None = recorded.get(split)
    if limit is None and found is not None and found["inputs"] == inputs and not found["failed"]:
        return found
    expressions = sentences_with_truth(manifest, split)[:limit]
    if not len(expressions):
        raise StoreError(f"split {split!r} has no expression with a truth; choose another")
    use_threads(1)  # two threads that wait for each other stall on a busy machine
    network, text = load_trained(trained, resolve_device(config.device))
    predictor = Predictor(
        manifest=manifest,
        network=network,
        text=text,
        side=trained.side,
        batch_size=config.batch_size,
    )
    sums, failures = _measure(predictor, expressions, f"evaluate-{number} {split}")
    result: dict[str, Any] = {name: _figures(sums[name]) for name in PROTOCOLS}
    result |= {
        "sentences": sums["image"].count,
        "failed": [to_plain(failure) for failure in failures],
        "inputs": inputs,
    }
    if limit is None:
        write_json(paths.metrics(number), {**recorded, split: result})
    return result


def sentences_with_truth(manifest: Manifest, split: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    """List the expression rows of a split whose object has a known mask."""
    rows = manifest.expressions_of(split)
    lengths = np.diff(manifest.object_rle.offsets)
    return np.asarray(rows[lengths[manifest.expression_object[rows]] > 0], np.int64)


def _measure(
    predictor: Predictor, expressions: np.ndarray[Any, np.dtype[np.int64]], name: str
) -> tuple[dict[str, IoUSums], list[FailedItem]]:
    sums = {protocol: IoUSums() for protocol in PROTOCOLS}
    failed: list[FailedItem] = []
    with tqdm(total=len(expressions), desc=name, unit=" expressions", mininterval=0.5) as bar:
        for positions, margin_Bhw, failures in predictor.margins(expressions):
            for position, reason in failures.items():
                item = predictor.manifest.describe_expression(int(expressions[position]))
                failed.append(FailedItem(item=item, reason=reason))
            for position, margin_hw in zip(positions, margin_Bhw, strict=True):
                row = int(predictor.manifest.expression_object[expressions[position]])
                truth_HW = predictor.manifest.truth(row, None)
                assert truth_HW is not None, "only sentences with a truth are evaluated"
                square = (predictor.side, predictor.side)
                truth_SS = augment.resize_mask(truth_HW.astype(np.uint8), predictor.side) > 0
                pairs = {"square": (square, truth_SS), "image": (truth_HW.shape, truth_HW)}
                for protocol, (size, truth) in pairs.items():
                    mask = upsample_align_corners(margin_hw, size) > 0
                    sums[protocol] += iou_sums(mask[None], truth[None])
            bar.update(len(positions) + len(failures))
    return sums, failed


def _figures(sums: IoUSums) -> dict[str, Any]:
    precision = {f"{limit:g}": sums.precision_at(limit) for limit in THRESHOLDS}
    return {
        "overall_iou": sums.overall_iou,
        "mean_iou": sums.mean_iou,
        "precision_at": precision,
    }
