"""Shell: files that are whole or absent, and JSON in them."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from pipeline.config import to_plain
from pipeline.errors import StoreError
from pipeline.places import Place, is_local, is_on_the_way, read_bytes, reason_of

_CHECK = b'{\n "check": "'


def atomic_write(path: Place, content: bytes) -> None:
    """Write a file so that a reader, even after a power cut, sees all of it or none."""
    if not is_local(path):
        path.fs.pipe_file(path.path, content)  # an object appears whole or not at all
        return
    _make_folder(path.parent)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.unlink(missing_ok=True)  # one that lies there may be a link to elsewhere
    with partial.open("xb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    partial.replace(path)
    sync_folder(path.parent)


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, each on the disk before there is anything in it."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Force a folder's entries, or a file, to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Place, document: Any) -> None:
    """Write a value as readable JSON, atomically."""
    atomic_write(path, _text(document))


def holds_json(path: Place, document: Any) -> bool:
    """Tell whether a file holds just what `write_json` would write."""
    try:
        return path.read_bytes() == _text(document)
    except OSError:
        return False


def read_json(path: Place) -> Any:
    """Read JSON.

    Raises:
        StoreError: If the file is missing or is no JSON.
    """
    return _parse(path, _read(path))


def write_checked(path: Place, document: dict[str, Any]) -> None:
    """Write a JSON object, its first line a hash of the others, so that a flipped bit is found."""
    text = _text(document)
    check = hashlib.sha256(text).hexdigest().encode()
    atomic_write(path, text.replace(b"{\n", _CHECK + check + b'",\n', 1))


def read_checked(path: Place) -> dict[str, Any]:
    """Read what `write_checked` wrote, or an object of an older version, which has no hash.

    Raises:
        StoreError: If it is missing, damaged or no object.
    """
    return checked_object(path, _read(path))


def checked_object(path: Place, content: bytes) -> dict[str, Any]:
    """Give the object that the content of a checked file holds; raises as `read_checked`."""
    damaged = f"{path}: damaged, its hash differs; delete it and run the stage"
    if content.startswith(_CHECK):
        check, _, rest = content[len(_CHECK) :].partition(b'",\n')
        content = b"{\n" + rest
        if check != hashlib.sha256(content).hexdigest().encode():
            raise StoreError(damaged)
    document = _parse(path, content)
    if not isinstance(document, dict) or "check" in document:
        raise StoreError(damaged)
    return document


def _text(document: Any) -> bytes:
    text = json.dumps(to_plain(document), indent=1, sort_keys=True, allow_nan=False)
    return (text + "\n").encode()


def _read(path: Place) -> bytes:
    try:
        return read_bytes(path)
    except OSError as error:
        if is_on_the_way(path, error):
            raise
        raise StoreError(f"{path}: cannot be read ({reason_of(error)})") from error


def _parse(path: Place, content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise StoreError(
            f"{path}: damaged, not JSON ({error}); delete it and run the stage"
        ) from error
