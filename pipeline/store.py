"""Shell: Zarr v3 stores, made by the driver, written one whole shard at a time.

A store is a group of arrays over the same rows. The driver makes all arrays; a worker opens them,
never touches metadata, and writes the rows of one shard, which no other task shares. Every chunk
carries a checksum. Ragged bytes are a `payload` array with one row per shard, so that they too are
files of one task; a column `NAME_offset` says where a row's bytes begin in payload `NAME`.
"""

import errno
import hashlib
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import ZstdCodec

from pipeline.errors import StoreError

PAYLOAD_CHUNK_BYTES = 1 << 20  # 1 MiB
PAYLOAD_CAPACITY_BYTES = 1 << 40  # declared, not allocated: chunks that nobody writes do not exist
ZSTD_LEVEL = 3
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraySpec:
    """One array of a store.

    With `row_shape` the array holds one row of that shape per item; a large row is a chunk of its
    own (`chunk_rows` 1), scalars share one chunk per shard (`chunk_rows` None). Where `chunk_rows`
    does not divide a shard, their greatest common divisor is taken. A `payload` array
    is (num_shards, capacity) bytes.
    """

    name: str
    dtype: str
    row_shape: tuple[int, ...] = ()
    chunk_rows: int | None = None
    fill_value: int | float = 0
    payload: bool = False


def create_store(
    path: Path,
    specs: tuple[ArraySpec, ...],
    num_rows: int,
    shard_rows: int,
    attributes: dict[str, Any],
) -> None:
    """Make the store with all its arrays; whatever was there is removed first.

    Built under another name and renamed, so that a store is never seen half made.

    Args:
        path: Folder of the Zarr group.
        specs: Its arrays.
        num_rows: Items, the length of every array but payloads.
        shard_rows: Items per shard, the unit that a task writes.
        attributes: JSON attributes of the group, for readers with plain zarr.
    """
    making = _make_empty(path, specs, num_rows, shard_rows, attributes)
    if path.exists():
        shutil.rmtree(path)
    making.rename(path)


def restore_metadata(
    path: Path,
    specs: tuple[ArraySpec, ...],
    num_rows: int,
    shard_rows: int,
    attributes: dict[str, Any],
) -> None:
    """Write a store's zarr.json files anew, as `create_store` did, and leave its data alone."""
    making = _make_empty(path, specs, num_rows, shard_rows, attributes)
    for file in metadata_hashes(making):
        (path / file).parent.mkdir(exist_ok=True)
        (making / file).replace(path / file)
    shutil.rmtree(making)


def _make_empty(
    path: Path,
    specs: tuple[ArraySpec, ...],
    num_rows: int,
    shard_rows: int,
    attributes: dict[str, Any],
) -> Path:
    making = path.with_name(path.name + ".making")
    if making.exists():
        shutil.rmtree(making)
    making.parent.mkdir(parents=True, exist_ok=True)
    group = zarr.open_group(making, mode="w-", zarr_format=3, attributes=attributes)
    for spec in specs:
        _create_array(group, spec, num_rows, shard_rows)
    return making


