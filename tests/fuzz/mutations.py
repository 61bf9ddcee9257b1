"""Damage done to bytes, blindly and by structure; the same random numbers do the same damage."""

import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import yaml

ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 2.5, -0.0, float("nan"), float("inf"), float("-inf"), 1e308,
    2**31, -(2**31), 2**32, 2**53, 2**63, 2**64, 10**30, 10**400, "", "0", "1", "nan", "a" * 300,
    "\ud800", "\0", "../../etc/passwd", "/dev/zero", "~nobody/x", "C:\\x", "%99999d", "é\n", [], {},
    [[]], [None], [0, 0], [1e9] * 6, {"a": {}}, {"size": [1, 1], "counts": [1]},
)  # fmt: skip

TOKENS: tuple[bytes, ...] = (
    b"\0", b"\xff", b"\xff" * 4, b"\xff" * 8, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\n", b'"',
    b"[", b"]", b"{", b"}", b"[[[[", b":", b",", b"-", b"'", b"*a", b"&a ", b"!!int ", b"<<: ",
    b"\t", b"#", b"|", b"0x", b"1e999", b"NaN", b"Infinity", b"-Infinity", b"9" * 30, b"9" * 5000,
    b"0x" + b"f" * 5000, b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\\ud800", b"../", b"/dev/zero",
    b"2001-99-99", b"1:2:3", b"true", b"null", b".", b"\x80\x04", b"r\xff\xff\xff\x7f",
    b"cos\nsystem\n", b"\x8c\x02os\x8c\x06system\x93", b"(", b"R", b"t", b"0" * 16, b"\x00\x01",
    struct.pack("<I", 100_000), struct.pack(">I", 100_000), struct.pack("<Q", 1 << 40),
)  # fmt: skip

MAX_BYTES = 1 << 16
_MAX_WAYS = 500


def mutated(seed: bytes, others: Sequence[bytes], kind: str, rng: random.Random) -> bytes:
    """Damage a file.

    Args:
        seed: A member of the corpus.
        others: Members to take pieces of.
        kind: A key of `BY_STRUCTURE`, or "bytes".
        rng: All chance.

    Returns:
        At most `MAX_BYTES` bytes.
    """
    content = seed
    structured = BY_STRUCTURE.get(kind)
    if structured is not None and rng.random() < 0.6:
        try:
            content = structured(seed, rng)
        except Exception:  # it has no such structure
            content = seed
        if content != seed and rng.random() < 0.8:
            return content[:MAX_BYTES]
    return _blindly(content, others, rng)[:MAX_BYTES]


