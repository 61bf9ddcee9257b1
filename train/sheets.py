"""Shell: a picture of an evaluation: best, median and worst sentences, prediction beside truth."""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.drawing import LABEL_COLOUR, TRUTH_COLOUR, Picture, overlay, sheet
from pipeline.images import read_image
from pipeline.places import Place
from pipeline.records import atomic_write
from refine.upsample import upsample_align_corners
from train.outcomes import Outcomes
from train.predictor import Predictor

CANVAS_PX = 320
"""Longest side of what is drawn."""
KINDS = ("best", "median", "worst")


def pick(
    iou_E: npt.NDArray[np.float64], image_E: npt.NDArray[np.int64], count: int
) -> dict[str, list[int]]:
    """Choose sentences to show, each of another image; among equals the first comes first.

    Args:
        iou_E: IoU of every sentence.
        image_E: Row of its image.
        count: Sentences of each kind; less where there are not 3 * count images.

    Returns:
        Per name of `KINDS` positions: from the highest IoU down, outwards from the middle one, from
        the lowest up.
    """
    order = np.argsort(-iou_E, kind="stable")
    outwards = np.argsort(np.abs(np.arange(len(order)) - (len(order) - 1) / 2), kind="stable")
    walks = {"best": order, "worst": order[::-1], "median": order[outwards]}
    count = min(count, max(1, len(np.unique(image_E)) // len(KINDS)))
    shown: set[int] = set()
    found: dict[str, list[int]] = {kind: [] for kind in KINDS}
    for kind, walk in walks.items():
        for position in walk.tolist():
            if len(found[kind]) < count and int(image_E[position]) not in shown:
                shown.add(int(image_E[position]))
                found[kind].append(position)
    return found


def write_result_sheet(
    predictor: Predictor, outcomes: Outcomes, protocol: str, path: Place, count: int
) -> Place:
    """Draw `count` best, median and worst sentences each as a PNG, three panels a row.

    The image with its sentence, file and expression (the row of the manifest, by which
    `metrics-SPLIT.npz` names it too), the prediction with its IoU by the protocol, the truth.

    Args:
        predictor: What is asked again for the masks of these few.
        outcomes: Columns of the evaluation; not empty.
        protocol: By whose IoU is chosen.
        path: Where the PNG goes.
        count: Sentences of each kind.
    """
    iou_E = outcomes.iou(protocol)
    picked = pick(iou_E, outcomes.image, count)
    chosen = [(kind, position) for kind, found in picked.items() for position in found]
    wanted = np.unique([outcomes.expression[position] for _, position in chosen])
    margins: dict[int, npt.NDArray[np.float32]] = {}
    for positions, margin_Bhw, _ in predictor.margins(wanted):
        margins |= dict(zip(wanted[positions].tolist(), margin_Bhw, strict=True))
    rows = []
    for kind, position in chosen:
        expression = int(outcomes.expression[position])
        if expression in margins:
            caption = f"{kind}, IoU {iou_E[position]:.2f}"
            rows.append(_panels(predictor, expression, margins[expression], caption))
    content = io.BytesIO()
    Image.fromarray(sheet(rows)).save(content, "PNG")
    atomic_write(path, content.getvalue())
    return path


def _panels(
    predictor: Predictor, expression: int, margin_hw: npt.NDArray[np.float32], caption: str
) -> list[tuple[Picture, str]]:
    manifest = predictor.manifest
    image = int(manifest.expression_image[expression])
    picture = read_image(manifest.image_file(image), canvas=CANVAS_PX)
    size = (picture.shape[0], picture.shape[1])
    predicted_HW = upsample_align_corners(margin_hw, size) > 0
    truth_HW = manifest.truth(int(manifest.expression_object[expression]), CANVAS_PX)
    assert truth_HW is not None, "only sentences with a truth are evaluated"
    named = f"expression {expression} · {manifest.expression_text[expression]}"
    return [
        (picture, f"{named}\n{manifest.image_path[image]}"),
        (overlay(picture, predicted_HW, LABEL_COLOUR), caption),
        (overlay(picture, truth_HW, TRUTH_COLOUR), "truth"),
    ]
