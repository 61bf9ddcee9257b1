"""Which training images are labelled, and that none of them leaks. Core: no file is read.

The rule is that of the released code (SemiRES `split_dataset_select.py`, which follows
RefTeacher's `pick_part_dataset`): floor(ratio * images) ids drawn by `random.sample` under
`random.seed(0)` from the training images in the order of first appearance.
"""

import math
import random
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.columns import StringColumn
from pipeline.errors import ConfigError, ManifestError

Names = Sequence[str] | StringColumn
_SHOWN = 5


def choose_labelled(image_ids: Names, ratio: float, seed: int = 0) -> npt.NDArray[np.bool_]:
    """Draw the labelled images by the released rule.

    Departs from the released code in one place: its own generator is used, seeded alike, so that
    the global one stays as it was.

    Args:
        image_ids: Training images in the order of first appearance, each once.
        ratio: Share to label, in (0, 1].
        seed: Seed of the draw; the released splits use 0.

    Returns:
        True for labelled, shape (len(image_ids),), bool.

    Raises:
        ConfigError: If the ratio gives no image, or there is none to choose from.
        ManifestError: If an id stands there twice.
    """
    count = len(image_ids)
    if again := sum(times - 1 for times in _repeated(image_ids).values()):
        raise ManifestError(f"expected every image id once, found {again} again")
    if not count:
        raise ConfigError(
            "data.labelled.ratio: expected training images with the masks of all their objects, "
            "found none; give some of them masks"
        )
    picked = math.floor(ratio * count)
    if picked == 0:
        smallest = math.ceil(1e6 / count) / 1e6
        raise ConfigError(
            f"data.labelled.ratio: {ratio:g} of {count} annotated training images is no image; "
            f"the smallest ratio here is {smallest:g}"
        )
    labelled = np.zeros(count, dtype=np.bool_)
    # Positions instead of ids: sample draws positions anyway. Reproducible, not for secrets.
    labelled[random.Random(seed).sample(range(count), picked)] = True
    return labelled


def match_labelled(image_ids: Names, wanted: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Mark the images that a list names.

    Args:
        image_ids: Images that may be labelled.
        wanted: Ids to label.

    Returns:
        True for labelled, shape (len(image_ids),), bool.

    Raises:
        ManifestError: If an id is not among the images.
    """
    missing = sorted(set(wanted).difference(image_ids))
    if missing:
        raise ManifestError(
            f"expected all {len(set(wanted))} labelled ids among {len(image_ids)} annotated "
            f"training images, found {len(missing)} that are not ({_some(missing)}); "
            "take them off the list or repair their images and masks"
        )
    chosen = set(wanted)
    return np.fromiter((name in chosen for name in image_ids), np.bool_, len(image_ids))


def annotated_images(
    object_image: npt.NDArray[np.int32],
    object_split: npt.NDArray[np.uint8],
    has_truth: npt.NDArray[np.bool_],
    num_images: int,
) -> npt.NDArray[np.bool_]:
    """Mark the images that may be labelled: in train, and all of whose objects have a truth.

    Args:
        object_image: Image row of every object, shape (O,), int32.
        object_split: Split of every object, shape (O,), uint8; 0 is train.
        has_truth: Whether an object has a mask, shape (O,), bool.
        num_images: I.

    Returns:
        Shape (I,), bool.
    """
    annotated = np.zeros(num_images, dtype=np.bool_)
    annotated[object_image[object_split == 0]] = True
    annotated[object_image[~has_truth]] = False
    return annotated


def leaking_images(
    object_image: npt.NDArray[np.integer], object_split: npt.NDArray[np.integer], num_images: int
) -> npt.NDArray[np.bool_]:
    """Mark the images with objects both in train and in another split.

    Args:
        object_image: Image row of every object, shape (O,), integers.
        object_split: Split of every object, shape (O,), integers; 0 is train.
        num_images: I.

    Returns:
        Shape (I,), bool.
    """
    in_train = np.zeros(num_images, dtype=np.bool_)
    held_out = np.zeros(num_images, dtype=np.bool_)
    in_train[object_image[object_split == 0]] = True
    held_out[object_image[object_split != 0]] = True
    return np.asarray(in_train & held_out, dtype=np.bool_)


def check_leaks(
    *,
    image_ids: Names,
    image_labelled: npt.NDArray[np.bool_],
    object_image: npt.NDArray[np.int32],
    object_split: npt.NDArray[np.uint8],
) -> None:
    """Refuse a manifest in which the truth of one part reaches another.

    Args:
        image_ids: (I,) ids; one that stands there twice could be labelled and unlabelled.
        image_labelled: (I,) bool.
        object_image: (O,) int32, image row of every object.
        object_split: (O,) uint8, split of every object; 0 is train.

    Raises:
        ManifestError: If an image stands there twice, is in train and in another split, or is
            labelled without being in train; names ids and counts.
    """
    if twice := sorted(_repeated(image_ids)):
        raise ManifestError(f"expected every image once, found {len(twice)} twice ({_some(twice)})")
    leaking = leaking_images(object_image, object_split, len(image_ids))
    if leaking.any():
        raise ManifestError(
            f"expected no training image in another split, found {int(leaking.sum())} in both "
            f"({_marked(image_ids, leaking)}); set data.drop_leaking to true to leave out "
            "their training objects"
        )
    in_train = np.zeros(len(image_ids), dtype=np.bool_)
    in_train[object_image[object_split == 0]] = True
    outside = image_labelled & ~in_train
    if outside.any():
        raise ManifestError(
            f"expected labelled images in train only, found {int(outside.sum())} elsewhere "
            f"({_marked(image_ids, outside)})"
        )


def _repeated(names: Names) -> Counter[str]:
    """Give the names that stand there more than once, and how often.

    A set of all names would take 100 bytes each and more: 8 of each are compared first, and then
    the names of which those are alike.
    """
    hashes = np.fromiter(map(hash, names), np.int64, len(names))
    values, times = np.unique(hashes, return_counts=True)
    alike = np.flatnonzero(np.isin(hashes, values[times > 1]))
    counted = Counter(names[row] for row in alike.tolist())
    return Counter({name: count for name, count in counted.items() if count > 1})


def _marked(names: Names, mask: npt.NDArray[np.bool_]) -> str:
    """Name a few of those that are marked."""
    return _some([names[row] for row in np.flatnonzero(mask)[: _SHOWN + 1].tolist()])


def _some(names: Sequence[str]) -> str:
    """Name a few of many."""
    more = ", ..." if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
