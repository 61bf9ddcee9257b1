"""Shell: pictures of the rows of a store."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.candidates import Candidates
from pipeline.cells import BoolArray, masks_of
from pipeline.drawing import (
    LABEL_COLOUR,
    MAX_BORDER_SHARE,
    TRUTH_COLOUR,
    Picture,
    borders,
    cell_colours,
    heat,
    outlined,
    overlay,
    sheet,
    smallest_over,
)
from pipeline.errors import StoreError
from pipeline.images import read_image
from pipeline.places import Place
from pipeline.records import atomic_write
from pipeline.store_rows import State, StoreRows

Panel = tuple[Picture, str]

PANELS_A_LINE = 6
"""As many as labels have; more candidates of a row go on in the next line."""
SHOWN_CANDIDATES = 2
"""Candidates of a row that are drawn when none are asked for: those of the best predicted IoU."""
TEACHER_CANVAS_PX = 640
"""Longest side of the image that a teacher's row is drawn on."""
SCORELESS = ("pwa", "none")
"""Strategies that keep the teacher's mask: their score is 1 whatever it is worth."""


def draw_rows(
    store: Place, rows: Sequence[int], candidates: Sequence[int] = (), panel_px: int = 320
) -> Picture:
    """Draw rows of a store, each on lines of its own.

    Args:
        store: Candidates, teacher or labels.
        rows: Rows of the store, from 0.
        candidates: Which candidates of each row to draw, from 0; none takes the best few.
        panel_px: Side of the square that each panel is fitted into.

    Raises:
        StoreError: If a row or candidate does not exist, cannot be read, or is not written yet.
        ItemError: If an image cannot be read.
    """
    opened = StoreRows(store)
    if candidates and opened.kind != "candidates":
        raise StoreError(
            f"{store}: holds {opened.kind}, no single candidates; give candidates.zarr"
        )
    lines = [line for row in rows for line in in_lines(draw_row(opened, row, candidates))]
    return sheet(lines, panel_px)


def save_rows(
    store: Place, rows: Sequence[int], path: Place, candidates: Sequence[int] = ()
) -> None:
    """Draw rows of a store into a PNG file, as `draw_rows`; its folder is made if need be."""
    buffer = io.BytesIO()
    Image.fromarray(draw_rows(store, rows, candidates)).save(buffer, "PNG")
    with writing(path):
        atomic_write(path, buffer.getvalue())


