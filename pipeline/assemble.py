"""Put checked objects into the order and columns of a manifest. Core: no file is read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.collected import ImageRows, ObjectRows
from pipeline.columns import StringColumn
from pipeline.data_config import LabelledConfig
from pipeline.labelled import (
    annotated_images,
    check_leaks,
    choose_labelled,
    leaking_images,
    match_labelled,
)
from pipeline.manifest import Manifest, manifest_fingerprint

Rows = npt.NDArray[np.integer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaks:
    """What `drop_leaking` left out."""

    images: int = 0
    """Images that train shared with another split."""
    objects: int = 0
    """Training objects on them."""


def assemble(
    images: ImageRows,
    objects: ObjectRows,
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
        images: Images of the objects; others are left out.
        objects: In the order of the annotations. The strings of both are handed over, one column
            after the other, so that they are not held twice: none are left.
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
    of_image, of_split = objects.numbers("images"), objects.numbers("splits")
    rows: Rows = np.arange(len(objects), dtype=np.int32)
    leaks = Leaks()
    if drop_leaking:
        rows, leaks = _without_leaks(of_image, of_split, len(images))
    object_rows, image_rows = _ordered(of_image, of_split, rows)
    columns = _columns(images, objects, object_rows, image_rows)
    annotated = annotated_images(
        columns["object_image"],
        columns["object_split"],
        columns["object_rle"].lengths() > 0,
        len(image_rows),
    )
    candidates = np.flatnonzero(annotated)
    image_labelled = np.zeros(len(image_rows), dtype=np.bool_)
    image_labelled[candidates] = _labelled(
        columns["image_id"].take(candidates), labelled, wanted, trial=trial
    )
    check_leaks(
        image_ids=columns["image_id"],
        image_labelled=image_labelled,
        object_image=columns["object_image"],
        object_split=columns["object_split"],
    )
    columns["image_labelled"] = image_labelled
    fingerprint = manifest_fingerprint(columns)
    return Manifest(image_root=image_root, fingerprint=fingerprint, **columns), leaks


def _without_leaks(of_image: Rows, of_split: Rows, num_images: int) -> tuple[Rows, Leaks]:
    """Give the rows of objects that may stay: of other splits, or on images of train alone."""
    leaking = leaking_images(of_image, of_split, num_images)
    leave = leaking[of_image] & (of_split == 0)
    return np.flatnonzero(~leave), Leaks(images=int(leaking.sum()), objects=int(leave.sum()))


def _ordered(of_image: Rows, of_split: Rows, rows: Rows) -> tuple[Rows, Rows]:
    """Sort objects by image, and images by split and first appearance.

    Args:
        of_image: Image row of every object.
        of_split: Split of every object.
        rows: Objects to sort, rising.

    Returns:
        `rows` in their new order; the rows of their images, once each, in theirs.
    """
    by_split = rows[np.argsort(of_split[rows], kind="stable")]
    named, first = np.unique(of_image[by_split], return_index=True)
    place = np.empty(len(named), dtype=np.int32)
    by_appearance = np.argsort(first)
    place[by_appearance] = np.arange(len(named))
    # `named` rises, so that the place of an object's image is found by bisection.
    place_of_object = place[np.searchsorted(named, of_image[by_split])]
    return by_split[np.argsort(place_of_object, kind="stable")], named[by_appearance]


def _columns(
    images: ImageRows,
    objects: ObjectRows,
    object_rows: Rows,
    image_rows: Rows,
) -> dict[str, Any]:
    """Give all columns but `image_labelled`, of some rows; the strings are handed over."""
    of_image, counts = objects.numbers("images"), objects.numbers("num_expressions")
    place = np.zeros(len(images), dtype=np.int32)
    place[image_rows] = np.arange(len(image_rows), dtype=np.int32)
    num_objects = np.arange(len(object_rows), dtype=np.int32)
    each_image, each_object = np.ones_like(image_rows), np.ones_like(object_rows)
    first = np.cumsum(counts, dtype=np.int64) - counts
    return {
        "image_id": images.ids.hand_over_runs(image_rows, each_image),
        "image_path": images.paths.hand_over_runs(image_rows, each_image),
        "object_id": objects.ids.hand_over_runs(object_rows, each_object),
        "object_category": objects.categories.hand_over_runs(object_rows, each_object),
        "object_rle": objects.rles.hand_over_runs(object_rows, each_object),
        "expression_text": objects.expressions.hand_over_runs(
            first[object_rows], counts[object_rows]
        ),
        "image_sha256": images.sha256_at(image_rows),
        "image_size": images.sizes_at(image_rows),
        "object_image": place[of_image[object_rows]],
        "object_split": objects.numbers("splits")[object_rows],
        "expression_object": np.repeat(num_objects, counts[object_rows]),
    }


def _labelled(
    names: StringColumn, config: LabelledConfig, wanted: Sequence[str] | None, *, trial: bool
) -> npt.NDArray[np.bool_]:
    """Choose among the annotated training images, shape (len(names),), bool."""
    if wanted is not None:
        # A limited run holds few of the images that a list names.
        return match_labelled(names, sorted(set(wanted).intersection(names)) if trial else wanted)
    if config.ratio is None or (trial and not len(names)):
        return np.zeros(len(names), dtype=np.bool_)
    ratio = max(config.ratio, 1 / len(names)) if trial else config.ratio
    return choose_labelled(names, ratio, config.seed)
