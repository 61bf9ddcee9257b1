"""Walk through a JSON file of any size, element by element, without holding it."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from pipeline.errors import ConfigError

_CHUNK_BYTES = 1 << 20
_MAX_VALUE_BYTES = 1 << 26
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Element:
    """One element of a list that stands under a key of the file's object."""

    section: str
    """The key."""
    number: int
    """Position in the list."""
    value: Any
    start: int
    """Offset of its first byte in the file."""
    stop: int
    """Offset behind its last byte."""


def scan_sections(path: Path, wanted: tuple[str, ...]) -> Iterator[Element]:
    """Give the elements of lists under the keys of a JSON object, in the order of the file.

    Args:
        path: A JSON file in UTF-8, `{"images": [...], "annotations": [...], ...}`.
        wanted: Keys whose elements are given; the file must have each, with a list.

    Raises:
        ConfigError: If it cannot be read, is no JSON object of these keys, repeats a key, ends
            early, or has an element of more than 64 MiB.
    """
    if not path.is_file():  # a pipe would be waited for
        raise ConfigError(f"{path} cannot be read (no file); check the path")
    try:
        with path.open("rb") as file:
            yield from _sections(_Scanner(file, path), wanted)
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{path} cannot be read ({reason}); check the path") from error


def _sections(scanner: "_Scanner", wanted: tuple[str, ...]) -> Iterator[Element]:
    scanner.take("{")
    seen: set[str] = set()
    closed = scanner.passes("}")
    while not closed:
        if scanner.peek() != '"':
            scanner.refuse("a key")
        key = scanner.value()
        if key in seen:
            scanner.refuse(f"key {key!r:.40} once")
        seen.add(key)
        scanner.take(":")
        if key in wanted:
            yield from _elements(scanner, key)
        elif scanner.peek() == "[":
            for _ in _elements(scanner, key):  # one by one, for it may be long
                pass
        else:
            scanner.value()
        closed = scanner.take(",}") == "}"
    if scanner.peek():
        scanner.refuse("nothing more")
    if missing := [key for key in wanted if key not in seen]:
        scanner.refuse(f"key {missing[0]!r} before")


def _elements(scanner: "_Scanner", section: str) -> Iterator[Element]:
    scanner.take("[")
    closed = scanner.passes("]")
    number = 0
    while not closed:
        scanner.peek()
        start = scanner.position
        value = scanner.value()
        yield Element(section, number, value, start, scanner.position)
        number += 1
        closed = scanner.take(",]") == "]"


class _Scanner:
    """A position in a JSON file, with the text from some point before it.

    The text is the file's bytes as Latin-1, so that positions in both agree; JSON's own
    characters are ASCII, and values that hold others are decoded again from their bytes.
    """

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self._size = os.fstat(file.fileno()).st_size
        self._base, self._at, self._text = 0, 0, ""
        self._fill(_CHUNK_BYTES)
        if self._text.startswith("\xef\xbb\xbf"):  # a byte order mark in UTF-8
            self._at = 3

    @property
    def position(self) -> int:
        """Offset in the file."""
        return self._base + self._at

    def peek(self) -> str:
        """Pass over white space and give the next character without passing it; "" at the end."""
        while True:
            found = _SPACE.match(self._text, self._at)
            self._at = found.end() if found else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if self._holds_the_end():
                return ""
            self._fill(_CHUNK_BYTES)

    def take(self, characters: str) -> str:
        """Pass the next character, which is one of these."""
        found = self.peek()
        if not found or found not in characters:
            self.refuse(" or ".join(characters))
        self._at += 1
        return found

    def passes(self, character: str) -> bool:
        """Pass the next character if it is this one, and tell."""
        found = self.peek() == character
        self._at += found
        return found

    def value(self) -> Any:
        """Pass a value and give it."""
        self.peek()
        num_bytes = _CHUNK_BYTES
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError:
                if self._holds_the_end() or num_bytes > _MAX_VALUE_BYTES:
                    self.refuse("a value")
            except (RecursionError, ValueError):  # nested too deeply, or a number of 4,300 digits
                self.refuse("a plain value")
            else:
                # A number may go on behind the text: of "1.5e+7" that ends with "e+", 1.5 is read.
                if end + 2 < len(self._text) or self._holds_the_end():
                    return self._passed(value, end)
            self._fill(num_bytes)
            num_bytes *= 2

    def _passed(self, value: Any, end: int) -> Any:
        text, self._at = self._text[self._at : end], end
        if text.isascii():
            return value
        try:
            return json.loads(text.encode("latin-1").decode())
        except UnicodeDecodeError:
            self.refuse("text in UTF-8")

    def refuse(self, expected: str) -> NoReturn:
        """Say what does not stand here."""
        text = self._text[self._at : self._at + 20]
        found = f"{text.encode('latin-1').decode('utf-8', 'replace')!r}" if text else "its end"
        raise ConfigError(
            f"expected {expected} at byte {self.position} of {self._path}, found {found}; is the "
            "file JSON, and whole?"
        )

    def _holds_the_end(self) -> bool:
        return self._base + len(self._text) >= self._size

    def _fill(self, num_bytes: int) -> None:
        """Take so many bytes from the position on as the text."""
        self._base, self._at = self.position, 0
        self._file.seek(self._base)
        self._text = self._file.read(num_bytes).decode("latin-1")
        if not self._text:
            self._size = self._base  # it became shorter meanwhile
