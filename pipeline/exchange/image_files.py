"""Find the file that belongs to an image in a folder of one file per image, and read it."""

import json
import os
import posixpath
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, ItemError
from pipeline.manifest import Manifest

MAX_FILE_BYTES = 1 << 28
"""Larger files of one image are refused; a thousand masks in JSON take about a MiB."""


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """A folder with a file per image, beside the same relative path or under its base name."""

    folder: Path
    suffix: str
    manifest: Manifest
    uses: Counter[str]
    """How many images would have each name."""

    def file_of(self, row: int) -> Path:
        """Find the file of a manifest image row.

        `a/b.jpg` is `a/b.json`, or else `b.json`, as amg.py writes it, unless two images of the
        manifest would have that name. No name leads out of the folder.

        Raises:
            ItemError: If there is none; names what was looked for.
        """
        names = _names(self.manifest.image_path[row], self.suffix)
        unique = [name for name in names if self.uses[name] == 1]
        for name in unique:
            if is_file(self.folder / name):
                return self.folder / name
        if not unique:
            raise ItemError(
                f"expected a name of its own for the masks of {self.manifest.image_path[row]}, "
                f"found {self.uses[names[-1]]} images that share {names[-1]!r}"
            )
        wanted = " or ".join(unique)
        raise ItemError(f"expected masks in {wanted} of {self.folder}, found no such file")


def open_image_files(folder: Path, suffix: str, manifest: Manifest) -> ImageFiles:
    """Open a folder of one file per image.

    Raises:
        ConfigError: If there is no such folder, or no file in it belongs to any image.
    """
    require_folder(folder)
    uses = Counter(name for path in manifest.image_path for name in _names(path, suffix))
    files = ImageFiles(folder, suffix, manifest, uses)
    if manifest.num_images and not any(
        _is_there(files, row) for row in range(len(manifest.image_path))
    ):
        first = " or ".join(_names(manifest.image_path[0], suffix))
        raise ConfigError(
            f"expected masks of the manifest's images in {folder}, such as {first}, found none; "
            "check the path and the format"
        )
    return files


def require_folder(folder: Path) -> None:
    """Check that a folder is there.

    Raises:
        ConfigError: If it is not.
    """
    try:
        there = folder.is_dir()
    except OSError:
        there = False
    if not there:
        raise ConfigError(f"expected a folder of masks, found none at {folder}; check the path")


def is_file(path: Path) -> bool:
    """Tell whether there is a regular file; False also for names that no file can have."""
    try:
        return path.is_file()
    except OSError:  # too long a name
        return False


def read_bytes(path: Path) -> bytes:
    """Read a file of one image.

    Raises:
        ItemError: If it cannot be read or is beyond `MAX_FILE_BYTES`.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            content = file.read(min(size, MAX_FILE_BYTES) + 1)  # makes room for all of it at once
    except OSError as error:
        raise ItemError(f"{path} cannot be read ({error.strerror})") from error
    if len(content) > MAX_FILE_BYTES:
        raise ItemError(f"expected at most {MAX_FILE_BYTES} bytes in {path}, found more")
    return content


def parse_json(content: bytes, where: str) -> Any:
    """Parse JSON of one image.

    Raises:
        ItemError: If it is no JSON, cut short included.
    """
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ItemError(
            f"expected JSON in {where}, found a damaged or truncated one "
            f"({' '.join(str(error).split()):.100})"
        ) from error


def _names(image_path: str, suffix: str) -> list[str]:
    """Give the names of an image's file within the folder, the best first."""
    path = posixpath.normpath(image_path)
    inside = not path.startswith("/") and ".." not in path.split("/")
    names = [path, posixpath.basename(path)] if inside else [posixpath.basename(path)]
    return [posixpath.splitext(name)[0] + suffix for name in dict.fromkeys(names)]


def _is_there(files: ImageFiles, row: int) -> bool:
    try:
        files.file_of(row)
    except ItemError:
        return False
    return True
