"""Shell: write a store for other tools: COCO RLE JSON, one HTML page."""

import base64
import html
import io
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt
from PIL import Image
from pycocotools import mask as coco_mask

from pipeline.cells import masks_of
from pipeline.drawing import sheet
from pipeline.errors import StoreError
from pipeline.inspection import draw_row, in_lines, writing
from pipeline.places import Place
from pipeline.records import atomic_write, sync_folder
from pipeline.store_rows import StoreRows

MAX_ROWS_ON_A_PAGE = 8
"""Rows of an HTML page when none are asked for."""


def export_coco(store: Place, path: Path, rows: list[int] | None = None) -> int:
    """Write candidates or labels as COCO annotations with compressed RLE.

    The masks are in canvas geometry, which is the image's own unless it is larger than the canvas.
    `image_id` is the image's row in the manifest; the data set's own ids are `dataset_image_id` of
    every image and `dataset_object_id` of every label. `row` is the row of the store.
    Annotations go to the file one by one, so that a store of any size can be exported.

    Args:
        store: Candidates or labels.
        path: Target; replaced when all of it is written.
        rows: Rows to export; None exports all. Failed and unwritten rows have no annotation.

    Returns:
        The number of annotations.

    Raises:
        StoreError: For a store that holds no masks, is damaged, or lacks a row asked for.
    """
    opened = StoreRows(store)
    if opened.kind == "teacher":
        raise StoreError(f"{store}: holds probabilities, no masks; export candidates or labels")
    annotate = _coco_candidates if opened.kind == "candidates" else _coco_labels
    images: dict[int, dict[str, Any]] = {}
    count = 0
    with _replacing(path) as file:
        file.write('{"annotations": [')
        for row in _written(opened, rows):
            image = opened.image(row)
            height, width = opened.mask_size(row)  # also where there is no annotation
            images[image] = {"id": image, "file_name": opened.manifest.image_path[image],
                             "height": height, "width": width,
                             "dataset_image_id": opened.manifest.image_id[image]}  # fmt: skip
            for annotation in annotate(opened, row):
                count += 1
                entry = {"id": count, "image_id": image, "iscrowd": 0, "category_id": 1,
                         "row": row, **annotation}  # fmt: skip
                file.write(("," if count > 1 else "") + "\n" + json.dumps(entry))
        categories = [{"id": 1, "name": "object"}]
        file.write(f'],\n"images": {json.dumps(list(images.values()))},\n')
        file.write(f'"categories": {json.dumps(categories)}}}\n')
    return count


def _written(opened: StoreRows, rows: Iterable[int] | None) -> Iterator[int]:
    """Give those of the rows that hold a result, in their order."""
    for row in range(len(opened)) if rows is None else rows:
        opened.check(row)
        if opened.state(row) == "written":
            yield row


@contextmanager
def _replacing(path: Path) -> Iterator[TextIO]:
    """Open a file to be written piece by piece; it takes its name when it is whole."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("w", encoding="utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        sync_folder(path.parent)


def _coco_candidates(opened: StoreRows, row: int) -> Iterator[dict[str, Any]]:
    found = opened.candidates(row)
    for number, mask in enumerate(masks_of(found.cells)):
        yield {
            **_rle(mask),
            "predicted_iou": float(found.predicted_iou[number]),
            "stability_score": float(found.stability_score[number]),
            "point_coords": [float(value) for value in found.point[number]],
        }


def _coco_labels(opened: StoreRows, row: int) -> Iterator[dict[str, Any]]:
    mask, weight, source = opened.label(row)
    manifest, expression = opened.manifest, int(opened.scalar("row", row))
    yield {
        **_rle(mask),
        "dataset_object_id": manifest.object_id[manifest.expression_object[expression]],
        "expression": opened.sentence(row),
        "source": source,
        "score": float(opened.scalar("score", row)),
        "mean_weight": float(weight.mean()),
    }


def _rle(mask_HW: npt.NDArray[np.bool_]) -> dict[str, Any]:
    encoded = coco_mask.encode(np.asfortranarray(mask_HW, np.uint8))
    box = [float(value) for value in coco_mask.toBbox(encoded)]
    segmentation = {"size": encoded["size"], "counts": encoded["counts"].decode()}
    return {"segmentation": segmentation, "area": int(mask_HW.sum()), "bbox": box}


def export_html(store: Place, path: Path, rows: list[int] | None = None) -> int:
    """Write one self-contained page with pictures of rows.

    Args:
        store: Candidates, teacher or labels.
        path: Target.
        rows: Rows to show; None shows the first few. Failed and unwritten rows are skipped.

    Returns:
        The number of rows shown.

    Raises:
        StoreError: If the store is damaged or lacks a row asked for.
    """
    opened = StoreRows(store)
    parts = [f"<!doctype html><meta charset=utf-8><title>{html.escape(store.name)}</title>"
             "<style>body{font:14px sans-serif;margin:2em}img{max-width:100%}</style>"
             f"<h1>{html.escape(str(store))}</h1>"]  # fmt: skip
    for row in _written(opened, rows):
        buffer = io.BytesIO()
        Image.fromarray(sheet(in_lines(draw_row(opened, row)), 280)).save(buffer, "PNG")
        data = base64.b64encode(buffer.getvalue()).decode()
        parts.append(f'<h2>row {row}</h2><img src="data:image/png;base64,{data}">')
        if rows is None and len(parts) > MAX_ROWS_ON_A_PAGE:
            break
    with writing(path):
        atomic_write(path, "\n".join(parts).encode())
    return len(parts) - 1
