"""The manifest: every image, object and expression of a data set, as memory-mapped columns.

Images stand in the order of first appearance, by split (train, val, testA, testB, test); objects
follow their images and expressions their objects. Legend: I images, O objects, E expressions.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.columns import StringColumn as StringColumn
from pipeline.columns import (
    column_arrays,
    file_sha256,
    open_array,
    open_strings,
    portable_path,
    resolved_path,
    write_columns,
)
from pipeline.containment import check_inside
from pipeline.errors import ManifestError, StoreError
from pipeline.found_values import shown
from pipeline.images import canvas_size
from pipeline.local_copies import files_below, local_copy, scratch, upload
from pipeline.places import Place, is_local, is_on_the_way, read_bytes, remove_tree
from pipeline.records import atomic_write, sync_folder
from pipeline.segmentation import decode_rle, rescale_mask

FORMAT = "semires-manifest-2"
SPLITS = ("train", "val", "testA", "testB", "test")
DESCRIPTION = "manifest.json"
_PARTS = {"fingerprint": str, "image_root": str, "counts": dict, "files": dict}
Column = npt.NDArray[Any] | StringColumn

# Column -> dtype and trailing shape; StringColumn columns are not listed.
_ARRAYS: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {
    "image_size": (np.int32, (2,)),
    "image_labelled": (np.bool_, ()),
    "object_image": (np.int32, ()),
    "object_split": (np.uint8, ()),
    "expression_object": (np.int32, ()),
}
_NAMES = ("image_id", "image_path", "image_sha256", "object_id", "object_category")
_STRINGS = (*_NAMES, "object_rle", "expression_text")


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

    def __post_init__(self) -> None:
        for name, (dtype, shape) in _ARRAYS.items():
            array = getattr(self, name)
            if array.dtype != dtype or array.shape[1:] != shape:
                raise ManifestError(
                    f"expected column {name} as {np.dtype(dtype)} of rows {shape}, found "
                    f"{array.dtype} of shape {array.shape}"
                )
        for kind in ("image", "object", "expression"):
            names = [name for name in (*_ARRAYS, *_STRINGS) if name.startswith(f"{kind}_")]
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
            ItemError: If its name leads out of the image root.
        """
        name = self.image_path[image]
        check_inside(self.image_root, name)
        return self.image_root / name

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
    for name, array in column_arrays({name: columns[name] for name in (*_ARRAYS, *_STRINGS)}):
        digest.update(f" {name} {array.dtype.str} {array.shape} ".encode())
        digest.update(array.data)
    return digest.hexdigest()


def write_manifest(
    folder: Place,
    manifest: Manifest,
    *,
    description: Mapping[str, Any],
    extra: Mapping[str, bytes] | None = None,
) -> None:
    """Write a manifest in one step: under another name first, then renamed or sent.

    The same manifest and description give the same bytes.

    Args:
        folder: Target; must not exist.
        manifest: What to write.
        description: JSON values kept in manifest.json (config, inputs, counts of failures).
        extra: Further files of the folder, name to content.

    Raises:
        ManifestError: If `folder` exists.
    """
    if folder.exists():
        raise ManifestError(f"expected no {folder} yet, found one; choose another run directory")
    with making_manifest(folder, manifest, description=description, extra=extra) as making:
        place_manifest(making, folder)


@contextmanager
def making_manifest(
    folder: Place,
    manifest: Manifest,
    *,
    description: Mapping[str, Any],
    extra: Mapping[str, bytes] | None = None,
) -> Iterator[Path]:
    """Write a manifest that belongs at `folder` elsewhere; one that is there is not touched.

    Takes what `write_manifest` takes.

    Yields:
        The folder written, for `place_manifest`: beside `folder`, or a scratch folder where that
        is in an object store.
    """
    with scratch() as aside:
        making = folder.with_name(folder.name + ".making") if is_local(folder) else aside / "made"
        remove_tree(making)  # left by a run that was killed
        making.mkdir(parents=True)
        hashes = write_columns(making, _columns(manifest))
        for name, content in (extra or {}).items():
            atomic_write(making / name, content)
            hashes[name] = file_sha256(making / name)
        document = {
            **description,
            "format": FORMAT,
            "fingerprint": manifest.fingerprint,
            "image_root": portable_path(manifest.image_root, folder),
            "counts": _counts(manifest),
            "files": hashes,
        }
        text = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        atomic_write(making / DESCRIPTION, text.encode())
        yield making


