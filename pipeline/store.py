"""Shell: Zarr v3 stores, made by the driver, written one whole shard at a time.

A store is a group of arrays over the same rows. The driver makes all arrays; a worker opens them,
never touches metadata, and writes the rows of one shard, which no other task shares. Every chunk
carries a checksum. Ragged bytes are a `payload` array with one row per shard, so that they too are
files of one task; a column `NAME_offset` says where a row's bytes begin in payload `NAME`.
"""

import hashlib
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zarr
from zarr.codecs import ZstdCodec
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore

from pipeline.disk_errors import NO_SPACE
from pipeline.errors import StoreError
from pipeline.found_values import why
from pipeline.json_files import sync_folder
from pipeline.limited_files import LimitedStore
from pipeline.local_copies import files_below, scratch, upload
from pipeline.places import (
    Place,
    is_local,
    names_in,
    open_array_options,
    reaching,
    remove_tree,
)
from pipeline.store_links import refuse_links, refuse_links_above

_DAMAGE = (FileNotFoundError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError,
           RecursionError)  # fmt: skip
"""What zarr raises for metadata of another structure."""
GROUP = "zarr.json"
"""The group's metadata, relative to the store: without it there is no store."""
PAYLOAD_CHUNK_BYTES = 1 << 20  # 1 MiB
PAYLOAD_CAPACITY_BYTES = 1 << 40  # declared, not allocated: chunks that nobody writes do not exist
ZSTD_LEVEL = 3


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
    path: Place,
    specs: tuple[ArraySpec, ...],
    num_rows: int,
    shard_rows: int,
    attributes: dict[str, Any],
) -> None:
    """Make the store with all its arrays; whatever was there is removed first.

    Never seen half made: on a disk it is built under another name and renamed, in an object store
    the group's metadata, without which there is no store, comes last.

    Args:
        path: Folder of the Zarr group.
        specs: Its arrays.
        num_rows: Items, the length of every array but payloads.
        shard_rows: Items per shard, the unit that a task writes.
        attributes: JSON attributes of the group, for readers with plain zarr.
    """
    if not is_local(path):
        (path / GROUP).unlink(missing_ok=True)
        remove_tree(path)
        restore_metadata(path, specs, num_rows, shard_rows, attributes)
        return
    making = path.with_name(path.name + ".making")
    remove_tree(making)
    make_empty(making, specs, num_rows, shard_rows, attributes)
    remove_tree(path)
    making.rename(path)
    sync_folder(path.parent)


def restore_metadata(
    path: Place,
    specs: tuple[ArraySpec, ...],
    num_rows: int,
    shard_rows: int,
    attributes: dict[str, Any],
) -> None:
    """Write a store's zarr.json files anew, as `create_store` did, and leave its data alone."""
    refuse_links(path)
    with scratch() as folder:
        making = folder / path.name if not is_local(path) else path.with_name(f"{path.name}.making")
        remove_tree(making)
        make_empty(making, specs, num_rows, shard_rows, attributes)
        if not is_local(path):
            upload(making, path, [name for name in files_below(making) if name != GROUP])
            upload(making, path, [GROUP])
            return
        for file in metadata_hashes(making):
            (path / file).parent.mkdir(exist_ok=True)
            (making / file).replace(path / file)
        remove_tree(making)


def make_empty(
    path: Path,
    specs: tuple[ArraySpec, ...],
    num_rows: int,
    shard_rows: int,
    attributes: dict[str, Any],
) -> None:
    """Make a store on a disk, where nothing is yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    group = zarr.open_group(path, mode="w-", zarr_format=3, attributes=attributes)
    for spec in specs:
        _create_array(group, spec, num_rows, shard_rows)


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


def open_store(path: Place) -> zarr.Group:
    """Open a store for reading; its arrays are opened by `pipeline.zarr_limits.open_arrays`.

    Raises:
        StoreError: If there is none.
    """
    try:
        files = LimitedStore(sync(_files(path)), None)
        return zarr.open_group(files, mode="r", zarr_format=3)
    except _DAMAGE as error:
        raise StoreError(
            f"{path}: no readable Zarr group ({why(error)}); run 'inspect-shards verify {path}'"
        ) from error


async def _files(path: Place) -> LocalStore | FsspecStore:
    """Give a store's files as zarr reads them; its own event loop holds connections to objects."""
    if is_local(path):
        return await LocalStore.open(path, read_only=True, mode="r")
    name, options = open_array_options(path)
    return FsspecStore.from_url(name, storage_options=options, read_only=True)


@contextmanager
def space_needed(place: Place) -> Iterator[None]:
    """Turn a full disk, quota or file size limit, or an object store in trouble, into one line.

    Raises:
        StoreError: Names the place and what to do; also, before anything is done, if writing there
            would go through a link inside a store.
    """
    refuse_links_above(place, itself=True)
    try:
        with reaching(place):
            yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise _no_space(place, error) from error
    except StoreError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in NO_SPACE:
            raise _no_space(Path(tempfile.gettempdir()), cause) from error
        raise


def _no_space(place: Place, error: OSError) -> StoreError:
    return StoreError(
        f"{place}: cannot be written ({error.strerror}); nothing that is done is lost: free "
        f"some space and run the same command again"
    )


def metadata_hashes(path: Place) -> dict[str, str]:
    """Hash the zarr.json of a store's group and arrays, by path relative to the store."""
    names = [GROUP, *(f"{name}/zarr.json" for name in names_in(path) if name != GROUP)]
    hashes = {}
    for name in sorted(names):
        with suppress(FileNotFoundError, NotADirectoryError):
            hashes[name] = hashlib.sha256((path / name).read_bytes()).hexdigest()
    return hashes
