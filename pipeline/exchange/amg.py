"""Masks as segment-anything's scripts/amg.py writes them with --convert-to-rle: a JSON an image.

A list of records {segmentation, area, bbox, predicted_iou, point_coords, stability_score,
crop_box}; or, as in SA-1B, {"image": {...}, "annotations": [the same]}.
"""

from pathlib import Path
from typing import Any

from pipeline.errors import ItemError
from pipeline.exchange.annotations import mask_of_annotation
from pipeline.exchange.image_files import open_image_files, parse_json, read_bytes
from pipeline.exchange.source import Found, MaskSource, Sizes
from pipeline.manifest import Manifest


def open_amg(path: Path, manifest: Manifest) -> MaskSource:
    """Open a folder of JSON files; each is read when its image is asked for.

    Args:
        path: The folder.
        manifest: Whose images the masks belong to.

    Raises:
        ConfigError: If there is no such folder, or nothing in it belongs to any image.
    """
    files = open_image_files(path, ".json", manifest)

    def find(row: int, sizes: Sizes) -> Found:
        file = files.file_of(row)
        records, drawn_at = _records(parse_json(read_bytes(file), str(file)), file, sizes)
        return Found(
            where=str(file),
            count=len(records),
            mask_at=lambda number: mask_of_annotation(records[number], sizes, drawn_at),
        )

    return MaskSource(manifest=manifest, find=find)


def _records(document: Any, file: Path, sizes: Sizes) -> tuple[list[Any], tuple[int, int]]:
    """Give the records of a file, and the (H, W) that it states, else the image's own."""
    if isinstance(document, list):
        return document, sizes.original
    records = document.get("annotations") if isinstance(document, dict) else None
    if not isinstance(records, list):
        raise ItemError(
            f"expected a list of masks or an object with annotations in {file}, found another "
            "structure"
        )
    image = document.get("image")
    if not isinstance(image, dict) or not {"height", "width"} <= image.keys():
        return records, sizes.original
    try:
        return records, sizes.checked(image["height"], image["width"])
    except ItemError as error:
        raise ItemError(f"{file}: {error}; do the masks belong to this image?") from error
