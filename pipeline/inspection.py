"""Shell: look into the rows of a store: pictures, COCO JSON, one HTML page."""

import base64
import html
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from PIL import Image
from pycocotools import mask as coco_mask

from pipeline.candidates import CandidateReader
from pipeline.cells import masks_of
from pipeline.drawing import LABEL_COLOUR, Picture, cell_colours, heat, overlay, sheet
from pipeline.errors import StoreError
from pipeline.images import read_image
from pipeline.manifest import Manifest, load_manifest
from pipeline.records import atomic_write
from pipeline.store import open_store

Row = tuple[Picture, str]


def kind_of(store: Path) -> str:
    """Tell what a store holds: candidates, teacher or labels.

    Raises:
        StoreError: If it is none of them.
    """
    names = {name for name, _ in open_store(store).arrays()}
    for kind, marker in (("candidates", "cells"), ("teacher", "logit"), ("labels", "mask")):
        if marker in names:
            return kind
    raise StoreError(f"{store}: neither candidates, teacher nor labels; it holds {sorted(names)}")


def manifest_of(store: Path) -> Manifest:
    """Load the manifest of the run that a store lies in."""
    for folder in store.resolve().parents:
        if (folder / "manifest").is_dir():
            return load_manifest(folder / "manifest")
    raise StoreError(f"{store}: no manifest/ in any folder above it")


def draw_rows(store: Path, rows: list[int], panel_px: int = 320) -> Picture:
    """Draw rows of a store, four panels to a line."""
    panels = [panel for row in rows for panel in draw_row(store, row)]
    blank = (np.full((8, 8, 3), 250, np.uint8), "")
    width = min(4, len(panels))
    panels += [blank] * (-len(panels) % width)
    lines = [panels[start : start + width] for start in range(0, len(panels), width)]
    return sheet(lines, panel_px)


def draw_row(store: Path, row: int) -> list[Row]:
    """Draw one row: the image, and what the store says of it.

    Raises:
        StoreError: If the row does not exist or cannot be read.
    """
    group, manifest = open_store(store), manifest_of(store)
    kind = kind_of(store)
    count = _array(group, "image" if kind == "candidates" else "expression").shape[0]
    if not 0 <= row < count:
        raise StoreError(f"{store}: rows go from 0 to {count - 1}, asked for {row}")
    return DRAWERS[kind](store, group, manifest, row)


def _draw_candidates(store: Path, group: zarr.Group, manifest: Manifest, row: int) -> list[Row]:
    image = int(np.asarray(_array(group, "image")[row]))
    found = CandidateReader(store).read(row)
    if found is None:
        raise StoreError(f"{store}: row {row} ({manifest.image_path[image]}) failed; no candidates")
    picture = read_image(manifest.image_file(image), canvas=max(found.cells.size))
    cells = f"{found.cells.num_candidates} candidates, {found.cells.num_cells - 1} cells"
    panels: list[Row] = [
        (picture, manifest.image_path[image]),
        (cell_colours(picture, found.cells.cells), cells),
    ]
    best = np.argsort(-found.predicted_iou, kind="stable")[:2]
    for number, mask in zip(best, masks_of(found.cells)[best], strict=True):
        caption = f"candidate {number}, {found.area[number]} px\npredicted IoU "
        panels.append(
            (overlay(picture, mask, LABEL_COLOUR), f"{caption}{found.predicted_iou[number]:.2f}")
        )
    return panels


def _draw_teacher(store: Path, group: zarr.Group, manifest: Manifest, row: int) -> list[Row]:
    picture, sentence = _sentence(group, manifest, row)
    logit = np.asarray(_array(group, "logit")[row], np.float32)
    prob = Image.fromarray(1 / (1 + np.exp(-logit))).resize(
        (picture.shape[1], picture.shape[0]), Image.Resampling.BILINEAR
    )
    valid = int(np.asarray(_array(group, "valid")[row]))
    name = (
        f"teacher's probability (store {store.parent.name})" if valid else "failed: no prediction"
    )
    return [(picture, sentence), (heat(picture, np.asarray(prob)), name)]


def _draw_labels(store: Path, group: zarr.Group, manifest: Manifest, row: int) -> list[Row]:
    picture, sentence = _sentence(group, manifest, row)
    mask, weight, source = _label(group, row)
    if mask is None or weight is None:
        return [(picture, sentence), (picture, f"failed: no label ({store.parent.name})")]
    picture = np.asarray(Image.fromarray(picture).resize(mask.shape[::-1]), np.uint8)
    score = float(np.asarray(_array(group, "score")[row]))
    return [
        (picture, sentence),
        (overlay(picture, mask, LABEL_COLOUR), f"{source}, score {score:.2f}"),
        (heat(picture, weight), f"weight, mean {weight.mean():.2f}"),
    ]


DRAWERS: dict[str, Callable[[Path, zarr.Group, Manifest, int], list[Row]]] = {
    "candidates": _draw_candidates,
    "teacher": _draw_teacher,
    "labels": _draw_labels,
}
"""How each kind of store draws a row."""


