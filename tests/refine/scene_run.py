"""Run directories of generated scenes with candidates and teachers made by hand, in seconds."""

import numpy as np
from PIL import Image

from pipeline.candidates import Candidates, candidate_arrays, encode_rows
from pipeline.cells import build_cells
from pipeline.data_config import DataConfig, LabelledConfig
from pipeline.folds import Fold, held_out_images
from pipeline.images import canvas_size
from pipeline.manifest import images_fingerprint, load_manifest
from pipeline.paths import RunPaths
from pipeline.prepare import prepare_data
from pipeline.records import Plan
from pipeline.runner import ShardResult, run_stage
from refine.teacher_store import confidence_of, teacher_arrays

CANVAS, STRIDE, FOLDS = 128, (20, 24), 2


def make_scenes(run_dir):
    """Write manifest, candidates, the teacher of round 1 and those of two folds.

    The candidates are the objects and their upper halves; the teachers mark the right object and
    its surroundings, blurred.
    """
    labelled = LabelledConfig(ratio=0.4)
    data = DataConfig(reader="scenes", scenes={"train": 10}, labelled=labelled, scenes_seed=3)
    prepare_data(data, run_dir)
    paths = RunPaths(run_dir)
    manifest = load_manifest(paths.manifest)
    images = manifest.images_of("train")
    _write(
        "candidates", paths.candidates, candidate_arrays(CANVAS, 64), len(images),
        {"canvas": CANVAS, "inputs": {"images": images_fingerprint(manifest)}},
        lambda rows: encode_rows(
            images[rows.start : rows.stop],
            [_candidates(manifest, image) for image in images[rows.start : rows.stop]],
            CANVAS, 64,
        ),
    )  # fmt: skip
    unlabelled = manifest.expressions_of("train", labelled=False)
    stores = {("teacher-1", paths.teacher(1)): unlabelled}
    for number in range(1, FOLDS + 1):
        fold = Fold(number, FOLDS)
        held_out = held_out_images(manifest.labelled_images(), fold)
        rows = manifest.expressions_of("train", labelled=True)
        rows = rows[np.isin(manifest.expression_image[rows], held_out)]
        stores[f"fold-{fold}", paths.fold_teacher(fold)] = rows
    for (stage, store), expressions in stores.items():
        _write(
            stage, store, teacher_arrays(STRIDE), len(expressions),
            {"inputs": {"manifest": manifest.fingerprint}},
            lambda rows, expressions=expressions: _predictions(
                manifest, expressions[rows.start : rows.stop]
            ),
        )  # fmt: skip
    return manifest


def _write(stage, store, specs, count, decides, columns):
    plan = Plan(
        stage=stage, store=store, specs=specs, num_items=count, shard_size=16, unit="items",
        decides=decides,
    )  # fmt: skip
    run_stage(plan, lambda rows: ShardResult(columns=columns(rows)), made_by=stage)


def _candidates(manifest, image):
    masks = []
    for row in np.flatnonzero(manifest.object_image == image):
        mask = manifest.truth(row, CANVAS)
        middle = int(np.flatnonzero(mask.any(axis=1)).mean())
        half = mask.copy()
        half[middle:] = False
        masks += [mask, half] if half.any() else [mask]
    masks = masks or [np.ones(canvas_size(manifest.size_of(image), CANVAS), np.bool_)]
    iou = np.linspace(0.5, 0.9, len(masks), dtype=np.float32)
    return Candidates(
        cells=build_cells(np.array(masks)),
        predicted_iou=iou,
        stability_score=iou,
        box=np.zeros((len(masks), 4), np.int32),
        area=np.array([mask.sum() for mask in masks], np.int32),
        point=np.zeros((len(masks), 2), np.float32),
    )


def _predictions(manifest, expressions):
    logit = np.full((len(expressions), *STRIDE), -3, np.float16)
    for at, expression in enumerate(expressions):
        truth = manifest.truth(manifest.expression_object[expression], CANVAS)
        small = Image.fromarray(truth).convert("L").resize((6, 5)).resize(STRIDE[::-1])
        logit[at] = np.asarray(small, np.float32) / 64 - 1
    return {
        "expression": expressions,
        "valid": np.ones(len(expressions), np.uint8),
        "confidence": confidence_of(logit),
        "logit": logit,
    }
