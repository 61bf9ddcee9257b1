"""Core: how good labels are: sums per shard that add up, and the figures made of them.

Fig. 6 of SemiRES counts how many labels a strategy touches and how many it helps or hurts; these
are the same counts, with the IoU itself beside them. All sums are plain numbers under dotted names,
so that shards merge by addition.
"""

from typing import Any

import numpy as np

from pipeline.cells import BoolArray
from refine.choice import Refined
from refine.evidence import Evidence, ImageEvidence
from refine.strategies import KEEP_LABEL
from refine.voting import grow_union

BINS = 10
"""Columns of the histograms, of equal width over [0, 1]."""
SIZES = {"small": 0.02, "medium": 0.1, "large": 2.0}
"""Name -> share of the image below which an object's truth has that size."""


def mask_iou(mask_HW: BoolArray, truth_HW: BoolArray) -> tuple[int, int, float]:
    """Give intersection and union in pixels and the IoU; the IoU of two empty masks is 0.

    LAVT's convention, which the paper's numbers follow.
    """
    intersection = int(np.count_nonzero(mask_HW & truth_HW))
    union = int(np.count_nonzero(mask_HW | truth_HW))
    return intersection, union, intersection / union if union else 0.0


def label_sums(evidence: Evidence, refined: Refined, expected_iou: float) -> dict[str, float]:
    """Count one label, without knowing the truth."""
    refined_area = int(np.count_nonzero(refined.mask_HW))
    weight = 1.0 if refined.weight_HW is None else float(refined.weight_HW.mean(dtype=np.float64))
    return {
        "labels": 1,
        f"source.{refined.source}": 1,
        "matched": float(refined.source not in KEEP_LABEL),
        "expected_iou": expected_iou,
        f"expected.{_bin(expected_iou)}": 1,
        "weight": weight,
        "raw_area": evidence.label_area,
        "refined_area": refined_area,
        "candidates": evidence.image.cells.num_candidates,
        "empty_raw": float(evidence.label_area == 0),
        "empty_refined": float(refined_area == 0),
    }


def truth_sums(
    image: ImageEvidence, refined: Refined, raw_HW: BoolArray, truth_HW: BoolArray
) -> dict[str, float]:
    """Count one label against the truth: IoU before and after, and whether it helped.

    Args:
        image: The image's candidates, for the oracles.
        refined: The label.
        raw_HW: The teacher's own mask, (H, W) bool.
        truth_HW: The truth, (H, W) bool.
    """
    raw_intersection, raw_union, raw_iou = mask_iou(raw_HW, truth_HW)
    intersection, union, iou = mask_iou(refined.mask_HW, truth_HW)
    change = "helped" if iou > raw_iou else "hurt" if iou < raw_iou else "unchanged"
    best_candidate, best_union = oracles(image, truth_HW)
    size = size_of(truth_HW)
    return {
        "truths": 1,
        "raw_iou": raw_iou,
        "raw_intersection": raw_intersection,
        "raw_union": raw_union,
        "refined_iou": iou,
        "refined_intersection": intersection,
        "refined_union": union,
        "best_candidate_iou": best_candidate,
        "best_union_iou": best_union,
        change: 1,
        f"{change}.{refined.source}": 1,
        f"raw.{_bin(raw_iou)}": 1,
        f"refined.{_bin(iou)}": 1,
        f"{size}.truths": 1,
        f"{size}.raw_iou": raw_iou,
        f"{size}.refined_iou": iou,
        f"{size}.{change}": 1,
    }


def _bin(share: float) -> int:
    """Number the tenth of [0, 1] that a share lies in, 0 to 9."""
    return min(int(share * BINS), BINS - 1)


def size_of(truth_HW: BoolArray) -> str:
    """Name the size of an object by its share of the image."""
    share = float(np.count_nonzero(truth_HW)) / truth_HW.size
    return next(name for name, limit in SIZES.items() if share < limit)


def oracles(image: ImageEvidence, truth_HW: BoolArray) -> tuple[float, float]:
    """Give the IoU with the truth of the best single candidate and of the best union.

    The ceilings of every strategy that takes one candidate, or several; the union is grown
    greedily, each step adding the candidate that helps most. 0 without candidates or truth.
    """
    if image.cells.num_candidates == 0 or not truth_HW.any():
        return 0.0, 0.0
    counts = np.bincount(image.cells.cells[truth_HW], minlength=image.cells.num_cells)
    counts_C, area = counts.astype(np.float64), float(counts.sum())
    single = grow_union(image, counts_C, area, 1, 0.0)[1]
    return single, grow_union(image, counts_C, area, image.cells.num_candidates, 0.0)[1]


def report(sums: dict[str, float]) -> dict[str, Any]:
    """Make the figures of `quality.json` out of summed counts.

    Shares and IoUs are fractions in [0, 1]; what cannot be known (no label, no truth) is None.
    """
    labels, truths = sums.get("labels", 0), sums.get("truths", 0)

    def per(name: str, whole: float) -> float | None:
        return sums.get(name, 0) / whole if whole else None

    changed = sums.get("helped", 0) + sums.get("hurt", 0)
    return {
        "labels": int(labels),
        "failed": int(sums.get("failed", 0)),
        "sources": _under(sums, "source."),
        "match_rate": per("matched", labels),
        "mean_expected_iou": per("expected_iou", labels),
        "mean_weight": per("weight", labels),
        "area_ratio": per("refined_area", sums.get("raw_area", 0)),
        "candidates_per_label": per("candidates", labels),
        "empty_raw": int(sums.get("empty_raw", 0)),
        "empty_refined": int(sums.get("empty_refined", 0)),
        "truths": int(truths),
        "raw_mean_iou": per("raw_iou", truths),
        "refined_mean_iou": per("refined_iou", truths),
        "raw_overall_iou": per("raw_intersection", sums.get("raw_union", 0)),
        "refined_overall_iou": per("refined_intersection", sums.get("refined_union", 0)),
        "best_candidate_mean_iou": per("best_candidate_iou", truths),
        "best_union_mean_iou": per("best_union_iou", truths),
        "helped": int(sums.get("helped", 0)),
        "hurt": int(sums.get("hurt", 0)),
        "unchanged": int(sums.get("unchanged", 0)),
        "correction_precision": per("helped", changed),
        "helped_by_source": _under(sums, "helped."),
        "hurt_by_source": _under(sums, "hurt."),
        "by_size": {size: _size_report(sums, size) for size in SIZES},
        "histograms": {
            name: [int(sums.get(f"{name}.{column}", 0)) for column in range(BINS)]
            for name in ("expected", "raw", "refined")
        },
    }


def _size_report(sums: dict[str, float], size: str) -> dict[str, Any]:
    """Give the figures of the objects of one size."""
    truths = sums.get(f"{size}.truths", 0)
    figures: dict[str, Any] = {"truths": int(truths)}
    for kind in ("raw", "refined"):
        figures[f"{kind}_mean_iou"] = sums.get(f"{size}.{kind}_iou", 0) / truths if truths else None
    for change in ("helped", "hurt", "unchanged"):
        figures[change] = int(sums.get(f"{size}.{change}", 0))
    return figures


def _under(sums: dict[str, float], prefix: str) -> dict[str, int]:
    return {
        name.removeprefix(prefix): int(value)
        for name, value in sorted(sums.items())
        if name.startswith(prefix)
    }