def _array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    array = group[name]
    assert isinstance(array, zarr.Array)
    return array


def _sentence(group: zarr.Group, manifest: Manifest, row: int) -> tuple[Picture, str]:
    expression = int(np.asarray(_array(group, "expression")[row]))
    if expression < 0:
        raise StoreError(f"row {row} is not written yet")
    image = int(manifest.expression_image[expression])
    picture = read_image(manifest.image_file(image), canvas=640)
    return picture, manifest.expression_text[expression]


def _label(
    group: zarr.Group, row: int
) -> tuple[npt.NDArray[np.bool_] | None, npt.NDArray[np.float32] | None, str]:
    code = int(np.asarray(_array(group, "source")[row]))
    if code < 0:
        return None, None, "failed"
    height, width = (int(side) for side in np.asarray(_array(group, "size")[row]))
    packed = np.asarray(_array(group, "mask")[row])[:height]
    mask = np.unpackbits(packed, axis=1, count=width).astype(np.bool_)
    weight = np.asarray(_array(group, "weight")[row], np.float32)[:height, :width] / np.float32(255)
    names: Any = group.attrs["strategies"]
    return mask, weight, str(names[code])


def export_coco(store: Path, path: Path) -> int:
    """Write candidates or labels as COCO annotations with compressed RLE.

    The masks are in canvas geometry, which is the image's own unless it is larger than the canvas.

    Returns:
        The number of annotations.

    Raises:
        StoreError: For a store that holds no masks.
    """
    kind = kind_of(store)
    if kind == "teacher":
        raise StoreError(f"{store}: holds probabilities, no masks; export candidates or labels")
    group, manifest = open_store(store), manifest_of(store)
    exported = (_coco_candidates if kind == "candidates" else _coco_labels)(store, group, manifest)
    images: dict[int, dict[str, Any]] = {}
    annotations: list[dict[str, Any]] = []
    for image, annotation in exported:
        height, width = annotation["segmentation"]["size"]
        images[image] = {"id": image, "file_name": manifest.image_path[image], "height": height,
                         "width": width}  # fmt: skip
        annotations.append({"id": len(annotations) + 1, "image_id": image, "iscrowd": 0,
                            "category_id": 1, **annotation})  # fmt: skip
    document = {"images": list(images.values()), "annotations": annotations,
                "categories": [{"id": 1, "name": "object"}]}  # fmt: skip
    atomic_write(path, json.dumps(document).encode())
    return len(annotations)


def _coco_candidates(
    store: Path, group: zarr.Group, manifest: Manifest
) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = CandidateReader(store)
    images = np.asarray(_array(group, "image")[:])
    for row, image in enumerate(images):
        found = reader.read(row) if image >= 0 else None
        if found is None:
            continue
        for number, mask in enumerate(masks_of(found.cells)):
            yield (
                int(image),
                {
                    **_rle(mask),
                    "predicted_iou": float(found.predicted_iou[number]),
                    "stability_score": float(found.stability_score[number]),
                    "point_coords": [float(value) for value in found.point[number]],
                },
            )


def _coco_labels(
    store: Path, group: zarr.Group, manifest: Manifest
) -> Iterator[tuple[int, dict[str, Any]]]:
    expressions = np.asarray(_array(group, "expression")[:])
    scores = np.asarray(_array(group, "score")[:])
    for row, expression in enumerate(expressions):
        mask, weight, source = _label(group, row)
        if expression < 0 or mask is None or weight is None:
            continue
        yield (
            int(manifest.expression_image[expression]),
            {
                **_rle(mask),
                "expression": manifest.expression_text[expression],
                "source": source,
                "score": float(scores[row]),
                "mean_weight": float(weight.mean()),
            },
        )


def _rle(mask_HW: npt.NDArray[np.bool_]) -> dict[str, Any]:
    encoded = coco_mask.encode(np.asfortranarray(mask_HW, np.uint8))
    box = [float(value) for value in coco_mask.toBbox(encoded)]
    segmentation = {"size": encoded["size"], "counts": encoded["counts"].decode()}
    return {"segmentation": segmentation, "area": int(mask_HW.sum()), "bbox": box}


def export_html(store: Path, rows: list[int], path: Path) -> int:
    """Write one self-contained page with the pictures of the given rows.

    Returns:
        The number of rows.
    """
    parts = [f"<!doctype html><meta charset=utf-8><title>{html.escape(store.name)}</title>"
             "<style>body{font:14px sans-serif;margin:2em}img{max-width:100%}</style>"
             f"<h1>{html.escape(str(store))}</h1>"]  # fmt: skip
    for row in rows:
        buffer = io.BytesIO()
        Image.fromarray(sheet([draw_row(store, row)], 280)).save(buffer, "PNG")
        data = base64.b64encode(buffer.getvalue()).decode()
        parts.append(f'<h2>row {row}</h2><img src="data:image/png;base64,{data}">')
    atomic_write(path, "\n".join(parts).encode())
    return len(rows)
