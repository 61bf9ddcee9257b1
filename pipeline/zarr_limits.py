"""Refuse a Zarr store whose metadata asks for what no stage of ours would write.

zarr believes a `zarr.json`: what was never written reads as fill values, made at the size that is
declared, so that a kilobyte of JSON can ask for a terabyte. Nothing here reads a chunk; that what
is admitted is all that chunks can unpack to, is the work of `pipeline.bounded_arrays`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import zarr
from zarr.core.buffer import default_buffer_prototype

from pipeline.bounded_arrays import bounded
from pipeline.bounded_codecs import UNPACK
from pipeline.errors import StoreError
from pipeline.found_values import shown, why
from pipeline.store import PAYLOAD_CAPACITY_BYTES, PAYLOAD_CHUNK_BYTES, ArraySpec

MAX_CHUNK_BYTES = 1 << 30  # 1 GiB
"""A chunk, the least that zarr makes at once; ours are rows of a few MiB at most."""

MAX_ROW_BYTES = 1 << 30  # 1 GiB
"""A row of any array but a payload."""

MAX_ROWS = 1 << 30
"""Rows of a store, where nothing says how many there are; some columns are read whole."""

MAX_CHUNKS_PER_SHARD = 1 << 20
"""A shard's index is read whole, 16 bytes a chunk."""

MAX_CHUNKS_PER_ROW = 1 << 12
"""Reading a row touches each of them; a row of ours is one."""

_NO_FILE = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)

MAX_ARRAYS = 64

CODECS = ("bytes", "crc32c", "zstd", "gzip", "blosc", "transpose", "sharding_indexed")
"""Codecs of zarr's own that turn numbers into bytes and nothing else."""

MAX_CODECS = 8
"""Codecs in a row: each is gone through for every chunk."""

INDEX_CODECS = ({"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"})
"""What zarr writes the index of a shard with."""

ITEM_BYTES = {
    "bool": 1, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "float16": 2, "int32": 4,
    "uint32": 4, "float32": 4, "int64": 8, "uint64": 8, "float64": 8,
}  # fmt: skip
"""Types that a store may hold; text, bytes of any length and objects are none of them."""


def open_arrays(
    group: zarr.Group,
    where: str,
    specs: Sequence[ArraySpec] | None = None,
    num_rows: int | None = None,
) -> dict[str, zarr.Array[Any]]:
    """Open all arrays of a store that somebody else may have written.

    Args:
        group: The opened store.
        where: Its place, which begins the message of every error.
        specs: Its arrays, where they are known, as from `specs_of_plan`.
        num_rows: Its rows, where they are known.

    Returns:
        The arrays by name, sorted; for reading, as `pipeline.bounded_arrays.bounded` makes them.

    Raises:
        StoreError: If an array's metadata is damaged, or `check_metadata` refuses it.
    """
    try:
        found = dict(sorted(group.arrays(), key=lambda pair: pair[0]))
        documents = {name: document_of(array) for name, array in found.items()}
    # Damaged metadata raises anything, from KeyError to RecursionError.
    except Exception as error:
        if isinstance(error, OSError) and not isinstance(error, _NO_FILE):  # the way, not the file
            raise
        raise StoreError(
            f"{where}: expected Zarr arrays, found metadata that zarr cannot read "
            f"({type(error).__name__}: {why(error)}); run 'inspect-shards repair'"
        ) from error
    check_metadata(documents, where, specs, num_rows)
    return {name: bounded(array, name) for name, array in found.items()}


def document_of(array: zarr.Array[Any]) -> Any:
    """Give an array's `zarr.json` as zarr understood it, wherever it came from."""
    buffers = array.metadata.to_buffer_dict(default_buffer_prototype())
    return json.loads(buffers["zarr.json"].to_bytes())


def specs_of_plan(plan: Mapping[str, Any]) -> tuple[ArraySpec, ...]:
    """Give the arrays that a plan states, as `pipeline.records.Plan` wrote them.

    Raises:
        StoreError: If it states none.
    """
    try:
        entries = [{**entry, "row_shape": tuple(entry["row_shape"])} for entry in plan["arrays"]]
        return tuple(ArraySpec(**entry) for entry in entries)
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"expected arrays in the plan, found none ({why(error)})") from error


def check_metadata(
    documents: Mapping[str, Any],
    where: str,
    specs: Sequence[ArraySpec] | None = None,
    num_rows: int | None = None,
) -> None:
    """Check what the arrays of a store say of themselves, before a byte of them is read.

    Args:
        documents: The `zarr.json` of each array, by its name.
        where: Place of the store.
        specs: The arrays that it must have, of these types, rows and fill values; None admits any.
        num_rows: The rows that all but payloads must have; None admits any equal number.

    Raises:
        StoreError: Names the array, what it asks for, and the limit.
    """
    if len(documents) > MAX_ARRAYS:
        raise StoreError(f"{where}: expected at most {MAX_ARRAYS} arrays, found {len(documents)}")
    if specs is not None and documents.keys() != {spec.name for spec in specs}:
        names = ", ".join(sorted(spec.name for spec in specs))
        raise StoreError(f"{where}: expected arrays {names}, found {', '.join(sorted(documents))}")
    by_name = {spec.name: spec for spec in specs or ()}
    rows: dict[str, int] = {}
    for name, document in documents.items():
        try:
            layout = _Layout(document)
            layout.check()
            if name in by_name:
                layout.check_spec(by_name[name])
        except _RefusedError as error:
            raise StoreError(f"{where}: array {name}: {error}; make the store again") from error
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise StoreError(
                f"{where}: array {name}: expected the metadata of a Zarr array, found another "
                f"structure ({type(error).__name__}: {why(error)}); make the store again"
            ) from error
        if not layout.is_payload:
            rows[name] = layout.shape[0]
    _check_rows(rows, where, num_rows)