@contextmanager
def writing(path: Place) -> Iterator[None]:
    """Turn what goes wrong while `path` is written into one StoreError."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror})") from error


def in_lines(panels: list[Panel]) -> list[list[Panel]]:
    """Part the panels of one row into lines of a sheet."""
    starts = range(0, len(panels), PANELS_A_LINE)
    return [panels[start : start + PANELS_A_LINE] for start in starts]


def draw_row(opened: StoreRows, row: int, candidates: Sequence[int] = ()) -> list[Panel]:
    """Draw one row: the image, and what the store says of it.

    Raises:
        StoreError: If the row does not exist, cannot be read, or is not written yet.
        ItemError: If its image cannot be read.
    """
    state = opened.require_written(row)
    if opened.kind == "candidates":
        return _draw_candidates(opened, row, state, candidates)
    return DRAWERS[opened.kind](opened, row, state)


def _draw_candidates(
    opened: StoreRows, row: int, state: State, candidates: Sequence[int]
) -> list[Panel]:
    image = opened.image(row)
    name = opened.manifest.image_path[image]
    if state == "failed":
        raise StoreError(f"{opened.store}: row {row} ({name}) failed; no candidates")
    found = opened.candidates(row)
    picture = _picture(opened, row, max(found.cells.size))
    panels = [
        (picture, f"row {row}\n{name}"),
        _cells(found, picture),
    ]
    count = found.cells.num_candidates
    wanted = list(candidates) or np.argsort(-found.predicted_iou, kind="stable")[:SHOWN_CANDIDATES]
    for number in wanted:
        if not 0 <= number < count:
            raise StoreError(
                f"{opened.store}: row {row} has {count} candidates, numbered from 0; asked for "
                f"{number}"
            )
    masks = masks_of(found.cells)
    for number in wanted:
        caption = (
            f"candidate {number}, {found.area[number]} px\n"
            f"predicted IoU {found.predicted_iou[number]:.2f}"
        )
        panels.append((overlay(picture, masks[number], LABEL_COLOUR), caption))
    return panels


def _draw_teacher(opened: StoreRows, row: int, state: State) -> list[Panel]:
    first = _sentence(opened, row, TEACHER_CANVAS_PX)
    if state == "failed":
        return [first, (first[0], "failed: no prediction")]
    truth = opened.truth(row, TEACHER_CANVAS_PX)
    panels = [first, _teacher(opened, row, first[0], truth)]
    return panels if truth is None else [*panels, _truth(first[0], truth)]


def _draw_labels(opened: StoreRows, row: int, state: State) -> list[Panel]:
    if state == "written":
        return list(label_panels(opened, row).values())
    first = _sentence(opened, row, TEACHER_CANVAS_PX)
    return [first, (first[0], f"failed: no label ({opened.store.parent.name})")]


DRAWERS: dict[str, Callable[[StoreRows, int, State], list[Panel]]] = {
    "teacher": _draw_teacher,
    "labels": _draw_labels,
}
"""How each kind of store with a row per expression draws one."""


def label_panels(opened: StoreRows, row: int) -> dict[str, Panel]:
    """Draw what is known of a written label.

    Returns:
        By name, in this order: `image` with sentence and file; `teacher` and `candidates`, where
        they are still those that the label was made of; `label`; `weight`; `truth`, where known.

    Raises:
        StoreError: If the row, or what it was made of, cannot be read.
        ItemError: If its image cannot be read.
    """
    mask_HW, weight_HW, source = opened.label(row)
    score = float(opened.scalar("score", row))
    canvas = max(mask_HW.shape)
    truth = opened.truth(row, canvas)
    first = _sentence(opened, row, canvas)
    picture = first[0]
    panels = {"image": first}
    teacher = opened.sources.get("teacher")
    if teacher is not None and teacher.state(row) == "written":
        panels["teacher"] = _teacher(teacher, row, picture, truth)
    cells = _cells_of_label(opened, row, picture)
    if cells is not None:
        panels["candidates"] = cells
    panels["label"] = overlay(picture, mask_HW, LABEL_COLOUR), _label(mask_HW, source, score, truth)
    mean = float(weight_HW.mean())
    scale = "weight, dark 0 to yellow 1" if weight_HW.min() < weight_HW.max() else "weight"
    panels["weight"] = heat(picture, weight_HW), f"{scale}\nmean {mean:.2f}"
    if truth is not None:
        panels["truth"] = _truth(picture, truth)
    return panels


def _teacher(teacher: StoreRows, row: int, picture: Picture, truth: BoolArray | None) -> Panel:
    """Draw a written prediction: the probability, the outline of its mask, IoU and confidence."""
    logit_hw = np.asarray(teacher.array("logit", row), np.float32)
    margin_HW = corners_on_corners(logit_hw, (picture.shape[0], picture.shape[1]))
    with np.errstate(over="ignore"):  # exp gives inf, of which the reciprocal is 0
        prob_HW = np.asarray(1 / (1 + np.exp(-margin_HW)), np.float32)
    caption = f"teacher of {teacher.store.parent.name}{_iou(margin_HW > 0, truth)}"
    confidence = float(teacher.scalar("confidence", row))
    drawn = outlined(heat(picture, prob_HW), margin_HW > 0)
    return drawn, f"{caption}\nconfidence {confidence:.2f}"


def corners_on_corners(
    value_hw: npt.NDArray[np.float32], size: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """Interpolate a teacher's logits bilinearly, as its mask is made; the plain way, for pictures.

    Args:
        value_hw: (h, w) float32; its corners lie on the corners of the result.
        size: (H, W) wanted, in pixels.

    Returns:
        (H, W) float32.
    """
    for axis in (0, 1):
        last = value_hw.shape[axis] - 1
        place = np.linspace(0, last, size[axis]) if size[axis] > 1 else np.zeros(1)
        low = np.minimum(place.astype(np.int64), max(last - 1, 0))
        share = np.expand_dims(place - low, 1 - axis)
        start, stop = value_hw.take(low, axis), value_hw.take(np.minimum(low + 1, last), axis)
        value_hw = np.asarray(start + share * (stop - start), np.float32)
    return value_hw


def _cells_of_label(opened: StoreRows, row: int, picture: Picture) -> Panel | None:
    """Draw the cells of a label's image; None where they are not there or of another size."""
    candidates = opened.sources.get("candidates")
    position = int(np.searchsorted(opened.manifest.images_of("train"), opened.image(row)))
    if candidates is None or candidates.state(position) != "written":
        return None
    found = candidates.candidates(position)
    if found.cells.size != picture.shape[:2]:
        return None
    drawn, caption = _cells(found, picture)
    return drawn, f"{caption}\nrow {position} of {candidates.store.name}"


def _cells(found: Candidates, picture: Picture) -> Panel:
    """Colour the cells or, where they are too small to be seen, each pixel's smallest candidate."""
    candidates, cells = f"{found.cells.num_candidates} candidates", found.cells.num_cells - 1
    if borders(found.cells.cells).mean() <= MAX_BORDER_SHARE:
        return cell_colours(picture, found.cells.cells), f"{candidates}, {cells} cells"
    drawn = cell_colours(picture, smallest_over(found.cells))
    return drawn, f"{candidates}, small over large\n{cells} cells"


def _label(mask_HW: BoolArray, source: str, score: float, truth: BoolArray | None) -> str:
    name = f"{source}: teacher's mask" if source in SCORELESS else source
    lines = [f"{name}{_iou(mask_HW, truth)}"]
    lines += [f"score {score:.2f}"] if source not in SCORELESS else []
    lines += ["truth unknown"] if truth is None else []
    return "\n".join(lines)


def _truth(picture: Picture, truth: BoolArray) -> Panel:
    return overlay(picture, truth, TRUTH_COLOUR), "truth"


def _iou(mask_HW: BoolArray, truth: BoolArray | None) -> str:
    if truth is None:
        return ""
    inside, union = int((mask_HW & truth).sum()), int((mask_HW | truth).sum())
    return f", IoU {inside / max(union, 1):.2f}"


def _sentence(opened: StoreRows, row: int, canvas: int) -> Panel:
    name = opened.manifest.image_path[opened.image(row)]
    return _picture(opened, row, canvas), f"row {row} · {opened.sentence(row)}\n{name}"


def _picture(opened: StoreRows, row: int, canvas: int) -> Picture:
    manifest, image = opened.manifest, opened.image(row)
    return read_image(manifest.image_file(image), canvas=canvas, size=manifest.size_of(image))