def place_manifest(making: Path, folder: Place) -> None:
    """Put what `making_manifest` wrote in its place; a manifest that is there is deleted."""
    (folder / DESCRIPTION).unlink(missing_ok=True)  # first, for without it nothing is proven
    remove_tree(folder)
    if not is_local(folder):
        upload(making, folder, [name for name in files_below(making) if name != DESCRIPTION])
        upload(making, folder, [DESCRIPTION])
        return
    making.rename(folder)
    sync_folder(folder.parent)


def load_manifest(folder: Place, *, verify: bool = False) -> Manifest:
    """Open a manifest; columns are memory-mapped, so that this is quick at any size.

    Those of an object store are copied once to this machine.

    Args:
        folder: What `write_manifest` wrote.
        verify: Also compare every file with its recorded sha256.

    Raises:
        ManifestError: If it is missing, of another format, or its parts do not fit together.
    """
    document = read_description(folder)
    hashes: dict[str, str] = document["files"]
    for name, recorded in hashes.items() if verify else ():
        if _sha256_or_none(folder / name) != recorded:
            raise ManifestError(f"{folder / name} is missing or damaged; prepare the data again")
    try:
        manifest = _open(folder, document, lambda name: local_copy(folder / name, hashes[name]))
    except (ManifestError, StoreError) as error:
        raise ManifestError(f"{folder}: {error}; prepare the data again") from error
    except (OSError, ValueError, EOFError, KeyError) as error:
        if isinstance(error, OSError) and is_on_the_way(folder, error):
            raise
        raise ManifestError(
            f"{folder}: a column is missing or damaged ({error}); prepare the data again"
        ) from error
    if _counts(manifest) != document["counts"]:
        raise ManifestError(
            f"{folder}: expected {shown(document['counts'])} rows, found {_counts(manifest)}"
        )
    return manifest


def _sha256_or_none(path: Place) -> str | None:
    try:
        return file_sha256(path)
    except OSError as error:
        if is_on_the_way(path, error):
            raise
        return None


def _open(folder: Place, document: Mapping[str, Any], file_of: Callable[[str], Path]) -> Manifest:
    columns: dict[str, Any] = {
        **{name: open_array(file_of(f"{name}.npy")) for name in _ARRAYS},
        **{name: open_strings(file_of, name) for name in _STRINGS},
    }
    root = resolved_path(document["image_root"], folder)
    return Manifest(image_root=root, fingerprint=document["fingerprint"], **columns)


def read_description(folder: Place) -> dict[str, Any]:
    """Read manifest.json of a manifest folder.

    Raises:
        ManifestError: If it is missing, not JSON, or of another format.
    """
    path = folder / DESCRIPTION
    try:
        document = json.loads(read_bytes(path))
    except FileNotFoundError as error:
        raise ManifestError(f"expected {path}, found none; run prepare-data first") from error
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, OSError) and is_on_the_way(path, error):
            raise
        raise ManifestError(f"{path} is damaged ({error}); delete {folder} and prepare") from error
    found = document.get("format") if isinstance(document, dict) else None
    if found != FORMAT:
        raise ManifestError(f"expected format {FORMAT!r} in {path}, found {shown(found)}")
    if missing := {"fingerprint", "image_root", "counts", "files"} - set(document):
        raise ManifestError(f"{path} lacks {sorted(missing)}; delete {folder} and prepare again")
    for key, kind in _PARTS.items():
        if not isinstance(document.get(key), kind):
            raise ManifestError(
                f"expected {key} as {kind.__name__} in {path}, found {shown(document.get(key))}; "
                f"delete {folder} and prepare again"
            )
    return dict(document)


def _columns(manifest: Manifest) -> dict[str, Column]:
    return {name: getattr(manifest, name) for name in (*_ARRAYS, *_STRINGS)}


def _counts(manifest: Manifest) -> dict[str, int]:
    return {
        "images": manifest.num_images,
        "objects": manifest.num_objects,
        "expressions": manifest.num_expressions,
    }


def _split_index(split: str) -> int:
    if split not in SPLITS:
        raise ManifestError(f"expected a split of {', '.join(SPLITS)}, found {split!r}")
    return SPLITS.index(split)


def _check_rows(name: str, rows: npt.NDArray[np.int32], limit: int) -> None:
    if len(rows) and (rows[0] < 0 or rows[-1] >= limit or (np.diff(rows) < 0).any()):
        raise ManifestError(f"expected {name} to rise from 0 to at most {limit - 1}, found else")
