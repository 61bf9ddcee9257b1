"""Shell: a store's files read by zarr, each no longer than it may be.

zarr reads a file whole, however long it is: a sparse one of a terabyte takes a few bytes on a disk.
"""

import os
import stat
from collections.abc import AsyncIterator, Iterable

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore

METADATA = "zarr.json"
MAX_METADATA_BYTES = 1 << 22  # 4 MiB
"""A zarr.json; ours are a few KiB."""


class LimitedStore(Store):
    """Files of another store, for reading; what is longer than a limit is not read.

    Made of `Store` itself: a way to read that a later zarr adds goes through `get` as well, or is
    not there.
    """

    def __init__(self, inner: Store, limit_bytes: int | None) -> None:
        """Limit the files of a store.

        Args:
            inner: The store.
            limit_bytes: Of any file but `zarr.json`, which may have `MAX_METADATA_BYTES`; None
                leaves them as they are.
        """
        super().__init__(read_only=True)
        self.inner = inner
        self.limit_bytes = limit_bytes

    async def _open(self) -> None:
        await self.inner._ensure_open()
        await super()._open()

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read a file or a part of it; None if there is none.

        Raises:
            ValueError: If it is empty or too long, or ends before the part does.
        """
        is_metadata = key.rsplit("/", 1)[-1] == METADATA
        limit = MAX_METADATA_BYTES if is_metadata else self.limit_bytes
        if limit is None:
            return await self.inner.get(key, prototype, byte_range)
        if isinstance(byte_range, RangeByteRequest):
            _require(key, byte_range.end - byte_range.start, limit)
        if isinstance(self.inner, LocalStore):
            length = _length_of(self.inner, key)
            if length is None:
                return None
            _require(key, length, limit)
            asked = byte_range
        else:  # in one request: what is longer by a byte is too long
            asked = _at_most(byte_range, limit + 1)
        found = await self.inner.get(key, prototype, asked)
        if found is None:
            return None
        if not isinstance(byte_range, RangeByteRequest):
            _require(key, len(found), limit)
        elif len(found) != byte_range.end - byte_range.start:
            raise ValueError(f"{key} ends before one of its chunks does")
        return found

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Read several files or parts, as `get`."""
        return [await self.get(key, prototype, asked) for key, asked in key_ranges]

    async def exists(self, key: str) -> bool:
        """Tell whether there is a file."""
        return await self.inner.exists(key)

    def list(self) -> AsyncIterator[str]:
        """List all files."""
        return self.inner.list()

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """List the files below a folder."""
        return self.inner.list_prefix(prefix)

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """List the names in a folder."""
        return self.inner.list_dir(prefix)

    async def set(self, key: str, value: Buffer) -> None:
        """Refuse: this store is for reading."""
        self._check_writable()

    async def delete(self, key: str) -> None:
        """Refuse: this store is for reading."""
        self._check_writable()

    @property
    def supports_writes(self) -> bool:
        """False."""
        return False

    @property
    def supports_deletes(self) -> bool:
        """False."""
        return False

    @property
    def supports_listing(self) -> bool:
        """Whether files can be listed."""
        return self.inner.supports_listing

    def __eq__(self, value: object) -> bool:
        return (
            isinstance(value, LimitedStore)
            and value.inner == self.inner
            and value.limit_bytes == self.limit_bytes
        )

    def __str__(self) -> str:
        return str(self.inner)

    def __repr__(self) -> str:
        return f"LimitedStore({self.inner!r}, {self.limit_bytes})"


def _require(key: str, length: int, limit: int) -> None:
    if not 1 <= length <= limit:
        raise ValueError(f"expected 1 to {limit} bytes in {key}, found {length}")


def _length_of(store: LocalStore, key: str) -> int | None:
    """Give a file's bytes; None if there is none.

    Raises:
        ValueError: If it is a pipe or device: to open one may take for ever.
    """
    try:
        status = os.stat(f"{store.root}/{key}")  # noqa: PTH116 - a path costs more than the file
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISDIR(status.st_mode):
        return None
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"expected a file, found a pipe or device at {key}")
    return status.st_size


def _at_most(byte_range: ByteRequest | None, length: int) -> ByteRequest:
    """Give a request for no more bytes than `length`."""
    if byte_range is None:
        return RangeByteRequest(0, length)
    if isinstance(byte_range, OffsetByteRequest):
        return RangeByteRequest(byte_range.offset, byte_range.offset + length)
    return byte_range