def _blindly(content: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        at = rng.randrange(len(data) + 1)
        length = rng.choice((1, 1, 2, 4, 8, 32, 200))
        what = rng.randrange(8)
        if what == 0 and data:
            data[min(at, len(data) - 1)] ^= 1 << rng.randrange(8)
        elif what == 1 and data:
            data[min(at, len(data) - 1)] = rng.randrange(256)
        elif what == 2:
            token = rng.choice(TOKENS)
            data[at : at + len(token)] = token
        elif what == 3:
            data[at:at] = rng.choice(TOKENS)
        elif what == 4:
            del data[at : at + length]
        elif what == 5:
            data[at:at] = data[at : at + length] * rng.choice((1, 2, 50))
        elif what == 6:
            del data[at:]
        else:
            other = rng.choice(others)
            start = rng.randrange(len(other) + 1)
            data[at : at + length] = other[start : start + rng.choice((length, 4 * length))]
    return bytes(data)


def _ways(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Give the way to every value in a document."""
    yield way
    inner: Any = value.items() if isinstance(value, dict) else ()
    if isinstance(value, list):
        inner = enumerate(value)
    for key, one in inner:
        yield from _ways(one, (*way, key))


def _replaced(value: Any, way: tuple[Any, ...], make: Callable[[Any], Any]) -> Any:
    if not way:
        return make(value)
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[way[0]] = _replaced(value[way[0]], way[1:], make)
    return copy


def change_document(document: Any, rng: random.Random) -> Any:
    """Replace, drop, rename, repeat or nest some values of a document of plain values."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        ways = list(islice(_ways(document), _MAX_WAYS))  # aliases have no end
        document = _replaced(document, rng.choice(ways), lambda value: _other(value, rng))
    return document


def _other(value: Any, rng: random.Random) -> Any:
    what = rng.randrange(8)
    if isinstance(value, dict) and value and what < 3:
        key = rng.choice(list(value))
        kept = {name: one for name, one in value.items() if name != key}
        return kept if what else {**kept, rng.choice(("id", "size", "", "x")): value[key]}
    if isinstance(value, list) and value and what < 3:
        return value + value if what else value[: rng.randrange(len(value))]
    if type(value) in (int, float) and what < 3:
        return rng.choice((-value, value + 1, value * 1000, value * 10**6, value // 2))
    if what == 3:
        nested: Any = value
        for _ in range(rng.choice((1, 3, 200))):
            nested = [nested]
        return nested
    return rng.choice(ODD_VALUES)


def change_json(content: bytes, rng: random.Random) -> bytes:
    """Change values of a JSON document; now and then repeat a key or nest without end."""
    text = json.dumps(change_document(json.loads(content), rng))
    if rng.random() < 0.05:
        text = text.replace("0", rng.choice(("[" * 100_000, "9" * 10_000, '{"a":' * 2000)), 1)
    if rng.random() < 0.05 and text.startswith("{"):
        text = "{" + text[1:-1] + ", " + text[1:]
    return text.encode("utf-8", "surrogatepass")


def change_json_line(content: bytes, rng: random.Random) -> bytes:
    """Change one line of JSON lines."""
    lines = content.split(b"\n")
    at = rng.randrange(len(lines))
    lines[at] = change_json(lines[at], rng)
    return b"\n".join(lines)


def change_yaml(content: bytes, rng: random.Random) -> bytes:
    """Change values of a YAML document."""
    document = yaml.load(content.decode(), Loader=yaml.CSafeLoader)
    return yaml.dump(change_document(document, rng), Dumper=yaml.CSafeDumper).encode()


def change_zip(content: bytes, rng: random.Random) -> bytes:
    """Damage members of a zip, and give them the checksums that belong to them."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(list(members))
    what = rng.randrange(8)
    if what == 0:
        del members[name]
    elif what == 1:
        members[rng.choice(list(members))] = members[name]
    else:
        members[name] = _blindly(members[name], list(members.values()), rng)
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for key, value in members.items():
            archive.writestr(key, value)
    return written.getvalue()


def change_png(content: bytes, rng: random.Random) -> bytes:
    """Damage a chunk of a PNG, and give it the checksum that belongs to it."""
    if content[:4] != b"\x89PNG":
        raise ValueError("no PNG")
    chunks, at = [], 8
    while at < len(content):
        length = struct.unpack(">I", content[at : at + 4])[0]
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += length + 12
    number = rng.randrange(len(chunks))
    kind, data = chunks[number]
    if kind == b"IHDR" and rng.random() < 0.5:
        side = rng.choice((0, 1, 1000, 13_000, 65_535, 2**31 - 1, 2**32 - 1))
        data = struct.pack(">II", side, rng.choice((side, 1))) + data[8:]
    else:
        data = _blindly(data, [data], rng)
    chunks[number] = (kind, data)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(one)) + name + one + struct.pack(">I", zlib.crc32(name + one))
        for name, one in chunks
    )


def change_counted(content: bytes, rng: random.Random) -> bytes:
    """Change the JSON header of a safetensors file, and give it the length that belongs to it."""
    length = struct.unpack("<Q", content[:8])[0]
    header = change_json(content[8 : 8 + length], rng)
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


BY_STRUCTURE: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "json": change_json,
    "jsonl": change_json_line,
    "yaml": change_yaml,
    "zip": change_zip,
    "png": change_png,
    "safetensors": change_counted,
}
"""How the files of a kind are damaged so that the damage gets past the first check."""
