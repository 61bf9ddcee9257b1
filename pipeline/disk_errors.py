"""Shell: what the operating system refuses, as the words of one line, and whether it will pass."""

import errno
import os
import re
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

NO_SPACE = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
"""A full disk, a quota that is used up, a limit to the size of files."""
_RIGHTS = frozenset((errno.EACCES, errno.EPERM, errno.EROFS))
_ON_THE_WAY = frozenset(
    (
        errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV, errno.EREMOTEIO, errno.ENOTCONN,
        errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH,
        errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.ESHUTDOWN, errno.EAGAIN,
        errno.EINTR, errno.EBUSY,
    )
)  # fmt: skip
_OF_THE_PROCESS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM))
_OTHER_KIND = frozenset((errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY))
_OF_RUST = re.compile(r"\(os error (\d+)\)")
_NEARLY_FULL_BYTES = 1 << 20

_ADVICE = (
    (NO_SPACE, "nothing that is done is lost: free some space and run the same command again"),
    (_RIGHTS, "nothing that is done is lost: give this user the right to that, or choose another "
     "place, and run the same command again"),
    (_ON_THE_WAY, "nothing that is done is lost: run the same command again once that file system "
     "is well; a file that stays unreadable may be deleted, to be made anew"),
    (_OF_THE_PROCESS, "this process may have no more files or memory: raise the limit (ulimit), or "
     "use fewer workers, and run the same command again"),
    (_OTHER_KIND, "a file is where a folder should be, or a folder where a file should: move it "
     "away and run the same command again"),
)  # fmt: skip
_OTHER_ADVICE = "mend that and run the same command again: nothing that is done is lost"


def says_nothing_of_the_file(error: OSError) -> bool:
    """Tell whether a file could not be had for want of rights, or since its disk did not answer.

    Such a file may be whole: it must not be taken for missing or damaged, and made anew.
    """
    return error.errno in _RIGHTS | _ON_THE_WAY | _OF_THE_PROCESS


def is_for_the_user(error: OSError) -> bool:
    """Tell whether an error is the same at every try, until somebody mends rights, disk or file."""
    return says_nothing_of_the_file(error) or error.errno in (errno.EISDIR, errno.ENOTDIR)


def system_error(error: BaseException) -> OSError | None:
    """Give the operating system's error that an exception is, or that a library in Rust quotes."""
    if isinstance(error, OSError):
        return error
    found = _OF_RUST.search(str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else None


def line_of(error: OSError, where: object = None) -> str:
    """Say where something failed, why, and what to do.

    Args:
        error: Of the operating system; or of a library, which may have no number.
        where: What it was about, if the error names no file.
    """
    named = error.filename
    place = os.fsdecode(named) if isinstance(named, str | bytes | os.PathLike) else where
    if place == where and error.errno in NO_SPACE:
        place = _full_one(where)
    text = " ".join((error.strerror or str(error)).split()) or type(error).__name__
    begin = "" if place is None else f"{place}: "
    can = "cannot be written" if error.errno in NO_SPACE else "cannot be used"
    advice = next((words for numbers, words in _ADVICE if error.errno in numbers), _OTHER_ADVICE)
    return f"{begin}{can} ({text}); {advice}"


def _full_one(where: object) -> object:
    """Give the folder for temporary files, if that is full and the place itself is not."""
    with suppress(OSError):
        scratch = tempfile.gettempdir()
        if not _is_full(where) and _is_full(scratch):
            return scratch
    return where


def _is_full(where: object) -> bool:
    if not isinstance(where, str | Path):
        return False
    folder = Path(where)
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free < _NEARLY_FULL_BYTES
