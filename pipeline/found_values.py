"""Core: values and errors that nobody vouches for, as the words of one line."""

import reprlib

_LENGTH = 60
_MAX_BITS = 200


class _Short(reprlib.Repr):
    """A repr whose cost does not depend on the value: a few bytes of YAML can stand for 10^9."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxstring = self.maxother = 4 * _LENGTH
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = 8

    def repr_int(self, value: int, _level: int) -> str:
        # Python refuses to write more than 4,300 digits.
        bits = value.bit_length()
        return repr(value) if bits <= _MAX_BITS else f"an integer of {bits} bits"

    def repr_bytes(self, value: bytes | bytearray, _level: int) -> str:
        return repr(bytes(value[: 4 * _LENGTH]))

    repr_bytearray = repr_bytes


_SHORT = _Short()


def shown(value: object, length: int = _LENGTH) -> str:
    """Give a value as the words of an error line, as `repr` does while it is short.

    Args:
        value: Anything; however large, deep, shared or self-referring it is, this is quick.
        length: Characters to keep.
    """
    return _cut(_SHORT.repr(value), length)


def why(error: BaseException, length: int = 2 * _LENGTH) -> str:
    """Give what an error says, or else its kind, on one line of at most `length` characters."""
    try:
        text = str(error)[: 4 * length]
    except Exception:  # an argument that cannot be written
        text = ""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return _cut(text or type(error).__name__, length)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
