"""The manifest: every image, object and expression of a data set, as memory-mapped columns.

Images stand in the order of first appearance, by split (train, val, testA, testB, test); objects
follow their images and expressions their objects. Legend: I images, O objects, E expressions.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.columns import StringColumn, column_arrays
from pipeline.containment import check_inside
from pipeline.errors import ManifestError, StoreError
from pipeline.images import canvas_size
from pipeline.places import Place
from pipeline.segmentation import decode_rle, rescale_mask

FORMAT = "semires-manifest-2"
SPLITS = ("train", "val", "testA", "testB", "test")
Column = npt.NDArray[Any] | StringColumn

# Column -> dtype and trailing shape; StringColumn columns are not listed.
ARRAYS: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {
    "image_size": (np.int32, (2,)),
    "image_labelled": (np.bool_, ()),
    "object_image": (np.int32, ()),
    "object_split": (np.uint8, ()),
    "expression_object": (np.int32, ()),
}
_NAMES = ("image_id", "image_path", "image_sha256", "object_id", "object_category")
_LOOKED_FOR = 16
STRINGS = (*_NAMES, "object_rle", "expression_text")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Columns over images, objects and expressions; rows refer to each other by position."""

    image_root: Place
    """Folder that `image_path` is relative to."""
    image_id: StringColumn
    """(I,) the data set's own names; an image appears once."""
    image_path: StringColumn
    """(I,) file, relative to `image_root`, with forward slashes."""
    image_sha256: StringColumn
    """(I,) sha256 of the file's bytes as the data were prepared, hex."""
    image_size: npt.NDArray[np.int32]
    """(I, 2) upright original (H, W) in pixels."""
    image_labelled: npt.NDArray[np.bool_]
    """(I,) True: its truth may be used for training. False for val and test."""
    object_id: StringColumn
    """(O,) the data set's own names: ref_id, annotation id, or made from the line."""
    object_image: npt.NDArray[np.int32]
    """(O,) row of the image, never falling."""
    object_category: StringColumn
    """(O,) name of the category, "" if unknown."""
    object_split: npt.NDArray[np.uint8]
    """(O,) index into `SPLITS`."""
    object_rle: StringColumn
    """(O,) compressed COCO counts at the upright original size; empty = no truth known.

    Kept for unlabelled images too, to measure label quality: training must go by
    `image_labelled`, not by whether a truth is there.
    """
    expression_object: npt.NDArray[np.int32]
    """(E,) row of the object, never falling."""
    expression_text: StringColumn
    """(E,) the sentences."""
    fingerprint: str
    """sha256 of all columns; where the images lie does not enter."""
    links_into: tuple[Path, ...] = ()
    """Folders that links below `image_root` may lead into; they do not enter either."""

    def __post_init__(self) -> None:
        for name, (dtype, shape) in ARRAYS.items():
            array = getattr(self, name)
            if array.dtype != dtype or array.shape[1:] != shape:
                raise ManifestError(
                    f"expected column {name} as {np.dtype(dtype)} of rows {shape}, found "
                    f"{array.dtype} of shape {array.shape}"
                )
        for kind in ("image", "object", "expression"):
            names = [name for name in (*ARRAYS, *STRINGS) if name.startswith(f"{kind}_")]
            lengths = {name: len(getattr(self, name)) for name in names}
            if len(set(lengths.values())) > 1:
                raise ManifestError(f"expected {kind} columns of one length, found {lengths}")
        _check_rows("object_image", self.object_image, self.num_images)
        _check_rows("expression_object", self.expression_object, self.num_objects)
        if self.num_objects and int(self.object_split.max()) >= len(SPLITS):
            raise ManifestError(f"expected object_split below {len(SPLITS)}, found more")

    @property
    def num_images(self) -> int:
        """Images, I."""
        return len(self.image_id)

    @property
    def num_objects(self) -> int:
        """Objects, O."""
        return len(self.object_id)

    @property
    def num_expressions(self) -> int:
        """Expressions, E."""
        return len(self.expression_text)

    @property
    def expression_image(self) -> npt.NDArray[np.int32]:
        """Row of the image of every expression, shape (E,), int32, never falling."""
        return np.asarray(self.object_image[self.expression_object], dtype=np.int32)

    def labelled_images(self) -> npt.NDArray[np.int64]:
        """Give the rows of the images whose truth may be used for training, (n,), rising."""
        return np.flatnonzero(self.image_labelled)

    def expressions_of(self, split: str, labelled: bool | None = None) -> npt.NDArray[np.int64]:
        """Give the rows of the expressions of a split, in image order.

        Args:
            split: One of `SPLITS`.
            labelled: True or False keeps those whose image is or is not labelled; None keeps all.

        Returns:
            Rows, shape (n,), int64, rising; empty if there are none.

        Raises:
            ManifestError: If there is no such split.
        """
        chosen = self.object_split[self.expression_object] == _split_index(split)
        if labelled is not None:
            chosen &= self.image_labelled[self.expression_image] == labelled
        return np.asarray(np.flatnonzero(chosen), dtype=np.int64)

    def images_of(self, split: str) -> npt.NDArray[np.int64]:
        """Give the rows of images with an object in a split, shape (n,), int64, rising."""
        images = self.object_image[self.object_split == _split_index(split)]
        first_of_its_image = np.diff(images, prepend=-1) != 0  # objects follow their images
        return np.asarray(images[first_of_its_image], dtype=np.int64)

    def image_file(self, image: int | np.integer) -> Place:
        """Give the file of an image row.

        Raises:
            ItemError: If its name leads out of the image root, other than by a link into a folder
                of `links_into`.
        """
        name = self.image_path[image]
        check_inside(self.image_root, name, self.links_into)
        return self.image_root / name

    def require_images(self) -> None:
        """Check that there are images where they are looked for: a disk may not be mounted.

        Raises:
            StoreError: If none of some images is there; all would fail, and count as done.
        """
        root = self.image_root
        some = np.linspace(0, self.num_images - 1, min(self.num_images, _LOOKED_FOR), dtype=int)
        if self.num_images and not any((root / self.image_path[row]).exists() for row in some):
            raise StoreError(
                f"{root}: expected the images of the manifest, found none of {len(some)} that were "
                "looked for; mount the disk or put them back, and run the same command again"
            )

    def describe_expression(self, row: int) -> str:
        """Name an expression for messages: its image's file, and the sentence."""
        image = int(self.object_image[self.expression_object[row]])
        return f"{self.image_path[image]}: {self.expression_text[row]!r}"

    def size_of(self, image: int | np.integer) -> tuple[int, int]:
        """Give the upright original (H, W) of an image row, in pixels."""
        height, width = self.image_size[image].tolist()
        return height, width

    def truth(
        self, object_row: int | np.integer, canvas: int | None
    ) -> npt.NDArray[np.bool_] | None:
        """Give the annotated mask of an object at a canvas.

        Returns:
            Shape canvas_size((H, W), canvas), bool, C-contiguous; None if no truth is known.
        """
        counts = self.object_rle.bytes_at(object_row)
        if not counts:
            return None
        size = self.size_of(self.object_image[object_row])
        return rescale_mask(decode_rle(counts, size), canvas_size(size, canvas))


