"""One mask as a JSON object of COCO's kind: its shape, scores and prompt."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import ItemError
from pipeline.exchange.runs import Size, mask_of_runs, runs_of_counts
from pipeline.exchange.source import PREDICTED_IOU, FoundMask, Sizes
from pipeline.segmentation import decode_rle, encode_segmentation


def mask_of_annotation(annotation: Any, sizes: Sizes, drawn_at: Size) -> FoundMask:
    """Read an annotation.

    Args:
        annotation: JSON object with `segmentation`: a COCO RLE, compressed or not, or polygons;
            perhaps `predicted_iou` or else `score`, `stability_score`, and `point_coords` as
            [x, y] or [[x, y], ...], of which the first counts. null is the same as none.
        sizes: The sizes that an RLE may have.
        drawn_at: (H, W) of the image in which polygons have their coordinates, one of the sizes.

    Raises:
        ItemError: If anything of it is malformed or of another size.
    """
    if not isinstance(annotation, dict):
        raise ItemError(f"expected an object with segmentation, found {annotation!r:.40}")
    mask = _mask(annotation.get("segmentation"), sizes, drawn_at)
    if not mask.any():  # left out by the caller; segment-anything gives it a stability of 0 / 0
        return FoundMask(mask=mask)
    return FoundMask(
        mask=mask,
        predicted_iou=_score(annotation, ("predicted_iou", "score"), PREDICTED_IOU),
        stability_score=_score(annotation, ("stability_score",), (0.0, 1.0)),
        point=_point(annotation.get("point_coords"), mask.shape),
    )


def _mask(segmentation: Any, sizes: Sizes, drawn_at: Size) -> npt.NDArray[np.bool_]:
    if isinstance(segmentation, dict):
        return _mask_of_rle(segmentation, sizes)
    if isinstance(segmentation, list) and segmentation:
        return _mask_of_polygons(segmentation, drawn_at)
    found = "none" if segmentation in (None, []) else f"{segmentation!r:.40}"
    raise ItemError(f"expected an RLE or polygons as segmentation, found {found}")


def _mask_of_rle(rle: dict[str, Any], sizes: Sizes) -> npt.NDArray[np.bool_]:
    stated, counts = rle.get("size"), rle.get("counts")
    if not isinstance(stated, list) or len(stated) != 2:
        raise ItemError(f"expected [height, width] as size of an RLE, found {stated!r:.40}")
    size = sizes.checked(*stated)
    if isinstance(counts, str):
        try:
            return decode_rle(counts.encode("ascii"), size)
        except UnicodeEncodeError as error:
            raise ItemError("expected compressed RLE counts, found text that is not") from error
    if isinstance(counts, list):
        return mask_of_runs(runs_of_counts(counts, size), size)
    raise ItemError(f"expected counts of an RLE as text or list, found {counts!r:.40}")


def _mask_of_polygons(polygons: list[Any], size: Size) -> npt.NDArray[np.bool_]:
    """Paint the union of polygons; it may cover no pixel."""
    height, width = size
    # `encode_segmentation` refuses what covers no pixel; a filled column more is always covered.
    column = [width, 0, width + 1, 0, width + 1, height, width, height]
    counts = encode_segmentation([*polygons, column], (height, width + 1), Path())
    return np.ascontiguousarray(decode_rle(counts, (height, width + 1))[:, :width])


def _score(
    annotation: dict[str, Any], names: tuple[str, ...], limits: tuple[float, float]
) -> float:
    """Give the first score that is there, else 1."""
    for name in names:
        value = annotation.get(name)
        if value is not None:
            # nan fails every comparison; an integer of any length compares.
            if type(value) not in (int, float) or not limits[0] <= value <= limits[1]:
                raise ItemError(
                    f"expected {name} as a number from {limits[0]:g} to {limits[1]:g}, found "
                    f"{value!r:.40}"
                )
            return float(value)
    return 1.0


def _point(value: Any, shape: tuple[int, ...]) -> tuple[float, float] | None:
    if value is None:
        return None
    pair = value[0] if isinstance(value, list) and value and isinstance(value[0], list) else value
    if (
        not isinstance(pair, list)
        or len(pair) != 2
        or not set(map(type, pair)) <= {int, float}
        or not (0 <= pair[0] <= shape[1] and 0 <= pair[1] <= shape[0])
    ):
        raise ItemError(
            f"expected point_coords as [x, y] within {shape[0]}x{shape[1]} (HxW) pixels, found "
            f"{value!r:.40}"
        )
    return float(pair[0]), float(pair[1])
