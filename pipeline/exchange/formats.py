"""The formats in which masks can be given; a new format is one module and one line here."""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.columns import file_sha256
from pipeline.errors import ConfigError
from pipeline.exchange.amg import open_amg
from pipeline.exchange.coco import open_coco
from pipeline.exchange.npz import open_npz
from pipeline.exchange.semires import open_semires
from pipeline.exchange.source import MaskSource
from pipeline.manifest import Manifest

MASK_FORMATS: dict[str, Callable[[Path, Manifest], MaskSource]] = {
    "coco": open_coco,
    "amg": open_amg,
    "semires": open_semires,
    "npz": open_npz,
}

VERSION = 1
"""Raised whenever the same files would give other masks or scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportConfig:
    """Where the masks are that somebody made before."""

    format: str
    """Whose: COCO's RLE or polygons, segment-anything's own script, SemiRES as released, NumPy."""
    path: Path
    """A JSON file (coco), or a folder of files: one per image (amg, npz) or per ref (semires)."""

    def __post_init__(self) -> None:
        if self.format not in MASK_FORMATS:
            known = ", ".join(MASK_FORMATS)
            raise ValueError(f"format: unknown {self.format!r}; known are {known}")


def open_masks(config: ImportConfig, manifest: Manifest) -> MaskSource:
    """Open masks made before.

    Args:
        config: Format and place.
        manifest: Whose images the masks belong to.

    Returns:
        The source; what is wrong with one image alone comes to light when it is read.

    Raises:
        ConfigError: If the source is missing, of another structure, or has nothing that belongs
            to the manifest.
    """
    return MASK_FORMATS[config.format](config.path, manifest)


def source_sha256(config: ImportConfig) -> str:
    """Name a source of masks by its content, for fingerprints.

    What enters: the format and `VERSION`; of a file, its bytes; of a folder, the path within it and
    the bytes of every .json and .npz file at any depth, in the order of the paths. Where the source
    lies, times, modes and other files do not. Links are followed; a folder is entered once.

    Raises:
        ConfigError: If there is nothing of this format, or it cannot be read.
    """
    digest = hashlib.sha256(f"masks {VERSION} {config.format}".encode())
    try:
        if config.format == "coco":
            if not config.path.is_file():  # a pipe would be waited for
                raise ConfigError(f"{config.path} cannot be read (no file); check the path")
            digest.update(file_sha256(config.path).encode())
            return digest.hexdigest()
        files = sorted(_mask_files(config.path))
        for name, file in files:
            digest.update(f" {len(name)} ".encode() + name + file_sha256(file).encode())
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{config.path} cannot be read ({reason}); check the path") from error
    if not files:
        raise ConfigError(f"expected masks in {config.path}, found no .json or .npz file")
    return digest.hexdigest()


def _mask_files(folder: Path) -> Iterator[tuple[bytes, Path]]:
    """Give the relative path, as bytes, and the place of every file of masks."""
    entered: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        folders.sort()  # the walk goes on in this order, whatever the file system's
        status = Path(place).stat()
        if (status.st_dev, status.st_ino) in entered:  # a link that leads back
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        for name in names:
            file = Path(place) / name
            if file.suffix in (".json", ".npz") and file.is_file():
                yield os.fsencode(file.relative_to(folder)), file


def _raise(error: OSError) -> None:
    raise error
