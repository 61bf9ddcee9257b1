"""Shell: the costly pass: SAM's candidates of every training image, once for all rounds."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.candidate_config import (
    CandidatesConfig,
    generator_options,
    source_of_masks,
    with_absolute_paths,
)
from pipeline.candidate_sources import forget_loaded, masks_of_images
from pipeline.candidates import Candidates, candidate_arrays, encode_rows
from pipeline.cells import build_cells_capped
from pipeline.devices import resolve_device, use_threads
from pipeline.engines import REMOTE, Engine
from pipeline.errors import ItemError
from pipeline.manifest import images_fingerprint, load_manifest
from pipeline.paths import RunPaths
from pipeline.places import Place
from pipeline.records import FailedItem, Plan
from pipeline.runner import Replace, ShardResult, StageSummary, run_stage
from pipeline.sam.masks import Masks

ALGORITHM_VERSION = 1
"""Raised whenever the same config and inputs would give other candidates."""

VERB = "sam-candidates"


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidatesWork:
    """Compute the candidates of one shard's images."""

    run_dir: Place
    config: CandidatesConfig
    source_sha256: str

    def __call__(self, rows: range) -> ShardResult:
        """Give the columns of `candidates.zarr` for the given rows."""
        use_threads(1)  # on a CPU the last bits depend on the number of threads
        manifest = load_manifest(RunPaths(self.run_dir).manifest)
        manifest.require_images()
        images = manifest.images_of("train")[rows.start : rows.stop]
        results: list[Candidates | None] = []
        failures: list[FailedItem] = []
        counters: Counter[str] = Counter()
        for image, found in masks_of_images(self.config, manifest, images, self.source_sha256):
            if isinstance(found, ItemError):
                failures.append(FailedItem(item=manifest.image_path[image], reason=str(found)))
                results.append(None)
                counters["failed"] += 1
                continue
            candidates, dropped = candidates_of(found)
            results.append(candidates)
            counters.update(_counts(candidates, dropped))
            counters["images_scaled"] += manifest.size_of(image) != candidates.cells.size
        columns = encode_rows(images, results, self.config.canvas, self.config.max_candidates)
        return ShardResult(columns=columns, failures=tuple(failures), counters=dict(counters))

    def failed_row(self, row: int, reason: str) -> ShardResult:
        """Give the columns of one image that has failed, without touching it."""
        manifest = load_manifest(RunPaths(self.run_dir).manifest)
        image = manifest.images_of("train")[row : row + 1]
        failure = FailedItem(item=manifest.image_path[image[0]], reason=reason)
        columns = encode_rows(image, [None], self.config.canvas, self.config.max_candidates)
        return ShardResult(columns=columns, failures=(failure,), counters={"failed": 1})


def candidates_of(found: Masks) -> tuple[Candidates, int]:
    """Cut an image's masks into cells; masks without a pixel are left out.

    Returns:
        The candidates, and how many masks there was no room for.
    """
    masks = found.select(np.flatnonzero(found.area))
    cells, kept = build_cells_capped(masks.bits, masks.width, masks.predicted_iou)
    best = masks.select(kept)
    candidates = Candidates(
        cells=cells,
        predicted_iou=best.predicted_iou,
        stability_score=best.stability_score,
        box=best.box,
        area=best.area,
        point=best.point,
    )
    return candidates, found.num_dropped + len(masks) - len(best)


def _counts(candidates: Candidates, dropped: int) -> dict[str, float]:
    count = candidates.cells.num_candidates
    covered = float(np.count_nonzero(candidates.cells.cells)) / candidates.cells.cells.size
    return {
        "images": 1,
        "candidates": count,
        "cells": candidates.cells.num_cells - 1,
        "images_without_candidates": float(count == 0),
        "candidates_dropped": dropped,
        "covered_share": covered,
    }


def plan_candidates(config: CandidatesConfig, run_dir: Place) -> Plan:
    """Freeze what `candidates.zarr` will be made of.

    Candidates depend on the training images alone, not on expressions, truth or label split.

    Raises:
        ManifestError: If the manifest is missing or a file of it is damaged.
    """
    manifest = load_manifest(RunPaths(run_dir).manifest, verify=True)
    return Plan(
        stage="candidates",
        store=RunPaths(run_dir).candidates,
        specs=candidate_arrays(config.canvas, config.max_candidates),
        num_items=len(manifest.images_of("train")),
        shard_size=config.shard_size,
        unit="images",
        decides={
            "algorithm_version": ALGORITHM_VERSION,
            "model": config.model,
            "source_sha256": source_of_masks(config),
            "options": generator_options(config),
            "canvas": config.canvas,
            "inputs": {"images": images_fingerprint(manifest)},
        },
        attributes={"model": config.model, "canvas": config.canvas},
    )


def sam_candidates(
    config: CandidatesConfig,
    run_dir: Place,
    *,
    engine: Engine | None = None,
    limit: int | None = None,
    replace: Replace = "never",
    plan: Plan | None = None,
) -> StageSummary:
    """Write `candidates.zarr`, one row per training image.

    Args:
        config: Model, options and sizes.
        run_dir: Run directory with a manifest.
        engine: Where to run.
        limit: Only the shards with the first `limit` images.
        replace: Whether to make a store anew that is there.
        plan: What `plan_candidates` gave, which hashes the weights; None plans here.

    Raises:
        StoreError: If the store was made otherwise.
        ManifestError: If the manifest is missing or a file of it is damaged.
        ConfigError: If the checkpoint is missing or of another model.
    """
    plan = plan or plan_candidates(config, run_dir)
    if engine is None or engine.kind not in REMOTE:
        resolve_device(config.device)  # refuses before anything is replaced
    work = CandidatesWork(
        run_dir=run_dir,
        config=with_absolute_paths(config),
        source_sha256=plan.decides["source_sha256"],
    )
    threads = torch.get_num_threads()
    try:
        return run_stage(plan, work, engine=engine, limit=limit, replace=replace, made_by=VERB)
    finally:  # what this process loaded must not keep memory that training needs
        forget_loaded()
        use_threads(threads)
