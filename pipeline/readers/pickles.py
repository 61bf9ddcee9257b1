"""Read a pickle of plain containers and scalars without running what it says."""

import pickle
from pathlib import Path
from typing import Any

from pipeline.errors import ManifestError


class _PlainUnpickler(pickle.Unpickler):
    """Every class or function in a pickle passes through `find_class`; none is admitted."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def read_plain_pickle(path: Path) -> Any:
    """Read lists, dicts, tuples, text, bytes and numbers from a pickle of Python 2 or 3.

    Args:
        path: Pickle file, such as `refs(unc).p`.

    Returns:
        Its value. Byte strings of Python 2 become text: UTF-8 if they are, else Latin-1.

    Raises:
        ManifestError: If the file is missing, no pickle, or names any class or function, which
            is refused before it is looked up.
    """
    try:
        try:
            return _load(path, "utf-8")
        except UnicodeDecodeError:
            return _load(path, "latin1")
    except OSError as error:
        raise ManifestError(f"{path} cannot be read ({error.strerror}); check the path") from error
    # Damaged pickles raise anything; nothing in them can have been executed.
    except Exception as error:
        raise ManifestError(
            f"expected a pickle of plain lists, dicts, text and numbers in {path}, found another "
            f"({error}); it was not executed; use the file as published, or refs.json"
        ) from error


def _load(path: Path, encoding: str) -> Any:
    with path.open("rb") as file:
        return _PlainUnpickler(file, encoding=encoding).load()
