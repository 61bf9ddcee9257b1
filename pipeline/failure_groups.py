"""Core: what a data set lost, failures of one cause told as one.

A folder of links, a wrong root or a missing disk fails for every image alike: a thousand lines of
which the first twenty are printed say less than one that counts them and says what to do.
"""

import json
import posixpath
import re
from collections.abc import Sequence

from pipeline.found_values import shown
from pipeline.readers.base import Failure
from pipeline.records import FailedItem

ALIKE = 3
"""Failures for the same reason that are still listed one by one."""
MAX_PLACE = 200
"""Characters of a path in a line."""

_QUOTED = re.compile(r"(?<!\w)'[^']*'|\"[^\"]*\"")
_NUMBER = re.compile(r"\d+")
_PLAIN = re.compile(r"[\w./+-]+", re.ASCII)


def grouped(failures: Sequence[Failure]) -> tuple[FailedItem, ...]:
    """Tell failures for printing: links that lead out as one item, then what is alike as one.

    Args:
        failures: Of one severity, in the order in which they were found.

    Returns:
        One item for all links; one for each reason that more than `ALIKE` have, the first of them
        and the number of the others, most first; then the others one by one.
    """
    links = links_item(failures)
    by_cause: dict[str, list[Failure]] = {}
    for failure in failures:
        if not failure.leads_to:
            by_cause.setdefault(_cause(failure), []).append(failure)
    many = sorted((same for same in by_cause.values() if len(same) > ALIKE), key=len, reverse=True)
    told = [] if links is None else [links]
    told += [_item(same[0], f" (and {len(same) - 1:,} more for the same reason)") for same in many]
    few = (failure for failure in failures if not failure.leads_to)
    told += [_item(failure) for failure in few if len(by_cause[_cause(failure)]) <= ALIKE]
    return tuple(told)


def links_item(failures: Sequence[Failure]) -> FailedItem | None:
    """Say in one line how many links lead out, the first, and the setting that allows them.

    Returns:
        None if no failure is of a link.
    """
    links = [failure for failure in failures if failure.leads_to]
    if not links:
        return None
    first, others = links[0], ", and so on" if len(links) > 1 else ""
    allowed = ", ".join(map(_yaml_text, folders_to_allow([link.leads_to for link in links])))
    return FailedItem(
        item=f"{len(links):,} links out of their folder",
        reason=(
            f"{first.item} {first.file} leads to {shown(first.leads_to, MAX_PLACE)}{others}; copy "
            f"the files, or add 'links_into: [{allowed}]' to the data section and prepare again "
            "with --force"
        ),
    )


def folders_to_allow(places: Sequence[str]) -> list[str]:
    """Give few folders that hold all of some files, to be allowed for links.

    The folders that they lie in, if those are few; else the deepest that holds all; or, where that
    is the root of the file system, the deepest for each folder of the root.

    Args:
        places: Absolute paths of files, no links on the way; at least one.

    Returns:
        Absolute paths, sorted, none of them below another; "/" only for files that lie in it.
    """
    folders = sorted({posixpath.dirname(place) for place in places})
    if len(folders) > ALIKE:
        tops: dict[str, list[str]] = {}
        for folder in folders:
            tops.setdefault(folder.split("/")[1], []).append(folder)
        common = posixpath.commonpath(folders)
        folders = [common] if common != "/" else sorted(map(posixpath.commonpath, tops.values()))
    return [
        folder
        for folder in folders
        if not any(_is_below(folder, other) for other in folders if other != folder)
    ]


def _is_below(folder: str, other: str) -> bool:
    return posixpath.commonpath((folder, other)) == other


def _cause(failure: Failure) -> str:
    """Give what is left of a reason without what is of one item: names, paths and numbers."""
    text = failure.reason
    for own in (failure.file, failure.item):
        text = text.replace(own, "") if own else text
    words = _QUOTED.sub("", text).split()
    return _NUMBER.sub("0", " ".join(word for word in words if "/" not in word))


def _item(failure: Failure, more: str = "") -> FailedItem:
    item = f"{failure.item} {failure.file}".strip()
    return FailedItem(item=item, reason=failure.reason + more)


def _yaml_text(path: str) -> str:
    return path if _PLAIN.fullmatch(path) else json.dumps(path)
