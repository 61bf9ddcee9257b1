"""Shell: a picture of what refinement did: image, teacher, candidates, refined label, truth."""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.candidates import CandidateReader, no_candidates
from pipeline.drawing import (
    LABEL_COLOUR,
    TRUTH_COLOUR,
    Picture,
    cell_colours,
    heat,
    outline,
    overlay,
    sheet,
)
from pipeline.errors import StoreError
from pipeline.images import read_image
from pipeline.json_files import atomic_write
from pipeline.manifest import Manifest, load_manifest
from pipeline.paths import RunPaths
from pipeline.places import Place
from refine.labels import NO_LABEL, Label, LabelReader
from refine.quality import mask_iou
from refine.teacher_store import TeacherReader
from refine.upsample import sigmoid, upsample_align_corners


def write_contact_sheet(run_dir: Place, number: int, path: Place, num_rows: int = 8) -> Place:
    """Draw labels of one round, spread evenly over the data set, as a PNG.

    Five panels a row: the image with its expression, the teacher's probability with the outline of
    its mask, the cells that SAM's candidates cut, the refined label with its source, the truth.

    Args:
        run_dir: Run directory; the round must be refined.
        number: The round.
        path: Where the PNG goes.
        num_rows: Expressions to show.

    Raises:
        StoreError: If the round has no label.
    """
    paths = RunPaths(run_dir)
    labels = LabelReader(paths.labels(number))
    usable = np.flatnonzero(labels.scalars()["source"] != NO_LABEL)
    if not len(usable):
        raise StoreError(f"{paths.labels(number)}: holds no label to show")
    # Offset by half a step: the first and the last image are no better than others.
    steps = (np.arange(num_rows) + 0.5) / num_rows * len(usable)
    rows = sorted({int(usable[int(step)]) for step in steps})
    readers = (CandidateReader(paths.candidates), TeacherReader(paths.teacher(number)))
    manifest = load_manifest(paths.manifest)
    drawn = [_panels(manifest, labels, *readers, row) for row in rows]
    content = io.BytesIO()
    Image.fromarray(sheet(drawn)).save(content, "PNG")
    atomic_write(path, content.getvalue())
    return path


def _panels(
    manifest: Manifest,
    labels: LabelReader,
    candidates: CandidateReader,
    teacher: TeacherReader,
    row: int,
) -> list[tuple[Picture, str]]:
    label = labels.read(row)
    assert label is not None, "only rows with a label are shown"
    size = label.mask.shape
    canvas = max(size)
    picture = read_image(manifest.image_file(label.image), canvas=canvas)
    logit_hw = teacher.read(range(row, row + 1))["logit"][0]
    prob_HW = sigmoid(upsample_align_corners(logit_hw, size))
    position = int(np.searchsorted(manifest.images_of("train"), label.image))
    found = candidates.read(position) or no_candidates(size)
    object_row = int(manifest.expression_object[label.expression])
    truth = manifest.truth(object_row, canvas)
    return [
        (picture, manifest.expression_text[label.expression]),
        (_outlined(heat(picture, prob_HW), prob_HW > 0.5), _teacher_caption(prob_HW, truth)),
        (cell_colours(picture, found.cells.cells), f"{found.cells.num_candidates} candidates"),
        (overlay(picture, label.mask, LABEL_COLOUR), _label_caption(label, truth)),
        (picture, "truth unknown")
        if truth is None
        else (overlay(picture, truth, TRUTH_COLOUR), "truth"),
    ]


def _outlined(picture: Picture, mask_HW: npt.NDArray[np.bool_]) -> Picture:
    drawn = picture.copy()
    drawn[outline(mask_HW)] = 255
    return drawn


def _teacher_caption(prob_HW: npt.NDArray[np.float32], truth: npt.NDArray[np.bool_] | None) -> str:
    return "teacher" if truth is None else f"teacher, IoU {mask_iou(prob_HW > 0.5, truth)[2]:.2f}"


def _label_caption(label: Label, truth: npt.NDArray[np.bool_] | None) -> str:
    iou = "" if truth is None else f", IoU {mask_iou(label.mask, truth)[2]:.2f}"
    return f"{label.source}{iou}\nscore {label.score:.2f}"