def _check_rows(rows: Mapping[str, int], where: str, num_rows: int | None) -> None:
    for name, found in rows.items():
        expected = next(iter(rows.values())) if num_rows is None else num_rows
        if found != expected or found > MAX_ROWS:
            wanted = f"{expected} rows" if found != expected else f"at most {MAX_ROWS} rows"
            raise StoreError(
                f"{where}: array {name}: expected {wanted}, found {found}; make the store again"
            )


class _RefusedError(Exception):
    """What is wrong with one array."""


class _Layout:
    """Sizes and types of one array, from its `zarr.json`."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.shape = _sides(document["shape"], "shape")
        self.data_type = document["data_type"]
        self.fill_value = document["fill_value"]
        if not self.shape:
            raise _RefusedError("expected rows, found an array without")
        if not isinstance(self.data_type, str) or self.data_type not in ITEM_BYTES:
            raise _RefusedError(f"expected plain numbers, found type {shown(self.data_type)}")
        grid = document["chunk_grid"]
        if grid["name"] != "regular":
            raise _RefusedError(f"expected a regular grid, found {shown(grid['name'])}")
        if document.get("storage_transformers"):
            raise _RefusedError("expected no storage transformers, found some")
        self.shard = self.chunk = _sides(grid["configuration"]["chunk_shape"], "chunk_shape")
        self._follow(document["codecs"], depth=0)

    def _follow(self, codecs: Any, depth: int) -> None:
        """Go through codecs, and those within a shard."""
        names = [codec if isinstance(codec, str) else codec["name"] for codec in codecs]
        for name in names:
            if name not in CODECS or depth > 1:
                raise _RefusedError(f"expected codecs of {', '.join(CODECS)}, found {shown(name)}")
        # How much comes out of a codec is known only where it is the one that packs.
        packing = [name for name in names if name in UNPACK or name == "sharding_indexed"]
        if len(packing) > 1 or len(names) > MAX_CODECS:
            raise _RefusedError(
                f"expected at most {MAX_CODECS} codecs, of which one packs, found {shown(names)}"
            )
        if "sharding_indexed" in names:
            inner = codecs[names.index("sharding_indexed")]["configuration"]
            self.chunk = _sides(inner["chunk_shape"], "chunk_shape")
            self._follow(inner["codecs"], depth + 1)
            if tuple(inner["index_codecs"]) != INDEX_CODECS:
                raise _RefusedError(
                    f"expected little-endian bytes and crc32c as index_codecs, found "
                    f"{shown(inner['index_codecs'])}"
                )

    @property
    def is_payload(self) -> bool:
        """Whether it is bytes of any length, one row a shard, declared but not allocated."""
        chunk = (1, PAYLOAD_CHUNK_BYTES)
        return self.data_type == "uint8" and self.shape[1:] == (PAYLOAD_CAPACITY_BYTES,) and (
            self.chunk == self.shard == chunk
        )  # fmt: skip

    def check(self) -> None:
        """Refuse what would take too much memory."""
        if not len(self.shape) == len(self.shard) == len(self.chunk) or not all(self.chunk):
            raise _RefusedError(
                f"expected chunks of as many sides as the array, found {shown(self.chunk)} in "
                f"{shown(self.shard)} of {shown(self.shape)}"
            )
        item = ITEM_BYTES[self.data_type]
        _check_bytes("chunks", math.prod(self.chunk) * item, MAX_CHUNK_BYTES)
        if not self.is_payload:
            _check_bytes("rows", math.prod(self.shape[1:]) * item, MAX_ROW_BYTES)
            pairs = zip(self.shape[1:], self.chunk[1:], strict=True)
            if (chunks := math.prod(-(-a // b) for a, b in pairs)) > MAX_CHUNKS_PER_ROW:
                raise _RefusedError(
                    f"expected at most {MAX_CHUNKS_PER_ROW} chunks a row, found {shown(chunks)}"
                )
        chunks = math.prod(-(-a // b) for a, b in zip(self.shard, self.chunk, strict=True))
        if chunks > MAX_CHUNKS_PER_SHARD:
            raise _RefusedError(
                f"expected at most {MAX_CHUNKS_PER_SHARD} chunks a shard, found {shown(chunks)}"
            )

    def check_spec(self, spec: ArraySpec) -> None:
        """Refuse what is not the array that the plan states."""
        row = (PAYLOAD_CAPACITY_BYTES,) if spec.payload else tuple(spec.row_shape)
        if self.data_type != spec.dtype or self.shape[1:] != row or spec.payload != self.is_payload:
            raise _RefusedError(
                f"expected {spec.dtype} in rows {shown(row)} as in the plan, found "
                f"{self.data_type} in rows {shown(self.shape[1:])}"
            )
        if self.fill_value != spec.fill_value:  # nan and "NaN" are unequal to any
            raise _RefusedError(
                f"expected fill value {spec.fill_value}, found {shown(self.fill_value)}"
            )


def _check_bytes(what: str, found: int, limit: int) -> None:
    if found > limit:
        raise _RefusedError(f"expected {what} of at most {limit} bytes, found {shown(found)}")


def _sides(value: Any, name: str) -> tuple[int, ...]:
    sides = tuple(value) if isinstance(value, list | tuple) else (None,)
    if not all(type(side) is int and side >= 0 for side in sides):
        raise _RefusedError(f"expected {name} as integers from 0, found {shown(value)}")
    return sides