def images_fingerprint(manifest: Manifest, first: int | None = None) -> str:
    """Give the sha256 over paths and contents of the training images, in order.

    Args:
        manifest: Where they are listed.
        first: Only this many of them; None takes all.
    """
    digest = hashlib.sha256()
    for image in manifest.images_of("train")[:first]:
        line = (manifest.image_path[image], manifest.image_sha256[image])
        digest.update(repr(line).encode())
    return digest.hexdigest()


def manifest_fingerprint(columns: Mapping[str, Column]) -> str:
    """Give the sha256 of the columns of a manifest, by field name, as hex."""
    digest = hashlib.sha256(FORMAT.encode())
    for name, array in column_arrays({name: columns[name] for name in (*ARRAYS, *STRINGS)}):
        digest.update(f" {name} {array.dtype.str} {array.shape} ".encode())
        digest.update(array.data)
    return digest.hexdigest()


def _split_index(split: str) -> int:
    if split not in SPLITS:
        raise ManifestError(f"expected a split of {', '.join(SPLITS)}, found {split!r}")
    return SPLITS.index(split)


def _check_rows(name: str, rows: npt.NDArray[np.int32], limit: int) -> None:
    if len(rows) and (rows[0] < 0 or rows[-1] >= limit or (np.diff(rows) < 0).any()):
        raise ManifestError(f"expected {name} to rise from 0 to at most {limit - 1}, found else")
