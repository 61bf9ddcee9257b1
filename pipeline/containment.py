"""Shell: files that annotations name: inside their folder, or refused."""

import os
import posixpath
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import ItemError, ManifestError
from pipeline.found_values import shown
from pipeline.places import Place, is_local

_NAME = re.compile(r"[^\x00-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]+")
"""No end of a line or of the name, nothing that UTF-8 does not have."""
_DRIVE = re.compile(r"[A-Za-z]:")


class LinkError(ItemError):
    """A link that leads where no link may lead."""

    def __init__(self, message: str, leads_to: str = "") -> None:
        super().__init__(message)
        self.leads_to = leads_to
        """The file that it leads to, links followed to the end."""


def check_inside(root: Place, name: str, links_into: Sequence[Path] = ()) -> None:
    """Check that a name that annotations give leads to nowhere but into a folder.

    Names are taken for neither a system's more than another's: a backslash separates too.

    Args:
        root: The folder; it may be a link itself. In an object store there are no links.
        name: Relative to it.
        links_into: Folders that links in `root` may lead into, at any depth. They relax links
            only: no name may be absolute or climb, be it into one of them.

    Raises:
        LinkError: If it passes through links that lead out, and into none of `links_into`.
        ItemError: If it is absolute, or climbs out by "..".
    """
    plain = name.replace("\\", "/")
    if not _NAME.fullmatch(plain):
        raise ItemError(f"expected the name of a file in {root}, found {shown(name)}")
    if plain.startswith("/") or _DRIVE.match(plain):
        raise ItemError(
            f"expected a name relative to {root}, found the absolute {shown(name)}; name the file "
            "as it stands in that folder"
        )
    if posixpath.normpath(plain).split("/")[0] == "..":
        raise ItemError(
            f"expected a file inside {root}, found {shown(name)}, which climbs out of it; name a "
            "folder that holds all files"
        )
    if not is_local(root):
        return
    place = os.path.realpath(root / name)
    if not any(_is_below(place, folder) for folder in (root, *links_into)):
        others = " or data.links_into" if links_into else ""
        raise LinkError(
            f"expected a file inside {root}{others}, found {shown(name)}, a link that leads out of "
            f"it, to {shown(place)}; copy the file, or list the folder that it leads into under "
            "data.links_into",
            leads_to=place,
        )


def _is_below(place: str, folder: Path) -> bool:
    """Tell whether a path without links is below a folder, which may be a link."""
    inside = os.path.realpath(folder)
    return os.path.commonpath((place, inside)) == inside


def check_regular(path: Path) -> None:
    """Check that there is a file of bytes: reading a pipe or a device may never end.

    Raises:
        ItemError: If there is none, or something else.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise ItemError(f"expected a file, found no file that can be read at {path}") from error
    if not stat.S_ISREG(mode):
        raise ItemError(f"expected a file, found a folder, pipe or device at {path}")


def open_annotations(path: Path) -> BinaryIO:
    """Open a file of annotations.

    Raises:
        ManifestError: If it is missing, no regular file, or may not be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ManifestError(f"expected a file, found a folder, pipe or device at {path}")
        return path.open("rb")
    except OSError as error:
        raise ManifestError(f"{path} cannot be read ({error.strerror}); check the path") from error
    except ManifestError:
        raise
    except ValueError as error:  # a name that no file can have
        raise ManifestError(f"{shown(str(path))} cannot be read; check the path") from error
