"""Shell: places in a run directory, on a disk or in an object store.

A run directory is a folder or any URL that fsspec knows: `s3://bucket/runs/a`, `gs://…`, `az://…`,
`memory://a`. On a disk a place is a `Path`, elsewhere a `UPath`; both are used alike. An object
store has no rename and no lock by link, but an object appears whole or not at all, can be created
once and only once, and is listed as soon as it is written. Credentials come from where the store's
own library looks for them (environment, instance role, ~/.config/fsspec), never from here.
"""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from upath import UPath

from pipeline.credentials import holds_credentials
from pipeline.credentials import redacted as redacted
from pipeline.disk_errors import is_for_the_user, line_of, says_nothing_of_the_file
from pipeline.errors import ConfigError, StoreError
from pipeline.storage_log import LIBRARIES, keep_broken_connections_quiet
from pipeline.store_links import refuse_links_above

if TYPE_CHECKING:
    from typing_extensions import TypeIs

Place: TypeAlias = Path | UPath
"""A file or folder of a run directory: a `Path` on a disk, a `UPath` in an object store."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_ONE_SLASH = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_OPTIONS: dict[str, Any] = {"use_listings_cache": False}  # others write at the same time
_REFUSED = (409, 412)  # conflict with a request at the same time, failed precondition
keep_broken_connections_quiet()  # here: a worker that unpickles a place calls nothing else first


def place(text: str) -> Place:
    """Make a place of what a user gave: a path, or a URL of an object store.

    Args:
        text: A path, or `protocol://bucket/folder`; `file://` is a path.

    Raises:
        ConfigError: For a URL that holds credentials (which are not repeated), climbs by `..`,
            names no bucket, or is of a protocol that fsspec does not know or cannot reach.
    """
    protocol, slashes, rest = text.partition(":/")
    if slashes and (holds_credentials(text) or (is_url(text) and "?" in rest)):
        raise ConfigError(
            "expected a path, or a URL without credentials, found some in it; leave them to the "
            "environment or to ~/.config/fsspec"
        )
    if not is_url(text):
        if not text:  # would be the folder of now
            raise ConfigError("expected a path or a URL, found an empty text")
        if "://" in text or _ONE_SLASH.match(text):  # would be a folder of that name
            raise ConfigError(f"{text}: expected a path, or a URL PROTOCOL://BUCKET/FOLDER")
        return Path(text)
    protocol, rest = protocol.lower(), rest.removeprefix("/")
    if protocol == "file":
        return Path(rest)
    parts = rest.rstrip("/").split("/")
    if not all(parts) or ".." in parts or "." in parts:
        raise ConfigError(
            f"{text}: expected {protocol}://BUCKET/FOLDER, without empty names, '.' or '..'"
        )
    try:
        made: UPath = UPath(f"{protocol}://{'/'.join(parts)}", **_OPTIONS)
        made.fs  # noqa: B018 - loads the library and makes the connection's settings
    except ImportError as error:
        raise ConfigError(
            f"{text}: expected the package for {protocol}:// ({error}), found none; "
            f"in the clone, run pip install -e '.[s3]' for s3://, or pip install gcsfs for gs://, "
            f"adlfs for az://"
        ) from error
    except ValueError as error:
        known = "s3, gs, az, memory"
        raise ConfigError(
            f"{text}: expected a protocol that fsspec knows, such as {known}, found {protocol!r}"
        ) from error
    return made


def is_url(text: str) -> bool:
    """Tell whether a text names an object store (or a file by `file://`) rather than a path."""
    return bool(_URL.match(text))


def is_local(where: Place) -> "TypeIs[Path]":
    """Tell whether a place is on a disk."""
    return isinstance(where, Path)


def here(where: Place) -> Place:
    """Give the same place with a connection of this process: connections do not survive a fork."""
    if is_local(where):
        return where
    options: dict[str, Any] = dict(where.storage_options)
    fresh: UPath = UPath(str(where), **options)
    return fresh


def open_array_options(where: Place) -> tuple[str, dict[str, Any] | None]:
    """Give what `zarr.open_group` takes for a place: its name and its storage options."""
    return str(where), None if is_local(where) else dict(where.storage_options)


def relative_name(where: Place, root: Place) -> str:
    """Give the name of a place from a folder above it, with forward slashes.

    Raises:
        ValueError: If the place is not below it.
    """
    name, above = where.as_posix(), root.as_posix().rstrip("/") + "/"
    if not name.startswith(above):
        raise ValueError(f"{where} is not below {root}")
    return name[len(above) :]


def names_in(folder: Place) -> list[str]:
    """List the names in a folder in one go, in no order; none if there is no such folder."""
    if is_local(folder):
        return os.listdir(folder) if folder.is_dir() else []  # noqa: PTH208 - a million names
    try:
        found = folder.fs.ls(folder.path, detail=False)
    except FileNotFoundError:
        return []
    return [str(name).rstrip("/").rsplit("/", 1)[-1] for name in found]


def has_files(folder: Place) -> bool:
    """Tell whether a folder is there and, in an object store, holds anything; in one request."""
    return folder.exists() if is_local(folder) else bool(names_in(folder))


def lengths_below(folder: UPath) -> dict[str, int]:
    """Give the bytes of every object below a folder by its relative name, in few listings.

    One for each folder in it: what a store says of an object takes a kilobyte until it is counted.
    """
    start = len(folder.path.rstrip("/")) + 1
    lengths: dict[str, int] = {}
    try:
        entries: list[Mapping[str, Any]] = folder.fs.ls(folder.path, detail=True)
    except FileNotFoundError:
        return lengths
    for entry in entries:
        name, found = entry["name"], {entry["name"]: entry}
        if entry["type"] == "directory":
            found = folder.fs.find(name, detail=True)
        lengths.update((name[start:], int(about["size"])) for name, about in found.items())
    return lengths


def read_bytes(where: Place) -> bytes:
    """Read a file, or an object in one request: it may be replaced at any time."""
    if is_local(where):
        return where.read_bytes()
    try:
        return bytes(where.fs.cat_file(where.path, start=0))  # without it s3fs asks the size first
    except FileNotFoundError:
        raise
    except OSError:
        if where.fs.size(where.path) != 0:
            raise
        return b""  # of which no range can be given


def remove_tree(folder: Place, *, ignore_errors: bool = False) -> None:
    """Delete a folder with all that is in it, or an object; does nothing if there is none.

    Links are deleted themselves, be it this one or those in it, never what they lead to.

    Args:
        folder: The folder.
        ignore_errors: Whether to delete as much of it as can be, on a disk, and say nothing.
    """
    if is_local(folder):
        if folder.is_symlink():
            folder.unlink()
        elif folder.exists():
            shutil.rmtree(folder, ignore_errors=ignore_errors)
        return
    with suppress(FileNotFoundError):
        folder.fs.rm(folder.path, recursive=True)


def delete(where: Place) -> None:
    """Delete a file or object, in one request; does nothing if there is none.

    A link is deleted itself, never what it leads to.

    Raises:
        StoreError: If it is in a store, below a link (`pipeline.store_links`).
    """
    if is_local(where):
        refuse_links_above(where)
        where.unlink(missing_ok=True)
        return
    with suppress(FileNotFoundError):
        where.fs.rm_file(where.path)


def create_once(where: Place, content: bytes) -> bool:
    """Create a file or object; of several processes that try, one succeeds.

    Returns:
        False if it is there already.
    """
    try:
        if is_local(where):
            where.parent.mkdir(parents=True, exist_ok=True)
            with where.open("xb") as handle:
                handle.write(content)
        else:
            where.fs.pipe_file(where.path, content, mode="create")
    except FileExistsError:
        return False
    except OSError as error:
        if not _is_refused(error):
            raise
        return False
    return True


def _is_refused(error: OSError) -> bool:
    """Tell whether an object is there already, or being made; not every store says so alike."""
    response = getattr(error.__cause__, "response", None) or {}
    return response.get("ResponseMetadata", {}).get("HTTPStatusCode") in _REFUSED


def modified_at(where: UPath) -> float:
    """Give when an object was written, in seconds by the clock of the object store."""
    return float(where.fs.modified(where.path).timestamp())


def reason_of(error: BaseException) -> str:
    """Say in a few words why a file or object could not be used; object stores set no errno."""
    strerror = getattr(error, "strerror", None)
    if strerror:
        return str(strerror)
    text = " ".join(str(error).split())
    if isinstance(error, FileNotFoundError) and " " not in text:  # nothing but a name
        return "No such file or directory"
    return redacted(text) or type(error).__name__


@contextmanager
def reaching(where: Place) -> Iterator[None]:
    """Turn what goes wrong between here and a store into one line.

    Raises:
        StoreError: Names the place and the reason; what is done is kept.
    """
    try:
        yield
    except Exception as error:
        if is_local(where) and isinstance(error, OSError) and is_for_the_user(error):
            raise StoreError(line_of(error, where)) from error
        if is_local(where) or not is_of_storage(error):
            raise
        raise StoreError(
            f"{where}: the object store cannot be used ({type(error).__name__}: "
            f"{reason_of(error)}); check address, credentials and rights, and run the same "
            f"command again: nothing that is done is lost"
        ) from error


def is_on_the_way(where: Place, error: OSError) -> bool:
    """Tell whether an error is of the way to a file or object, and says nothing of itself.

    What cannot be reached for a moment, or for want of rights, must not be taken for missing or
    damaged, and made anew.
    """
    if is_local(where):
        return says_nothing_of_the_file(error)
    return not isinstance(error, FileNotFoundError)


def is_of_storage(error: BaseException) -> bool:
    """Tell whether an error comes from an object store or the way to it, not from us."""
    if isinstance(error, ConfigError | StoreError):
        return False
    return isinstance(error, OSError) or type(error).__module__.split(".", 1)[0] in LIBRARIES
