"""What has been read of a data set so far, as columns that grow.

No Python object is kept per item: an image with an object and five sentences would take 2.8 kB.
"""

from array import array
from binascii import hexlify
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.columns import StringColumn
from pipeline.growing_strings import DistinctStrings, GrowingStrings
from pipeline.images import ImageFacts

UNREAD, USABLE, UNUSABLE = range(3)
"""States of an image file."""

_DIGEST_BYTES = 32
_EMPTY = bytes(_DIGEST_BYTES)
_NO_SIZES = (0, 0, 0, 0)


def _integers() -> "array[int]":
    return array("i")


@dataclass(slots=True)
class ImageRows:
    """Every image file that an object names, once each, in the order in which they are named."""

    paths: DistinctStrings = field(default_factory=DistinctStrings)
    """Relative to the image root."""
    ids: GrowingStrings = field(default_factory=GrowingStrings)
    """Names in the data set."""
    states: bytearray = field(default_factory=bytearray)
    """`UNREAD`, `USABLE` or `UNUSABLE`."""
    sha256: bytearray = field(default_factory=bytearray)
    """32 bytes a row; zeros unless usable."""
    sizes: "array[int]" = field(default_factory=_integers)
    """Four a row: (H, W) upright, (H, W) as stored, pixels; zeros unless usable."""
    kept_in: bytearray = field(default_factory=bytearray)
    """Bit i: an object of split i on the image is kept."""

    def __len__(self) -> int:
        return len(self.states)

    def row_of(self, path: str, image_id: str) -> int:
        """Give the row of an image; one that is named for the first time gets one, and this id."""
        row = self.paths.row_of(path)
        if row is not None:
            return row
        self.paths.append(path)
        self.ids.append(image_id)
        self.states.append(UNREAD)
        self.sha256 += _EMPTY
        self.sizes.extend(_NO_SIZES)
        self.kept_in.append(0)
        return len(self) - 1

    def put(self, row: int, facts: ImageFacts, sha256: str) -> None:
        """Note what was read of a usable image file; `sha256` is hex."""
        self.states[row] = USABLE
        self.sizes[4 * row : 4 * row + 4] = array("i", (*facts.size, *facts.raw_size))
        self.sha256[_DIGEST_BYTES * row : _DIGEST_BYTES * (row + 1)] = bytes.fromhex(sha256)

    def size_of(self, row: int) -> tuple[int, int]:
        """Give the upright (H, W) of a usable image, pixels."""
        return self.sizes[4 * row], self.sizes[4 * row + 1]

    def raw_size_of(self, row: int) -> tuple[int, int]:
        """Give the (H, W) of a usable image as stored, before EXIF orientation, pixels."""
        return self.sizes[4 * row + 2], self.sizes[4 * row + 3]

    def sizes_at(self, rows: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
        """Give the upright (H, W) of some images, shape (len(rows), 2), int32."""
        return np.frombuffer(self.sizes, np.int32).reshape(-1, 4)[rows, :2]

    def sha256_at(self, rows: npt.NDArray[np.integer]) -> StringColumn:
        """Give the sha256 of some images as hex, a column of len(rows)."""
        digests = np.frombuffer(self.sha256, np.uint8).reshape(-1, _DIGEST_BYTES)[rows]
        hexes = np.frombuffer(hexlify(digests.data), np.uint8)
        offsets = np.arange(len(rows) + 1, dtype=np.int64) * (2 * _DIGEST_BYTES)
        return StringColumn(hexes, offsets)


@dataclass(slots=True)
class ObjectRows:
    """Every object that passed all checks, in the order of the annotations."""

    ids: DistinctStrings = field(default_factory=DistinctStrings)
    """Names in the data set."""
    images: "array[int]" = field(default_factory=_integers)
    """Rows of `ImageRows`."""
    splits: bytearray = field(default_factory=bytearray)
    """Positions in `SPLITS`."""
    categories: GrowingStrings = field(default_factory=GrowingStrings)
    """Names of their categories, "" if unknown."""
    rles: GrowingStrings = field(default_factory=GrowingStrings)
    """Compressed COCO counts at the upright size of the image; empty = no truth known."""
    num_expressions: "array[int]" = field(default_factory=_integers)
    """At least 1."""
    expressions: GrowingStrings = field(default_factory=GrowingStrings)
    """Those of the first object, of the second, and so on; none is empty."""

    def __len__(self) -> int:
        return len(self.ids)

    def append(
        self,
        object_id: str,
        *,
        image: int,
        split: int,
        category: str,
        rle: bytes,
        expressions: Sequence[str],
    ) -> None:
        """Add an object.

        Raises:
            ValueError: If there is one of that id.
        """
        self.ids.append(object_id)
        self.images.append(image)
        self.splits.append(split)
        self.categories.append(category)
        self.rles.append(rle)
        self.num_expressions.append(len(expressions))
        for text in expressions:
            self.expressions.append(text)

    def numbers(
        self, name: Literal["images", "splits", "num_expressions"]
    ) -> npt.NDArray[np.integer]:
        """Give a column of numbers, shape (O,), int32 or, of splits, uint8: in this memory."""
        return np.frombuffer(getattr(self, name), np.uint8 if name == "splits" else np.int32)
