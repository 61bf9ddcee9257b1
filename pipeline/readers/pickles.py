"""Read a pickle of plain containers and scalars without running what it says."""

import io
import os
import pickle
import pickletools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.containment import open_annotations
from pipeline.errors import ManifestError
from pipeline.found_values import why

MAX_PICKLE_BYTES = 1 << 30
"""Larger files are refused; RefCOCO's refs take about 10 MB."""

_SHARED = 8
"""How many values a byte of the file may stand for, where it names the same list again."""

# Bytes of each opcode's argument, by opcode; negative: how the length is given.
_ARGUMENT = {ord(op.code): 0 if op.arg is None else op.arg.n for op in pickletools.opcodes}
_LENGTH_BYTES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_LINES = {ord("c"): 2, ord("i"): 2}  # GLOBAL and INST: module and name
_PUT, _LONG_BINPUT, _STOP = ord("p"), ord("r"), ord(".")


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
            is refused before it is looked up; or if a few bytes of it ask for much memory.
    """
    try:
        with open_annotations(path) as file:
            if (size := os.fstat(file.fileno()).st_size) > MAX_PICKLE_BYTES:
                raise ValueError(f"{size} bytes, more than {MAX_PICKLE_BYTES}")
            content = file.read()
        _check_declared(content)
        try:
            value = _load(content, "utf-8")
        except UnicodeDecodeError:
            value = _load(content, "latin1")
        _check_shared(value, len(content))
    except ManifestError:
        raise
    # Damaged pickles raise anything; nothing in them can have been executed.
    except Exception as error:
        raise ManifestError(
            f"expected a pickle of plain lists, dicts, text and numbers in {path}, found another "
            f"({why(error)}); it was not executed; use the file as published, or refs.json"
        ) from error
    return value


def _load(content: bytes, encoding: str) -> Any:
    return _PlainUnpickler(io.BytesIO(content), encoding=encoding).load()


def _check_declared(content: bytes) -> None:
    """Refuse lengths and numbers of memo entries beyond the file.

    The unpickler makes room for them before it reads on: seven bytes ask for 64 GiB.
    """
    at, end = 0, len(content)
    while at < end:
        code = content[at]
        length = _ARGUMENT.get(code)
        at += 1
        if length is None:
            raise ValueError(f"byte {at - 1} is no instruction of a pickle")
        if code == _STOP:
            return
        if length >= 0:
            if code == _LONG_BINPUT:
                _check_memo(int.from_bytes(content[at : at + 4], "little"), end)
            at += length
        elif length == pickletools.UP_TO_NEWLINE:
            if code == _PUT:
                _check_memo(int(content[at : content.find(b"\n", at)]), end)
            for _ in range(_LINES.get(code, 1)):
                at = content.find(b"\n", at) + 1 or end
        else:
            size = _LENGTH_BYTES[length]
            at += size + int.from_bytes(content[at : at + size], "little")
    raise ValueError(f"it ends early, at byte {end} of {at}" if at > end else "it ends early")


def _check_memo(number: int, limit: int) -> None:
    if number > limit:
        raise ValueError(f"memo entry {number} in a file of {limit} bytes")


def _check_shared(value: Any, num_bytes: int) -> None:
    """Refuse lists within lists that are named again and again: written out they have no end."""
    sizes: dict[int, int | None] = {}  # by id; None while the values inside are being counted
    stack = _containers([value])
    while stack:
        node = stack[-1]
        inner = _containers(node.values() if isinstance(node, dict) else node)
        if id(node) in sizes:
            if sizes[id(node)] is None:
                sizes[id(node)] = len(node) + sum(sizes[id(one)] or 0 for one in inner)
            stack.pop()
            continue
        sizes[id(node)] = None
        if any(sizes.get(id(one), 0) is None for one in inner):
            raise ValueError("a list that holds itself")
        stack += [one for one in inner if id(one) not in sizes]
    total = sizes.get(id(value)) or 0
    if total > _SHARED * num_bytes + 1000:
        raise ValueError(f"{num_bytes} bytes that stand for {total} values")


def _containers(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if isinstance(value, list | dict | tuple)]
