"""Core: how good labels are: sums per shard that add up, and the figures made of them.

Fig. 6 of SemiRES counts how many labels a strategy touches and how many it helps or hurts; these
are the same counts, with the IoU itself beside them. All sums are plain numbers under dotted names,
so that shards merge by addition.
"""

from typing import Any

import numpy as np

from pipeline.cells import BoolArray
from refine.evidence import Evidence, ImageEvidence
from refine.refined import Refined
from refine.strategies import ALWAYS_ANSWER


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
        "matched": float(refined.source not in ALWAYS_ANSWER),
        "expected_iou": expected_iou,
        "weight": weight,
        "raw_area": evidence.label_area,
        "refined_area": refined_area,
        "candidates": len(evidence.intersection_N),
        "empty_raw": float(evidence.label_area == 0),
        "empty_refined": float(refined_area == 0),
    }


def truth_sums(evidence: Evidence, refined: Refined, truth_HW: BoolArray) -> dict[str, float]:
    """Count one label against the truth: IoU before and after, and whether it helped."""
    raw_intersection, raw_union, raw_iou = mask_iou(evidence.label_HW, truth_HW)
    intersection, union, iou = mask_iou(refined.mask_HW, truth_HW)
    change = "helped" if iou > raw_iou else "hurt" if iou < raw_iou else "unchanged"
    return {
        "truths": 1,
        "raw_iou": raw_iou,
        "raw_intersection": raw_intersection,
        "raw_union": raw_union,
        "refined_iou": iou,
        "refined_intersection": intersection,
        "refined_union": union,
        "best_candidate_iou": best_candidate_iou(evidence.image, truth_HW),
        change: 1,
        f"{change}.{refined.source}": 1,
    }


def best_candidate_iou(image: ImageEvidence, truth_HW: BoolArray) -> float:
    """Give the IoU of the best single candidate with the truth; 0 without candidates.

    The ceiling of every strategy that takes one candidate.
    """
    if image.cells.num_candidates == 0:
        return 0.0
    counts_C = np.bincount(image.cells.cells[truth_HW], minlength=image.cells.num_cells)
    intersection_N = image.membership_NC @ counts_C.astype(np.float64)
    union_N = float(np.count_nonzero(truth_HW)) + image.area_N - intersection_N
    shares_N = np.divide(intersection_N, union_N, out=np.zeros_like(union_N), where=union_N > 0)
    return float(shares_N.max())


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
        "candidates_per_image": per("candidates", labels),
        "empty_raw": int(sums.get("empty_raw", 0)),
        "empty_refined": int(sums.get("empty_refined", 0)),
        "truths": int(truths),
        "raw_mean_iou": per("raw_iou", truths),
        "refined_mean_iou": per("refined_iou", truths),
        "raw_overall_iou": per("raw_intersection", sums.get("raw_union", 0)),
        "refined_overall_iou": per("refined_intersection", sums.get("refined_union", 0)),
        "best_candidate_mean_iou": per("best_candidate_iou", truths),
        "helped": int(sums.get("helped", 0)),
        "hurt": int(sums.get("hurt", 0)),
        "unchanged": int(sums.get("unchanged", 0)),
        "correction_precision": per("helped", changed),
        "helped_by_source": _under(sums, "helped."),
        "hurt_by_source": _under(sums, "hurt."),
    }


def _under(sums: dict[str, float], prefix: str) -> dict[str, int]:
    return {
        name.removeprefix(prefix): int(value)
        for name, value in sorted(sums.items())
        if name.startswith(prefix)
    }
