"""Small files that once showed a fault, or that are known to show one elsewhere, by what they are.

Each is also a file of the corpus, so that mutations start from it.
"""

import json
import pickle
import struct
import zlib

LONG = 300


def _laughs(levels: int) -> bytes:
    """Give YAML of a few lines that stands for 10^levels values."""
    lines = ["version: 1", "data:", "  a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"  a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]"
        for level in range(1, levels)
    ]
    return "\n".join(lines).encode()


def _shared_lists(levels: int) -> bytes:
    """Give a pickle of a few hundred bytes that stands for 10^levels values."""
    value: list[object] = [{"ref_id": 1}]
    for _ in range(levels):
        value = [{"sentences": value}] * 10
    return pickle.dumps(value, protocol=4)


def _png(width: int, height: int) -> bytes:
    """Give the header of a PNG, and pixels of one row."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 61)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def _line(**changes: object) -> bytes:
    entry = {"image": "images/a.png", "expressions": ["left cat"], "id": "one"}
    return json.dumps(entry | changes).encode()


def _instances(**image: object) -> bytes:
    entry = {"id": 100, "file_name": "a.png", "height": 12, "width": 20}
    square = [[2, 2, 8, 2, 8, 6, 2, 6]]
    shapes = [
        {"id": 10 + n, "image_id": 100, "category_id": 7, "segmentation": square} for n in (1, 2)
    ]
    document = {
        "images": [entry | image],
        "annotations": shapes,
        "categories": [{"id": 7, "name": "cat"}],
    }
    return json.dumps(document).encode()


def _ref(**changes: object) -> bytes:
    sentence = {"sent_id": 0, "raw": "Cat", "sent": "cat", "tokens": []}
    ref = {
        "ref_id": 1, "ann_id": 11, "image_id": 100, "category_id": 7, "split": "train",
        "sentences": [sentence],
    }  # fmt: skip
    return pickle.dumps([ref | changes], protocol=2)


TELLING: dict[str, dict[str, bytes]] = {
    "config": {
        "billion-laughs.yaml": _laughs(9),
        "holds-itself.yaml": b"version: 1\ndata: &a {reader: *a}\n",
        "tag.yaml": b"version: 1\ntrain: !!python/object/apply:os.system [ls]\n",
        "tag-without-value.yaml": b"version: 1\ntrain: {ema_decay: !!int ''}\n",
        "month-99.yaml": b"version: 1\ntrain: {ema_decay: 2001-99-99}\n",
        "digits-5000.yaml": b"version: 1\nrounds: {rounds: " + b"9" * 5000 + b"}\n",
        "hexadecimal-5000.yaml": b"version: 1\nrounds: {rounds: 0x" + b"f" * 5000 + b"}\n",
        "no-float.yaml": b"version: 1\ntrain: {ema_decay: 1" + b"0" * 99 + b"}\n",
        "merge-key.yaml": b"version: 1\ndata: {<<: {reader: scenes}}\n",
        "key-is-a-list.yaml": b"version: 1\n? [a]\n: 1\n",
        "unknown-user.yaml": b"version: 1\ndata: {reader: jsonl, annotations: ~nobody-x/a}\n",
        "half-a-pair.yaml": b'version: 1\ndata: {reader: jsonl, annotations: "\\ud800"}\n',
        "nul-in-a-path.yaml": b'version: 1\ndata: {reader: jsonl, annotations: "a\\0b"}\n',
        "deep.yaml": b"version: 1\ndata: " + b"[" * 3000,
        "wide-pattern.yaml": b"version: 1\ndata: {reader: scenes, image_pattern: '%999999999d'}\n",
        "long-pattern.yaml": b"version: 1\ndata: {reader: scenes, image_pattern: '%%0x%s'}\n"
        % (b"f" * 5000),
        "no-depths.yaml": b"version: 1\ntrain: {network: {size: toy, options: {num_heads: 0}}}\n",
        "heads-of-0.yaml": (
            b"version: 1\ntrain: {network: {size: toy, options: {num_heads: [0, 0, 0, 0]}}}\n"
        ),
    },
    "set": {
        "month-99": b"train.ema_decay=2001-99-99",
        "deep": b"train.ema_decay=" + b"[" * 3000,
        "many-keys": b"data." + b"a." * 2000 + b"b=1",
        "no-text": b"train.ema_decay=\xff",
    },
    "refs-pickle": {
        "memo-entry-2-billion.p": b"\x80\x02]r\xff\xff\xff\x7f.",
        "memo-entry-as-text.p": b"(lp2147483647\n.",
        "bytes-of-a-terabyte.p": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
        "ten-to-the-nine.p": _shared_lists(9),
        "holds-itself.p": b"\x80\x02]q\x00h\x00a.",
        "deep.p": b"\x80\x02" + b"]" * 3000 + b"a" * 2999 + b".",
        "ref-id-without-end.p": _ref(ref_id=1 << 20_000),
        "ref-id-list.p": _ref(ref_id=[1]),
        "image-id-infinite.p": _ref(image_id=float("inf")),
        "sentences-nested.p": _ref(sentences=[{"sent": [[["a"]]]}]),
    },
    "instances": {
        "height-infinite.json": _instances(height=float("inf")),
        "id-infinite.json": _instances(id=float("inf")),
        "name-of-two-lines.json": _instances(file_name="a\n.png"),
        "name-half-a-pair.json": _instances(file_name="a\ud800.png"),
        "name-number.json": _instances(file_name=5),
        "name-climbs.json": _instances(file_name="../a.png"),
        "id-twice.json": b'{"images": [], "images": [], "annotations": [], "categories": []}',
    },
    "jsonl": {
        "climbs.jsonl": _line(image="../a.png"),
        "absolute.jsonl": _line(image="/etc/hostname"),
        "backslashes.jsonl": _line(image="..\\..\\a.png"),
        "drive.jsonl": _line(image="C:\\a.png"),
        "home.jsonl": _line(image="~/a.png"),
        "nul.jsonl": _line(image="a\0.png"),
        "long-name.jsonl": _line(image="a" * 5000),
        "device.jsonl": _line(segmentation="/dev/zero"),
        "mask-climbs.jsonl": _line(segmentation="../mask.png"),
        "folder-as-mask.jsonl": _line(segmentation="images"),
        "long-key.jsonl": _line(segmentation={"x" * LONG * 10: 1, "counts": []}),
        "key-twice.jsonl": b'{"image": "images/a.png", "image": "b.png", "expression": "a"}',
        "infinite.jsonl": b'{"image": "images/a.png", "expression": "a", "segmentation": '
        b"[[Infinity, 1, 2, 3, 4, 5]]}",
    },
    "split": {
        "section-no-list.json": b'{"train": 5}',
        "mask-id-list.json": b'{"train": [{"iid": 100, "mask_id": [1], "refs": ["a"]}]}',
        "iid-infinite.json": b'{"train": [{"iid": Infinity, "mask_id": 1, "refs": ["a"]}]}',
    },
    "ids-json": {
        "iid-nested.json": b'{"train": [{"iid": ' + b"[" * 900 + b"]" * 900 + b"}]}",
    },
    "image": {
        "bomb.png": _png(60_000, 60_000),
        "just-below-the-limit.png": _png(13_000, 13_000),
    },
    "mask-png": {"bomb.png": _png(60_000, 60_000)},
    "vocabulary": {"no-text.txt": b"[PAD]\n\xff\n"},
    "done-record": {
        "deep.json": b"[" * 3000,
        "files-no-object.json": b'{"files": 5, "failures": []}',
    },
    "plan": {"deep.json": b"[" * 3000, "plan-no-object.json": b'{"plan": 5, "fingerprint": "0"}'},
    "manifest": {"deep.json": b"[" * 3000},
    "failures": {"other-keys.jsonl": b'{"item": "a"}', "cut.jsonl": b'{"item": "a'},
    "column": {
        "header-of-code.npy": b"\x93NUMPY\x01\x00\x08\x00((((((\n"[:18],
        "header-cut.npy": b"\x93NUMPY\x01\x00v\x00{'descr': '<i4', (\n",
    },
    "metrics": {
        "inputs-no-object.json": b'{"val": {"inputs": 5, "outcomes": {"file": "a", "sha256": ""}}}',
        "long-name.json": json.dumps(
            {"val": {"inputs": {}, "outcomes": {"file": "a" * 400, "sha256": ""}}}
        ).encode(),
    },
    "checkpoint-about": {
        "climbs.json": b'{"format": 1, "step": 2, "about": {}, "files": {"../a.safetensors": "0"}}',
    },
}
"""Files by reader and name."""
