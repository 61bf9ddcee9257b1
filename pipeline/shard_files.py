"""Shell: the files of one shard: written whole, hashed, listed, deleted.

In an object store the same files are objects: a shard is written to a scratch folder, hashed there
and sent, so that its bytes are those of a disk's.
"""

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import zarr
from upath import UPath

from pipeline.errors import StoreError
from pipeline.json_files import sync_folder
from pipeline.local_copies import download, scratch, upload
from pipeline.places import (
    Place,
    delete,
    is_local,
    names_in,
    read_bytes,
    reason_of,
    relative_name,
    remove_tree,
)
from pipeline.store import PAYLOAD_CHUNK_BYTES, ArraySpec
from pipeline.store_links import refuse_links

_LEFTOVER = re.compile(r"(\d+)\.[^/]*\.partial")
"""What zarr writes a chunk as, before it has its name."""


def join_columns(
    specs: tuple[ArraySpec, ...], pieces: Sequence[dict[str, npt.NDArray[Any]]]
) -> dict[str, npt.NDArray[Any]]:
    """Put columns of consecutive rows together as those of one shard.

    Args:
        specs: The store's arrays.
        pieces: Columns of one run of rows each, in order, as `write_shard` takes them; at least
            one.
    """
    joined = {spec.name: np.concatenate([piece[spec.name] for piece in pieces]) for spec in specs}
    for spec in specs:
        offset = f"{spec.name}_offset"
        if spec.payload and offset in joined:
            lengths = [piece[spec.name].size for piece in pieces]
            starts = np.cumsum([0, *lengths[:-1]])
            rows = [len(piece[offset]) for piece in pieces]
            joined[offset] = joined[offset] + np.repeat(starts, rows)
    return joined


def shard_files(path: Place, specs: tuple[ArraySpec, ...], shard: int) -> list[Place]:
    """List the files that belong to one shard, existing or expected, in a fixed order."""
    files: list[Place] = []
    for spec in specs:
        folder = path / spec.name / "c" / str(shard)
        if spec.payload:
            numbers = sorted(int(name) for name in names_in(folder) if name.isdigit())
            files += [folder / str(number) for number in numbers]
        else:
            files.append(folder.joinpath(*["0"] * len(spec.row_shape)))
    return files


def delete_shard(path: Place, specs: tuple[ArraySpec, ...], shard: int) -> None:
    """Remove a shard's files; takes no longer where there are a million others.

    Needed before every write on a disk: zarr reads the old shard while it overwrites it, and fails
    if that is damaged. Of links among them the links are removed, never what they lead to.

    Raises:
        StoreError: If a folder of the store is a link.
    """
    refuse_links(path)
    for spec in specs:
        _remove(path / spec.name / "c" / str(shard))


def delete_leftovers(
    path: Place, specs: tuple[ArraySpec, ...], chosen: Callable[[int], bool]
) -> None:
    """Remove the halves of files that killed writers left beside the shards of a store.

    Lists the folder of every array once, so it is for a whole stage and not for every shard.

    Args:
        path: The Zarr group; in an object store, where nothing is written by halves, none is.
        specs: Its arrays.
        chosen: Tells of a shard whether what is left of it may go.

    Raises:
        StoreError: If there are any, and a folder of the store is a link.
    """
    if not is_local(path):
        return
    for spec in specs:
        folder = path / spec.name / "c"
        found = ((_LEFTOVER.fullmatch(name), name) for name in names_in(folder))
        left = [folder / name for match, name in found if match and chosen(int(match[1]))]
        if left:
            refuse_links(path)
        for leftover in left:
            _remove(leftover)


def _remove(where: Place) -> None:
    """Delete a file, a link or a folder, if there is one."""
    if is_local(where) and not where.is_dir():
        where.unlink(missing_ok=True)
    else:
        remove_tree(where)


