"""Shell: the costly pass: SAM's candidates of every training image, once for all rounds."""

import dataclasses
import functools
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline.candidates import Candidates, candidate_arrays, encode_rows
from pipeline.cells import build_cells_capped
from pipeline.devices import resolve_device, use_threads
from pipeline.engines import Engine
from pipeline.errors import ItemError
from pipeline.images import read_image
from pipeline.manifest import Manifest, images_fingerprint, load_manifest
from pipeline.paths import RunPaths
from pipeline.records import FailedItem, Plan
from pipeline.runner import Replace, ShardResult, StageSummary, run_stage
from pipeline.sam.generator import REFERENCE, GeneratorOptions
from pipeline.sam.models import SAM_MODELS, checkpoint_sha256

ALGORITHM_VERSION = 1
"""Raised whenever the same config and inputs would give other candidates."""

VERB = "sam-candidates"


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidatesConfig:
    """The `candidates` section of stages.yaml."""

    model: str = "vit_tiny_demo"
    """An entry of `SAM_MODELS`."""
    checkpoint: Path | None = None
    """Weights of the entry; None where it ships its own or has none."""
    canvas: int = 640
    """Longest side in pixels of stored masks, a multiple of 8; larger images are scaled down."""
    shard_size: int = 64
    """Images per shard and task."""
    max_candidates: int = 256
    """Candidates kept per image, those of the highest predicted IoU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where SAM runs; `auto` takes a GPU if there is one. What has no weights runs on the CPU."""
    options: GeneratorOptions = field(default_factory=GeneratorOptions)
    """Grid, thresholds and batch of the mask generator; None takes the model entry's value. An
    entry without weights has none of them and refuses any."""

    def __post_init__(self) -> None:
        if self.model not in SAM_MODELS:
            known = ", ".join(SAM_MODELS)
            raise ValueError(f"model: unknown {self.model!r}; known are {known}")
        if SAM_MODELS[self.model].needs_checkpoint and self.checkpoint is None:
            raise ValueError(f"checkpoint: {self.model} needs the path of its .pth file")
        if self.canvas < 8 or self.canvas % 8:
            raise ValueError(f"canvas: expected a multiple of 8 pixels, found {self.canvas}")
        for name in ("shard_size", "max_candidates"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, found {getattr(self, name)}")
        if SAM_MODELS[self.model].version is not None:
            _refuse_unused(self)


def _refuse_unused(config: CandidatesConfig) -> None:
    """Refuse what means nothing to an entry without weights."""
    if config.checkpoint is not None:
        raise ValueError(f"checkpoint: {config.model} has no weights, found {config.checkpoint}")
    for name, value in dataclasses.asdict(config.options).items():
        if value is not None and name != "max_candidates":
            raise ValueError(f"options.{name}: unused by model {config.model}, found {value!r}")


def generator_options(config: CandidatesConfig) -> GeneratorOptions:
    """Fill what the config leaves open: by the model's entry, then by Meta's defaults.

    An entry without weights reads `max_candidates` alone, the others stay None.
    """
    entry = SAM_MODELS[config.model]
    filled = config.options.filled(entry.options)
    if entry.version is None:
        filled = filled.filled(REFERENCE)
    return dataclasses.replace(filled, max_candidates=config.max_candidates)


@functools.lru_cache(maxsize=1)
def _load_sam(model: str, checkpoint: Path | None, _sha256: str, device: str) -> Any:
    """Build SAM once per process and file content; workers are reused from task to task."""
    sam = SAM_MODELS[model].build(checkpoint)
    return None if sam is None else sam.to(device).eval()


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidatesWork:
    """Compute the candidates of one shard's images."""

    run_dir: Path
    config: CandidatesConfig
    checkpoint_sha256: str

    def __call__(self, rows: range) -> ShardResult:
        """Give the columns of `candidates.zarr` for the given rows."""
        use_threads(1)  # on a CPU the last bits depend on the number of threads
        manifest = load_manifest(RunPaths(self.run_dir).manifest)
        images = manifest.images_of("train")[rows.start : rows.stop]
        results: list[Candidates | None] = []
        failures: list[FailedItem] = []
        counters: Counter[str] = Counter()
        for image in images:
            try:
                candidates, dropped = self._candidates_of(manifest, int(image))
            except ItemError as error:
                failures.append(FailedItem(item=manifest.image_path[image], reason=str(error)))
                results.append(None)
                counters["failed"] += 1
                continue
            results.append(candidates)
            counters.update(_counts(candidates, dropped))
        columns = encode_rows(images, results, self.config.canvas, self.config.max_candidates)
        return ShardResult(columns=columns, failures=tuple(failures), counters=dict(counters))

    def _candidates_of(self, manifest: Manifest, image: int) -> tuple[Candidates, int]:
        height, width = (int(side) for side in manifest.image_size[image])
        pixels = read_image(
            manifest.image_file(image), canvas=self.config.canvas, size=(height, width)
        )
        device = resolve_device(self.config.device)
        sam = _load_sam(self.config.model, self.config.checkpoint, self.checkpoint_sha256, device)
        generate = SAM_MODELS[self.config.model].generate
        found = generate(sam, pixels, generator_options(self.config))
        cells, kept = build_cells_capped(found.masks, found.predicted_iou)
        candidates = Candidates(
            cells=cells,
            predicted_iou=found.predicted_iou[kept],
            stability_score=found.stability_score[kept],
            box=found.box[kept],
            area=found.area[kept],
            point=found.point[kept],
        )
        return candidates, found.num_dropped + len(found.masks) - len(kept)


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


def plan_candidates(config: CandidatesConfig, run_dir: Path) -> Plan:
    """Freeze what `candidates.zarr` will be made of.

    Candidates depend on the training images alone, not on expressions, truth or label split.
    """
    manifest = load_manifest(RunPaths(run_dir).manifest)
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
            "checkpoint_sha256": checkpoint_sha256(config.model, config.checkpoint),
            "options": generator_options(config),
            "canvas": config.canvas,
            "inputs": {"images": images_fingerprint(manifest)},
        },
        attributes={"model": config.model, "canvas": config.canvas},
    )


def sam_candidates(
    config: CandidatesConfig,
    run_dir: Path,
    *,
    engine: Engine | None = None,
    limit: int | None = None,
    replace: Replace = "never",
) -> StageSummary:
    """Write `candidates.zarr`, one row per training image.

    Args:
        config: Model, options and sizes.
        run_dir: Run directory with a manifest.
        engine: Where to run.
        limit: Only the shards with the first `limit` images.
        replace: Whether to make a store anew that is there.

    Raises:
        StoreError: If the store was made otherwise.
        ConfigError: If the checkpoint is missing or of another model.
    """
    plan = plan_candidates(config, run_dir)
    if engine is None or engine.cluster is None:
        resolve_device(config.device)  # refuses before anything is replaced
    work = CandidatesWork(
        run_dir=run_dir, config=config, checkpoint_sha256=plan.decides["checkpoint_sha256"]
    )
    return run_stage(plan, work, engine=engine, limit=limit, replace=replace, made_by=VERB)