def _create_array(group: zarr.Group, spec: ArraySpec, num_rows: int, shard_rows: int) -> None:
    num_shards = max(1, -(-num_rows // shard_rows))
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None = None
    if spec.payload:
        shape, chunks = (num_shards, PAYLOAD_CAPACITY_BYTES), (1, PAYLOAD_CHUNK_BYTES)
    else:
        shape = (num_rows, *spec.row_shape)
        chunks = (math.gcd(spec.chunk_rows or shard_rows, shard_rows), *spec.row_shape)
        if chunks[0] != shard_rows:
            shards = (shard_rows, *spec.row_shape)
    group.create_array(
        spec.name,
        shape=shape,
        dtype=spec.dtype,
        chunks=chunks,
        shards=shards,
        fill_value=spec.fill_value,
        # Zarr's default zstd has no checksum: flipped bits would be read as data.
        compressors=ZstdCodec(level=ZSTD_LEVEL, checksum=True),
    )


def open_store(path: Path) -> zarr.Group:
    """Open a store for reading.

    Raises:
        StoreError: If there is none.
    """
    try:
        return zarr.open_group(path, mode="r", zarr_format=3)
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise StoreError(
            f"{path}: no readable Zarr group ({' '.join(str(error).split())})"
        ) from error


@contextmanager
def space_needed(place: Path) -> Iterator[None]:
    """Turn a full disk, quota or file size limit into one line.

    Raises:
        StoreError: Names the place and what to do.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        raise StoreError(
            f"{place}: cannot be written ({error.strerror}); nothing that is done is lost: free "
            f"some space and run the same command again"
        ) from error


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


def shard_files(path: Path, specs: tuple[ArraySpec, ...], shard: int) -> list[Path]:
    """List the files that belong to one shard, existing or expected, in a fixed order."""
    files: list[Path] = []
    for spec in specs:
        folder = path / spec.name / "c" / str(shard)
        if spec.payload:
            files += sorted(folder.glob("[0-9]*"), key=lambda file: int(file.name))
        else:
            files.append(folder.joinpath(*["0"] * len(spec.row_shape)))
    return files


def delete_shard(path: Path, specs: tuple[ArraySpec, ...], shard: int) -> None:
    """Remove a shard's files, and what a killed writer left beside them.

    Needed before every write: zarr reads the old shard while it overwrites it, and fails if that
    is damaged.
    """
    for spec in specs:
        folder = path / spec.name / "c"
        if not folder.is_dir():
            continue
        for place in [folder / str(shard), *folder.glob(f"{shard}.*.partial")]:
            if place.is_dir():
                shutil.rmtree(place)
            else:
                place.unlink(missing_ok=True)


def write_shard(
    path: Path,
    specs: tuple[ArraySpec, ...],
    shard: int,
    rows: range,
    columns: dict[str, npt.NDArray[Any]],
) -> None:
    """Write all arrays of one shard, each in one piece.

    Safe to call from many processes for different shards. Writing the same values again is
    harmless, so tasks may be retried.

    Args:
        path: Store made by `create_store`.
        specs: Its arrays.
        shard: Number of the shard, from 0.
        rows: The item rows of this shard.
        columns: Per array (len(rows), *row_shape) values; a payload is one-dimensional bytes.

    Raises:
        StoreError: If a column is missing or is not the whole shard.
    """
    if columns.keys() != {spec.name for spec in specs}:
        raise StoreError(
            f"{path}: expected columns {sorted(spec.name for spec in specs)}, got {sorted(columns)}"
        )
    delete_shard(path, specs, shard)
    arrays = {spec.name: _open_for_writing(path, spec.name) for spec in specs}
    for spec in specs:
        # Filters of zarr before 3.3 store F-ordered arrays transposed.
        values = np.ascontiguousarray(columns[spec.name], dtype=spec.dtype)
        array = arrays[spec.name]
        if spec.payload:
            _write_payload(array, shard, values)
            continue
        if values.shape != (len(rows), *spec.row_shape):
            raise StoreError(
                f"{path}: {spec.name} shard {shard} holds {(len(rows), *spec.row_shape)}, "
                f"got {values.shape}"
            )
        array[rows.start : rows.stop] = values


def _open_for_writing(path: Path, name: str) -> zarr.Array[Any]:
    # A missing chunk must mean "not written", never "all equal to the fill value"; zarr does not
    # keep this setting with the array, and its global switch is shared by all threads.
    array = zarr.open_array(path / name, mode="r+", zarr_format=3)
    return array.with_config({"write_empty_chunks": True})


def metadata_hashes(path: Path) -> dict[str, str]:
    """Hash the zarr.json of a store's group and arrays, by path relative to the store."""
    files = sorted([path / "zarr.json", *path.glob("*/zarr.json")])
    return {
        file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if file.exists()
    }


def _write_payload(array: zarr.Array[Any], shard: int, values: npt.NDArray[Any]) -> None:
    """Pad to whole chunks, at least one, so that each chunk file is written once and whole."""
    num_chunks = max(1, -(-values.size // PAYLOAD_CHUNK_BYTES))
    padded = np.zeros((1, num_chunks * PAYLOAD_CHUNK_BYTES), np.uint8)
    padded[0, : values.size] = values
    array[shard : shard + 1, : padded.size] = padded


def sha256_of_shard(files: list[Path], root: Path) -> dict[str, dict[str, Any]]:
    """Hash a shard's files and force them to the disk.

    Returns:
        Per path relative to `root`: `bytes` and `sha256`.

    Raises:
        StoreError: If a file is missing.
    """
    entries: dict[str, dict[str, Any]] = {}
    for file in files:
        try:
            with file.open("rb") as handle:
                digest = hashlib.file_digest(handle, "sha256").hexdigest()
                os.fsync(handle.fileno())
        except OSError as error:
            raise StoreError(f"{file}: cannot be read back ({error.strerror})") from error
        name = file.relative_to(root).as_posix()
        entries[name] = {"bytes": file.stat().st_size, "sha256": digest}
    return entries
