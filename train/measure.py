"""Shell: predict expressions whose truth is known, and count pixels.

Shape letters: B batch, H W pixels, h w pixels of the logits.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from pipeline.bars import bar_options
from pipeline.manifest import Manifest
from pipeline.records import FailedItem
from refine.upsample import upsample_align_corners
from train import augment
from train.metrics import count_pixels
from train.outcomes import Outcomes
from train.predictor import Predictor

PROTOCOLS = ("square", "image")
"""`square`: truth nearest-resized to the network's square (LAVT, SemiRES); `image`: the prediction
brought to the image's original size."""


def measure(
    predictor: Predictor,
    expressions: npt.NDArray[np.int64],
    protocols: Sequence[str],
    name: str,
    *,
    silent: bool = False,
) -> tuple[Outcomes, list[FailedItem]]:
    """Predict expressions with a known truth and count pixels.

    Ranks that measure disjoint parts of a split get, by `outcomes.join`, the columns of the whole.

    Args:
        predictor: The network.
        expressions: Rows of the manifest, rising.
        protocols: Names of `PROTOCOLS`.
        name: For the progress bar.
        silent: Show no bar.

    Returns:
        The columns of what could be predicted, and the items that could not.
    """
    manifest, failed, measured = predictor.manifest, [], []
    counts: list[list[tuple[int, int]]] = []
    with tqdm(
        total=len(expressions), desc=name, unit=" expressions", disable=silent, **bar_options()
    ) as bar:
        for positions, margin_Bhw, failures in predictor.margins(expressions):
            for position, reason in failures.items():
                item = manifest.describe_expression(int(expressions[position]))
                failed.append(FailedItem(item=item, reason=reason))
            for position, margin_hw in zip(positions, margin_Bhw, strict=True):
                truth_HW = truth_of(manifest, int(expressions[position]))
                counts.append([_count(margin_hw, truth_HW, p, predictor.side) for p in protocols])
                measured.append((int(expressions[position]), int(truth_HW.sum())))
            bar.update(len(positions) + len(failures))
    table = np.asarray(measured, np.int64).reshape(-1, 2)
    pixels = np.asarray(counts, np.int64).reshape(-1, len(protocols), 2)
    image = np.asarray(manifest.expression_image[table[:, 0]], np.int64)
    outcomes = Outcomes(
        expression=table[:, 0],
        image=image,
        true_area=table[:, 1],
        image_area=np.asarray(manifest.image_size[image], np.int64).prod(axis=1),
        intersection={name: pixels[:, i, 0] for i, name in enumerate(protocols)},
        union={name: pixels[:, i, 1] for i, name in enumerate(protocols)},
    )
    return outcomes, failed


def truth_of(manifest: Manifest, expression: int) -> npt.NDArray[np.bool_]:
    """Give the known mask of an expression's object, (H, W) bool, at the image's original size."""
    truth_HW = manifest.truth(int(manifest.expression_object[expression]), None)
    assert truth_HW is not None, "only sentences with a truth are evaluated"
    return truth_HW


def _count(
    margin_hw: npt.NDArray[np.float32], truth_HW: npt.NDArray[np.bool_], protocol: str, side: int
) -> tuple[int, int]:
    """Count the pixels of intersection and union of one sentence by one protocol."""
    if protocol == "square":
        truth_HW = augment.resize_mask(truth_HW.astype(np.uint8), side) > 0
    size = (truth_HW.shape[0], truth_HW.shape[1])
    mask_HW = upsample_align_corners(margin_hw, size) > 0
    intersection_1, union_1 = count_pixels(mask_HW[None], truth_HW[None])
    return int(intersection_1[0]), int(union_1[0])
