"""Put checked objects into the order and columns of a manifest. Core: no file is read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.collect import Referred
from pipeline.columns import StringColumn
from pipeline.data_config import LabelledConfig
from pipeline.labelled import annotated_images, check_leaks, choose_labelled, match_labelled
from pipeline.manifest import SPLITS, Manifest, manifest_fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaks:
    """What `drop_leaking` left out."""

    images: int = 0
    """Images that train shared with another split."""
    objects: int = 0
    """Training objects on them."""


def assemble(
    objects: Sequence[Referred],
    image_root: Path,
    labelled: LabelledConfig,
    wanted: Sequence[str] | None,
    *,
    drop_leaking: bool,
    trial: bool,
) -> tuple[Manifest, Leaks]:
    """Order objects, choose the labelled images and check for leaks.

    Only training images all of whose objects have a truth can be labelled: a labelled
    expression is then never without a mask, and where everything is annotated, as in RefCOCO,
    the draw is the released one.

    Args:
        objects: In the order of the annotations.
        image_root: Folder of the images; only noted.
        labelled: How the labelled images are chosen.
        wanted: Ids of the images to label, where `labelled` lists them; else None.
        drop_leaking: Leave out training objects of images that another split holds.
        trial: A limited run: label at least one image however small the ratio.

    Returns:
        The manifest, and what was left out.

    Raises:
        ConfigError: If the ratio labels no image.
        ManifestError: If truth leaks between parts, or a wanted image is missing.
    """
    leaks = Leaks()
    if drop_leaking:
        objects, leaks = _without_leaks(objects)
    ordered, images = _ordered(objects)
    columns = _columns(ordered, images)
    image_ids = [image.image_id for image in images]
    has_truth = np.array([bool(item.rle) for item in ordered], dtype=np.bool_)
    annotated = annotated_images(
        columns["object_image"], columns["object_split"], has_truth, len(images)
    )
    candidates = np.flatnonzero(annotated)
    names = [image_ids[row] for row in candidates]
    image_labelled = np.zeros(len(images), dtype=np.bool_)
    image_labelled[candidates] = _labelled(names, labelled, wanted, trial=trial)
    check_leaks(
        image_ids=image_ids,
        image_labelled=image_labelled,
        object_image=columns["object_image"],
        object_split=columns["object_split"],
    )
    columns["image_labelled"] = image_labelled
    fingerprint = manifest_fingerprint(columns)
    return Manifest(image_root=image_root, fingerprint=fingerprint, **columns), leaks


def _without_leaks(objects: Sequence[Referred]) -> tuple[list[Referred], Leaks]:
    held_out = {item.image for item in objects if item.split != "train"}
    leaking = [item for item in objects if item.split == "train" and item.image in held_out]
    kept = [item for item in objects if item.split != "train" or item.image not in held_out]
    return kept, Leaks(images=len({item.image for item in leaking}), objects=len(leaking))


def _ordered(objects: Sequence[Referred]) -> tuple[list[Referred], list[Referred]]:
    """Sort objects by image, images by split and first appearance; give each image's first too."""
    by_split = sorted(objects, key=lambda item: SPLITS.index(item.split))
    first: dict[str, Referred] = {}
    for item in by_split:
        first.setdefault(item.image, item)
    row = {image: number for number, image in enumerate(first)}
    return sorted(by_split, key=lambda item: row[item.image]), list(first.values())


def _columns(ordered: Sequence[Referred], images: Sequence[Referred]) -> dict[str, Any]:
    """Give all columns but `image_labelled`."""
    row = {image.image: number for number, image in enumerate(images)}
    num_expressions = [len(item.expressions) for item in ordered]
    sizes = np.array([image.size for image in images], dtype=np.int32)
    return {
        "image_id": StringColumn.from_strings(image.image_id for image in images),
        "image_path": StringColumn.from_strings(image.image for image in images),
        "image_sha256": StringColumn.from_strings(image.image_sha256 for image in images),
        "image_size": sizes.reshape(-1, 2),
        "object_id": StringColumn.from_strings(item.object_id for item in ordered),
        "object_image": np.array([row[item.image] for item in ordered], dtype=np.int32),
        "object_category": StringColumn.from_strings(item.category for item in ordered),
        "object_split": np.array([SPLITS.index(item.split) for item in ordered], dtype=np.uint8),
        "object_rle": StringColumn.from_strings(item.rle for item in ordered),
        "expression_object": np.repeat(np.arange(len(ordered), dtype=np.int32), num_expressions),
        "expression_text": StringColumn.from_strings(
            text for item in ordered for text in item.expressions
        ),
    }


def _labelled(
    names: Sequence[str], config: LabelledConfig, wanted: Sequence[str] | None, *, trial: bool
) -> npt.NDArray[np.bool_]:
    """Choose among the annotated training images, shape (len(names),), bool."""
    if wanted is not None:
        # A limited run holds few of the images that a list names.
        return match_labelled(names, sorted(set(wanted) & set(names)) if trial else wanted)
    if config.ratio is None or (trial and not names):
        return np.zeros(len(names), dtype=np.bool_)
    ratio = max(config.ratio, 1 / len(names)) if trial else config.ratio
    return choose_labelled(names, ratio, config.seed)
