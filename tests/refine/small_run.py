"""Run directories made by hand: manifest, candidates and a teacher's logits of a few images."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.candidates import Candidates, candidate_arrays, encode_rows
from pipeline.cells import build_cells
from pipeline.columns import StringColumn
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
from refine.teacher_store import confidence_of, teacher_arrays

CANVAS = 16


@dataclass
class Picture:
    """One image with its expressions, each of an object of its own unless `objects` says so."""

    masks: np.ndarray | None
    """Candidates, (N, H, W) bool; None for an image that failed."""
    logits: np.ndarray
    """(E, h, w) float16."""
    truth: np.ndarray
    """(E, H, W) bool."""
    objects: list[int] = field(default_factory=list)
    valid: list[int] = field(default_factory=list)
    size: tuple[int, int] | None = None
    """(H, W) in the manifest; None for that of the truth."""


def make_run(run_dir: Path, pictures: list[Picture], teacher_rows: int | None = None) -> None:
    """Write manifest, candidates.zarr and round-1/teacher.zarr (its first rows only, if asked)."""
    paths, strings = RunPaths(run_dir), StringColumn.from_strings
    object_rows, expression_object, rles, owner = [], [], [], []
    for number, picture in enumerate(pictures):
        names = picture.objects or list(range(len(picture.logits)))
        for name in dict.fromkeys(names):
            object_rows.append(number)
            rles.append(encode_mask(picture.truth[names.index(name)]))
        first = len(object_rows) - len(set(names))
        order = list(dict.fromkeys(names))
        expression_object += [first + order.index(name) for name in names]
        owner += [number] * len(names)
    sizes = [picture.size or picture.truth.shape[1:] for picture in pictures]
    columns = {
        "image_id": strings([str(i) for i in range(len(pictures))]),
        "image_path": strings([f"{i}.png" for i in range(len(pictures))]),
        "image_sha256": strings([""] * len(pictures)),
        "image_size": np.array(sizes, np.int32),
        "image_labelled": np.zeros(len(pictures), np.bool_),
        "object_id": strings([str(i) for i in range(len(object_rows))]),
        "object_image": np.array(object_rows, np.int32),
        "object_category": strings([""] * len(object_rows)),
        "object_split": np.zeros(len(object_rows), np.uint8),
        "object_rle": strings(rles),
        "expression_object": np.array(expression_object, np.int32),
        "expression_text": strings([f"thing {i}" for i in range(len(owner))]),
    }
    fingerprint = manifest_fingerprint(columns)
    manifest = Manifest(image_root=run_dir, fingerprint=fingerprint, **columns)
    write_manifest(paths.manifest, manifest, description={})
    found = [None if p.masks is None else _scored(p.masks) for p in pictures]
    _write(
        Plan(
            stage="candidates",
            store=paths.candidates,
            specs=candidate_arrays(CANVAS, 8),
            num_items=len(pictures),
            shard_size=2,
            unit="images",
            decides={"canvas": CANVAS, "inputs": {"images": images_fingerprint(manifest)}},
        ),
        lambda rows: encode_rows(
            np.arange(rows.start, rows.stop), found[rows.start : rows.stop], CANVAS, 8
        ),
    )
    logit = np.concatenate([picture.logits for picture in pictures]).astype(np.float16)
    valid = np.concatenate([p.valid or [1] * len(p.logits) for p in pictures]).astype(np.uint8)
    with np.errstate(invalid="ignore"):
        confidence = confidence_of(logit)
    _write(
        Plan(
            stage="teacher-1",
            store=paths.teacher(1),
            specs=teacher_arrays(logit.shape[1:]),
            num_items=len(logit),
            shard_size=2,
            unit="expressions",
            decides={"inputs": {"manifest": fingerprint}},
        ),
        lambda rows: {
            "expression": np.arange(rows.start, rows.stop),
            "valid": valid[rows.start : rows.stop],
            "confidence": confidence[rows.start : rows.stop],
            "logit": logit[rows.start : rows.stop],
        },
        limit=teacher_rows,
    )


def _write(plan, make, limit=None):
    run_stage(plan, lambda rows: ShardResult(columns=make(rows)), made_by="test", limit=limit)


def _scored(masks):
    cells, count = build_cells(masks), len(masks)
    return Candidates(
        cells=cells,
        predicted_iou=np.full(count, 0.9, np.float32),
        stability_score=np.full(count, 0.9, np.float32),
        box=np.zeros((count, 4), np.int32),
        area=np.zeros(count, np.int32),
        point=np.zeros((count, 2), np.float32),
    )
