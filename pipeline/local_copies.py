"""Shell: what needs a file system though the run directory has none: scratch and local copies.

What a library writes by seeking or renaming is written to a scratch folder and sent object by
object, that which proves the rest last. What is mapped into memory or read by a library that takes
paths only is copied once to this machine, under its sha256.
"""

import errno
import hashlib
import os
import re
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from upath import UPath

from pipeline.errors import StoreError
from pipeline.places import Place, is_local, is_on_the_way, reason_of

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SEEN: set[tuple[str, int, int, int]] = set()  # copies whose hash this process has compared


@contextmanager
def scratch() -> Iterator[Path]:
    """Give an empty folder on this machine (in `TMPDIR`), gone at the end of the block."""
    with tempfile.TemporaryDirectory(prefix="semires-") as folder:
        yield Path(folder)


def cache_folder() -> Path:
    """Give where local copies lie: `SEMIRES_CACHE`, else `~/.cache/semires`; may be deleted."""
    given = os.environ.get("SEMIRES_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "semires"


def local_copy(source: Place, sha256: str) -> Path:
    """Give a file of this machine with the content of a place; on a disk the place itself.

    Args:
        source: A file or object.
        sha256: Of its content, hex; a copy that is there is taken if it still has it, which is
            looked at once in each process.

    Raises:
        StoreError: If the object cannot be read, or has another content.
    """
    if is_local(source):
        return source
    if not _SHA256.fullmatch(sha256):
        raise StoreError(f"{source}: expected a sha256 of 64 hex digits, found {sha256[:80]!r}")
    target = cache_folder() / sha256[:2] / sha256
    if _holds(target, sha256):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{sha256}.{uuid.uuid4().hex}.partial")
    try:
        source.fs.get_file(source.path, str(partial))
        found = _sha256_of(partial)
        if found != sha256:
            raise StoreError(f"{source}: sha256 {sha256} expected, found {found}")
        partial.replace(target)
    except OSError as error:
        if is_on_the_way(source, error) and error.errno != errno.ENOSPC:
            raise
        raise StoreError(f"{source}: cannot be copied here ({reason_of(error)})") from error
    finally:
        partial.unlink(missing_ok=True)
    return target


def _holds(target: Path, sha256: str) -> bool:
    """Tell whether a copy is there and whole: a power cut or the years may have damaged it."""
    try:
        status = target.stat()
        identity = (sha256, status.st_ino, status.st_size, status.st_mtime_ns)
        if identity not in _SEEN and _sha256_of(target) == sha256:
            _SEEN.add(identity)
    except FileNotFoundError:
        return False
    return identity in _SEEN


def _sha256_of(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def files_below(folder: Path) -> list[str]:
    """List the files below a folder by their relative names, sorted."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def upload(folder: Path, target: UPath, names: Sequence[str] | None = None) -> None:
    """Send files of a scratch folder to an object store, each object whole; many at a time.

    Args:
        folder: On this machine.
        target: Their folder there.
        names: Files relative to both; None sends all.
    """
    names = files_below(folder) if names is None else names
    if names:
        target.fs.put([str(folder / n) for n in names], [f"{target.path}/{n}" for n in names])


def download(source: UPath, names: Sequence[str], folder: Path) -> None:
    """Fetch objects into a folder on this machine, many at a time.

    Raises:
        StoreError: If a name would lead out of the folder: an object may have any.
    """
    if names:
        for name in names:
            if {"", ".", ".."} & set(name.split("/")):
                raise StoreError(f"{source}: expected names of files, found {name[:200]!r}")
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        source.fs.get([f"{source.path}/{n}" for n in names], [str(folder / n) for n in names])