def write_shard(
    path: Place,
    specs: tuple[ArraySpec, ...],
    shard: int,
    rows: range,
    columns: dict[str, npt.NDArray[Any]],
) -> dict[str, dict[str, Any]]:
    """Write all arrays of one shard, each in one piece, and hash what was written.

    Safe to call from many processes for different shards. Writing the same values again is
    harmless, so tasks may be retried.

    Args:
        path: Store made by `create_store`.
        specs: Its arrays.
        shard: Number of the shard, from 0.
        rows: The item rows of this shard.
        columns: Per array (len(rows), *row_shape) values; a payload is one-dimensional bytes.

    Returns:
        Per file of the shard, relative to the store: `bytes` and `sha256`, as `sha256_of_shard`.

    Raises:
        StoreError: If a column is missing or is not the whole shard.
    """
    if columns.keys() != {spec.name for spec in specs}:
        raise StoreError(
            f"{path}: expected columns {sorted(spec.name for spec in specs)}, got {sorted(columns)}"
        )
    for spec in specs:
        shape = (len(rows), *spec.row_shape)
        if not spec.payload and columns[spec.name].shape != shape:
            raise StoreError(
                f"{path}: {spec.name} shard {shard} holds {shape}, got {columns[spec.name].shape}"
            )
    if is_local(path):
        delete_shard(path, specs, shard)
        _write_arrays(path, specs, shard, rows, columns)
        return sha256_of_shard(shard_files(path, specs, shard), path)
    with scratch() as folder:
        download(path, [f"{spec.name}/zarr.json" for spec in specs], folder)
        _write_arrays(folder, specs, shard, rows, columns)
        entries = sha256_of_shard(shard_files(folder, specs, shard), folder, force=False)
        upload(folder, path, list(entries))
    for spec in specs:
        if spec.payload:  # chunks of a longer one
            for chunk in shard_files(path, (spec,), shard):
                if relative_name(chunk, path) not in entries:
                    delete(chunk)
    return entries


def _write_arrays(
    path: Path,
    specs: tuple[ArraySpec, ...],
    shard: int,
    rows: range,
    columns: dict[str, npt.NDArray[Any]],
) -> None:
    arrays = {spec.name: _open_for_writing(path, spec.name) for spec in specs}
    for spec in specs:
        # Filters of zarr before 3.3 store F-ordered arrays transposed.
        values = np.ascontiguousarray(columns[spec.name], dtype=spec.dtype)
        if spec.payload:
            _write_payload(arrays[spec.name], shard, values)
        else:
            arrays[spec.name][rows.start : rows.stop] = values


def _open_for_writing(path: Path, name: str) -> zarr.Array[Any]:
    # A missing chunk must mean "not written", never "all equal to the fill value"; zarr does not
    # keep this setting with the array, and its global switch is shared by all threads.
    array = zarr.open_array(path / name, mode="r+", zarr_format=3)
    return array.with_config({"write_empty_chunks": True})


def _write_payload(array: zarr.Array[Any], shard: int, values: npt.NDArray[Any]) -> None:
    """Pad to whole chunks, at least one, so that each chunk file is written once and whole."""
    num_chunks = max(1, -(-values.size // PAYLOAD_CHUNK_BYTES))
    padded = np.zeros((1, num_chunks * PAYLOAD_CHUNK_BYTES), np.uint8)
    padded[0, : values.size] = values
    array[shard : shard + 1, : padded.size] = padded


def sha256_of_shard(
    files: Sequence[Place], root: Place, *, force: bool = True
) -> dict[str, dict[str, Any]]:
    """Hash a shard's files and, on a disk, force them to it, and their names in all folders.

    Args:
        files: Of the shard.
        root: The Zarr group.
        force: Whether to force them; it takes milliseconds, hashing a small file microseconds.

    Returns:
        Per path relative to `root`: `bytes` and `sha256`.

    Raises:
        StoreError: If a file is missing.
    """
    if not is_local(root):
        return _sha256_of_objects([relative_name(file, root) for file in files], root)
    entries: dict[str, dict[str, Any]] = {}
    for file in files:
        try:
            with file.open("rb") as handle:
                digest = hashlib.file_digest(cast("Any", handle), "sha256").hexdigest()
                length = handle.tell()
                if force:
                    os.fsync(handle.fileno())
        except OSError as error:
            raise StoreError(f"{file}: cannot be read back ({reason_of(error)})") from error
        entries[relative_name(file, root)] = {"bytes": length, "sha256": digest}
    if force:
        names = {folder for name in entries for folder in PurePosixPath(name).parents}
        for name in sorted(names, reverse=True):
            sync_folder(root / name)
    return entries


def _sha256_of_objects(names: Sequence[str], root: UPath) -> dict[str, dict[str, Any]]:
    """Hash a shard's objects, all fetched at once: it is the waiting that takes the time."""
    paths = [f"{root.path}/{name}" for name in names]
    # Whole, as ranges: without them s3fs asks for each size first.
    found = root.fs.cat_ranges(paths, [0] * len(paths), [None] * len(paths))
    entries: dict[str, dict[str, Any]] = {}
    for name, content in zip(names, found, strict=True):
        if isinstance(content, FileNotFoundError):
            raise StoreError(f"{root / name}: cannot be read back ({reason_of(content)})")
        if isinstance(content, Exception):  # an empty object has no ranges; trouble raises again
            content = read_bytes(root / name)
        entries[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return entries
