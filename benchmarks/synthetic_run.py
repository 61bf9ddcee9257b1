"""A run directory of any size without photos, networks or SAM: what the refine stage reads."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.candidates import Candidates, candidate_arrays, encode_rows
from pipeline.cells import Cells, build_cells
from pipeline.columns import StringColumn
from pipeline.folds import Fold, held_out_images
from pipeline.manifest import (
    Manifest,
    images_fingerprint,
    manifest_fingerprint,
    write_manifest,
)
from pipeline.paths import RunPaths
from pipeline.records import Plan
from pipeline.runner import ShardResult, run_stage
from pipeline.segmentation import encode_mask
from refine.teacher_store import confidence_of, encode_logits, teacher_arrays

SIZE = (480, 640)
CANVAS = 640
STRIDE = (120, 120)
NUM_CANDIDATES = 100
EXPRESSIONS_PER_IMAGE = 7
"""RefCOCO's training set has 7.1 sentences per image."""
DISTINCT = 12
"""Images that differ; more would take longer to make and no longer to refine."""


def make_masks(rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Draw nested and overlapping ellipses, (N, H, W)."""
    height, width = SIZE
    yy, xx = np.mgrid[:height, :width].astype(np.float32)
    masks = np.zeros((NUM_CANDIDATES, height, width), np.bool_)
    for mask in masks:
        cy, cx = rng.uniform(0, height), rng.uniform(0, width)
        a, b = rng.uniform(0.02, 0.3, 2) * SIZE
        mask[:] = ((yy - cy) / a) ** 2 + ((xx - cx) / b) ** 2 < 1
    return masks


def make_logit(rng: np.random.Generator, truth: npt.NDArray[np.bool_]) -> npt.NDArray[np.float16]:
    """Give what a network might say of a mask: its outline, blurred and wrong in places."""
    rows = np.linspace(0, SIZE[0] - 1, STRIDE[0]).astype(int)
    columns = np.linspace(0, SIZE[1] - 1, STRIDE[1]).astype(int)
    shown = np.where(truth[np.ix_(rows, columns)], 3.0, -3.0)
    waves = rng.normal(0, 2.5, (STRIDE[0] // 10, STRIDE[1] // 10)).repeat(10, 0).repeat(10, 1)
    soft = shown + waves
    for axis in (0, 1):
        soft = (np.roll(soft, 1, axis) + 2 * soft + np.roll(soft, -1, axis)) / 4
    return encode_logits(soft.astype(np.float32))


def make_run(run_dir: Path, num_images: int, folds: int = 0) -> None:
    """Write manifest, candidates.zarr and round-1/teacher.zarr of `num_images` at 480 x 640.

    With `folds` all images are labelled, and the predictions are those of the folds' burn-ins.
    """
    rng = np.random.default_rng(0)
    drawn = [make_masks(rng) for _ in range(min(num_images, DISTINCT))]
    cells = [build_cells(masks) for masks in drawn]
    largest = slice(5, 5 + EXPRESSIONS_PER_IMAGE)
    truths = [masks[np.argsort(-masks.sum((1, 2)))[largest]] for masks in drawn]
    logits = [np.stack([make_logit(rng, mask) for mask in masks]) for masks in truths]
    paths, kinds = RunPaths(run_dir), len(drawn)
    rles = [[encode_mask(mask) for mask in masks] for masks in truths]
    manifest = _write_manifest(paths, rles, num_images, labelled=folds > 0)
    fingerprint = manifest.fingerprint
    Stage(
        plan=Plan(
            stage="candidates",
            store=paths.candidates,
            specs=candidate_arrays(CANVAS, NUM_CANDIDATES),
            num_items=num_images,
            shard_size=32,
            unit="images",
            decides={"canvas": CANVAS, "inputs": {"images": images_fingerprint(manifest)}},
        ),
        make=lambda rows: encode_rows(
            np.arange(rows.start, rows.stop),
            [_scored(cells[row % kinds]) for row in rows],
            CANVAS,
            NUM_CANDIDATES,
        ),
    ).write()
    every = np.arange(num_images)
    if not folds:
        _write_teacher(paths.teacher(1), every, logits, fingerprint)
    for number in range(1, folds + 1):
        fold = Fold(number, folds)
        images = held_out_images(every, fold)
        _write_teacher(paths.fold_teacher(fold), images, logits, fingerprint)


@dataclass(frozen=True, slots=True)
class Stage:
    """A store whose shards are given by a function of their rows."""

    plan: Plan
    make: Callable[[range], dict[str, npt.NDArray[Any]]]

    def write(self) -> None:
        """Write all shards with their done records."""
        run_stage(self.plan, lambda rows: ShardResult(columns=self.make(rows)), made_by="bench")


def _scored(cells: Cells) -> Candidates:
    count = cells.num_candidates
    return Candidates(
        cells=cells,
        predicted_iou=np.full(count, 0.9, np.float32),
        stability_score=np.full(count, 0.95, np.float32),
        box=np.zeros((count, 4), np.int32),
        area=np.zeros(count, np.int32),
        point=np.zeros((count, 2), np.float32),
    )


def _write_teacher(
    store: Path,
    images: npt.NDArray[np.int64],
    logits: list[npt.NDArray[np.float16]],
    fingerprint: str,
) -> None:
    each = EXPRESSIONS_PER_IMAGE

    def make(rows: range) -> dict[str, npt.NDArray[Any]]:
        chosen = [(int(images[row // each]), row % each) for row in rows]
        logit = np.stack([logits[image % len(logits)][k] for image, k in chosen])
        return {
            "expression": np.array([image * each + k for image, k in chosen], np.int64),
            "valid": np.ones(len(rows), np.uint8),
            "confidence": confidence_of(logit),
            "logit": logit,
        }

    plan = Plan(
        stage="teacher",
        store=store,
        specs=teacher_arrays(STRIDE),
        num_items=len(images) * each,
        shard_size=256,
        unit="expressions",
        decides={"inputs": {"manifest": fingerprint}},
    )
    Stage(plan=plan, make=make).write()


def _write_manifest(
    paths: RunPaths, rles: list[list[bytes]], num_images: int, *, labelled: bool
) -> Manifest:
    objects = num_images * EXPRESSIONS_PER_IMAGE
    images, strings = range(num_images), StringColumn.from_strings
    columns: dict[str, Any] = {
        "image_id": strings([str(i) for i in images]),
        "image_path": strings([f"{i}.jpg" for i in images]),
        "image_sha256": strings([""] * num_images),
        "image_size": np.tile(np.array(SIZE, np.int32), (num_images, 1)),
        "image_labelled": np.full(num_images, labelled),
        "object_id": strings([str(i) for i in range(objects)]),
        "object_image": np.repeat(np.arange(num_images, dtype=np.int32), EXPRESSIONS_PER_IMAGE),
        "object_category": strings([""] * objects),
        "object_split": np.zeros(objects, np.uint8),
        "object_rle": strings([rle for i in images for rle in rles[i % len(rles)]]),
        "expression_object": np.arange(objects, dtype=np.int32),
        "expression_text": strings([f"thing {i}" for i in range(objects)]),
    }
    manifest = Manifest(
        image_root=paths.run_dir, fingerprint=manifest_fingerprint(columns), **columns
    )
    write_manifest(paths.manifest, manifest, description={})
    return manifest
