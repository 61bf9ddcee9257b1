"""Hostile input is refused in one line, nothing of it is run, and the table in the docs says so.

`docs/hostile.md` lists what is refused, the line as printed, and the test; both are checked here.
"""

import ast
import json
import os
import pickle
import posixpath
import re
import struct
import time
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from pipeline import plain_yaml, zarr_limits
from pipeline.cli import prepare_data
from pipeline.collect import MAX_OUTLINE_NUMBERS, collect
from pipeline.commands import Settings
from pipeline.config import load_document, parse_config
from pipeline.containment import check_inside
from pipeline.data_config import DataConfig
from pipeline.errors import ConfigError, ItemError, ManifestError, SemiresError
from pipeline.exchange import ImportConfig, open_masks, source_sha256
from pipeline.exchange.source import MAX_MASKS
from pipeline.images import MAX_PIXELS, read_image, read_size
from pipeline.readers import READERS
from pipeline.readers.ids import read_image_ids
from pipeline.readers.pickles import read_plain_pickle
from pipeline.readers.refer import read_instances, read_refs
from pipeline.sam.models import SAM_MODELS
from pipeline.store import ArraySpec, create_store, open_store
from pipeline.zarr_limits import open_arrays
from tests.fuzz.readers import READERS as FUZZED
from tests.fuzz.telling import TELLING
from tests.pipeline.exchange.small_masks import SIZE, manifest_of
from tests.pipeline.small_data import SQUARE, jsonl_config, line, write_image
from train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from train.cli import job_config
from train.published.reading import read_torch_file

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "hostile.md"
QUICK_SECONDS = 5.0


def one_line(error):
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 1000
    return message


# Pickles.

SYSTEM = b"cos\nsystem\n"


class Runs:
    """Pickled, it is a call."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def pickles(mark):
    """Give pickles by name that would leave a mark if what they say was done."""
    touch = f"touch {mark}".encode()
    text = b"S'" + touch + b"'\n"
    short = b"\x8c" + bytes([len(touch)]) + touch
    system = b"\x8c\x02os\x8c\x06system"
    found = {
        "reduce": SYSTEM + b"(" + text + b"tR.",
        "inst": b"(" + text + b"ios\nsystem\n.",
        "obj": b"(" + SYSTEM + text + b"o.",
        "newobj": b"\x80\x02" + SYSTEM + text + b"\x85\x81.",
        "newobj_ex": b"\x80\x04" + system + b"\x93" + short + b"\x85}\x92.",
        "stack_global": b"\x80\x04" + system + b"\x93" + short + b"\x85R.",
        "stack_global_of_the_memo": b"\x80\x04\x8c\x02os\x94\x8c\x06system\x940h\x00h\x01\x93"
        + short
        + b"\x85R.",
        "a_class_alone": SYSTEM + b".",
        "build_with_setstate": b"\x80\x02cargparse\nNamespace\n)\x81}(S'__setstate__'\n"
        + SYSTEM
        + b"ub"
        + text
        + b"b.",
        "ext1": b"\x80\x02\x82\x01.",
        "ext2": b"\x80\x02\x83\x01\x00.",
        "ext4": b"\x80\x02\x84\x01\x00\x00\x00.",
        "persid": b"Ptouch\n.",
        "binpersid": text + b"Q.",
        "dotted_name": b"\x80\x04\x8c\x08builtins\x8c\x0beval.__call_\x93.",
        "getattr": b"cbuiltins\ngetattr\n.",
        "buffer_out_of_band": b"\x80\x05\x97.",
        "behind_a_stop": b"N0" + SYSTEM + b"(" + text + b"tR.",
        "frame_that_lies": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + system + b"\x93.",
        "frame_too_short": b"\x80\x04\x95" + struct.pack("<Q", 1) + system + b"\x93.",
        "text_of_a_terabyte": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"a.",
        "bytes_of_4_gib": b"\x80\x03B" + b"\xff" * 4 + b"a.",
        "text_of_4_gib": b"\x80\x02X" + b"\xff" * 4 + b"a.",
        "integer_of_2_gib": b"\x80\x02\x8b\xff\xff\xff\x7f\x01.",
        "integer_of_negative_length": b"\x80\x02\x8b\xff\xff\xff\xff\x01.",
        "memo_entry_never_put": b"\x80\x02h\x07.",
        "memo_of_its_own_list": b"\x80\x02]q\x00h\x00a.",
        "memo_entry_behind_zeros": b"(lp" + b"0" * 50 + b"2147483647\n.",
        "mark_never_closed": b"((((((.",
        "pops_too_much": b"00000.",
        "no_stop": b"\x80\x02]",
        "nothing": b"",
        "protocol_of_the_future": b"\x80\xff].",
        "not_an_instruction": b"\x80\x02\xfe.",
    }
    for protocol in range(6):
        found[f"os_system_by_protocol_{protocol}"] = pickle.dumps(Runs(mark), protocol=protocol)
    hostile = {k: v for k, v in TELLING["refs-pickle"].items() if not k.startswith(("ref-", "im"))}
    return found | {k: v for k, v in hostile.items() if k.startswith(("memo", "bytes", "ten", "h"))}


@pytest.mark.parametrize("name", pickles("x"))
def test_no_pickle_runs_anything_or_asks_for_memory(tmp_path, name):
    mark, path = tmp_path / "mark", tmp_path / "refs(unc).p"
    path.write_bytes(pickles(mark)[name])
    started = time.monotonic()
    with pytest.raises(ManifestError, match="it was not executed") as refused:
        read_refs(path)
    assert time.monotonic() - started < QUICK_SECONDS
    assert str(path) in one_line(refused)
    assert not mark.exists()


def test_python_would_have_run_the_pickle(tmp_path):
    """Without this the test above would pass if the pickles were merely broken."""
    for name in ("reduce", "inst", "obj", "stack_global", "stack_global_of_the_memo"):
        mark = tmp_path / name
        pickle.loads(pickles(mark)[name])
        assert mark.exists(), name


def test_a_list_that_is_named_twice_is_read(tmp_path):
    """What `_check_shared` refuses is sharing without end, not sharing."""
    tokens = ["left", "cat"]
    (tmp_path / "a.p").write_bytes(pickle.dumps([{"a": tokens, "b": tokens}] * 3, protocol=2))
    assert read_plain_pickle(tmp_path / "a.p") == [{"a": tokens, "b": tokens}] * 3


def test_nesting_is_read_to_any_depth_and_refused_as_refs(tmp_path):
    (tmp_path / "deep.p").write_bytes(b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".")
    with pytest.raises(ManifestError, match="expected a list of refs"):
        read_refs(tmp_path / "deep.p")


ALLOWED_CALLS = {
    ("pipeline/isolation.py", "pickle.loads"): "its own pipe, written by the parent process",
    ("pipeline/readers/pickles.py", "pickle.Unpickler"): "its find_class admits nothing",
}
BANNED = ("os.system", "os.popen", "marshal.loads", "marshal.load", "shelve.open", "eval", "exec")
UNPICKLES = ("pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load",
             "cloudpickle.loads", "joblib.load", "dill.loads")  # fmt: skip


def dangerous(source):
    """Give (line, what) of every call in a source text that may run what it reads."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            found += [(node.lineno, ast.unparse(b)) for b in node.bases
                      if ast.unparse(b) in UNPICKLES]  # fmt: skip
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {k.arg: ast.unparse(k.value) for k in node.keywords}
        bad = (
            name in BANNED
            or name in UNPICKLES
            or (name == "torch.load" and given.get("weights_only") != "True")
            or (name in ("np.load", "numpy.load") and given.get("allow_pickle") != "False")
            or (name.endswith("read_array") and given.get("allow_pickle", "False") != "False")
            or name in ("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load")
            or given.get("shell", "False") != "False"
            or "trust_remote_code" in given
        )
        if bad:
            found.append((node.lineno, name))
    return found


def test_no_module_loads_or_runs_what_may_be_code():
    seen = set()
    for package in ("pipeline", "refine", "train"):
        for path in sorted((ROOT / package).rglob("*.py")):
            file = path.relative_to(ROOT).as_posix()
            for number, what in dangerous(path.read_text()):
                assert (file, what) in ALLOWED_CALLS, f"{file}:{number}: {what}"
                seen.add((file, what))
    assert seen == set(ALLOWED_CALLS)


@pytest.mark.parametrize(
    "code",
    ["torch.load(path)", "torch.load(path, weights_only=False)", "np.load(path)", "eval(text)",
     "np.load(path, allow_pickle=True)", "yaml.load(text, Loader=yaml.Loader)", "exec(text)",
     "pickle.load(file)", "subprocess.run(text, shell=True)", "os.system(text)",
     "AutoModel.from_pretrained(name, trust_remote_code=True)",
     "class Mine(pickle.Unpickler): pass"],
)  # fmt: skip
def test_such_a_call_would_be_found(code):
    assert dangerous(code)


# Names that lead out of the image root.

OUTSIDE = (
    "../outside.png", "a/../../outside.png", "..\\outside.png", "a\\..\\..\\outside.png",
    "ABSOLUTE",
    "~/outside.png", "C:\\outside.png", "C:/outside.png", "\\\\host\\outside.png", "nul\0.png",
    "two\nlines.png", "half\ud800.png", "linked.png", "linked/outside.png", "linked/../outside.png",
    "chain.png", "pipe.png", "folder.png", "/dev/zero", "/dev/stdin", "x" * 300, "x/" * 3000, ".",
    "",
)  # fmt: skip
OPENERS = ("jsonl", "refer", "semires-split")


@pytest.fixture
def trap(tmp_path):
    """An image root with every kind of lure in it, and an image outside."""
    root = tmp_path / "root"
    write_image(root / "good.png")
    write_image(tmp_path / "outside.png")
    (root / "a").mkdir()
    (root / "folder.png").mkdir()
    (root / "linked.png").symlink_to(tmp_path / "outside.png")
    (root / "chain.png").symlink_to("linked.png")
    (root / "linked").symlink_to(tmp_path)
    (root / "inner.png").symlink_to("good.png")
    os.mkfifo(root / "pipe.png")
    return root


def opened(reader, root, names):
    """Open a data set whose annotations name these images."""
    instances = {
        "images": [{"id": n, "file_name": name} for n, name in enumerate(names)],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1, "segmentation": SQUARE}
            for n in range(len(names))
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }
    if reader == "jsonl":
        config = jsonl_config(root, [line(name, n) for n, name in enumerate(names)])
        return config, READERS[reader](config, root, 1, None)
    refs = [
        {"ref_id": n, "ann_id": n, "image_id": n, "split": "train", "sentences": [{"sent": "a"}]}
        for n in range(len(names))
    ]
    split = {"train": [{"iid": n, "mask_id": n, "refs": ["a"]} for n in range(len(names))]}
    for name, document in (("instances", instances), ("refs", refs), ("split", split)):
        (root / f"{name}.json").write_text(json.dumps(document))
    paths = {"instances": root / "instances.json", "images": root}
    if reader == "refer":
        config = DataConfig(reader="refer", annotations=root / "refs.json", **paths)
    else:
        config = DataConfig(
            reader="semires-split", annotations=root / "split.json", refs=root / "refs.json",
            **paths,
        )  # fmt: skip
    return config, READERS[reader](config, root, 1, None)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("reader", OPENERS)
def test_no_name_of_an_image_leads_out_of_the_root(trap, reader):
    names = [str(trap.parent / "outside.png") if n == "ABSOLUTE" else n for n in OUTSIDE]
    config, source = opened(reader, trap, [*names, "good.png", "inner.png"])
    found = collect(source, config, limit=None, progress=None)
    assert [found.images.paths[row] for row in found.objects.images] == ["good.png", "inner.png"]
    if reader == "jsonl":  # which tidies names, and an image fails once
        names = ["", *{posixpath.normpath(name) for name in names if name}]
    assert len(found.failures) == len(names)
    for failure in found.failures:
        assert "\n" not in failure.reason


@pytest.mark.timeout(60)
@pytest.mark.parametrize("reader", OPENERS)
def test_a_listed_folder_relaxes_nothing_but_links(trap, reader):
    """`data.links_into` names the very folder in which what is outside lies."""
    names = [str(trap.parent / "outside.png") if n == "ABSOLUTE" else n for n in OUTSIDE]
    config, source = opened(reader, trap, [*names, "good.png"])
    config = replace(config, links_into=(trap.parent,))
    found = collect(source, config, limit=None, progress=None)
    expected = ["linked.png", "linked/outside.png", "chain.png", "good.png"]
    assert [found.images.paths[row] for row in found.objects.images] == expected
    led = {failure.file for failure in found.failures if failure.leads_to}
    assert led <= {"linked/../outside.png"}


@pytest.mark.timeout(60)
def test_no_name_of_a_mask_leads_out_of_its_folder(trap):
    Image.new("L", (20, 12), 1).save(trap.parent / "outside.png")
    Image.new("L", (20, 12), 1).save(trap / "mask.png")
    names = [str(trap.parent / "outside.png") if n == "ABSOLUTE" else n for n in OUTSIDE]
    lines = [line("good.png", n, segmentation=name) for n, name in enumerate([*names, "mask.png"])]
    config = jsonl_config(trap, lines)
    source = READERS["jsonl"](config, trap, 1, None)
    found = collect(source, config, limit=None, progress=None)
    assert list(found.objects.ids) == [f"thing-{len(names)}"]
    assert len(found.failures) == len(names)


def test_an_image_root_may_be_a_link_itself(trap, tmp_path):
    (tmp_path / "by-link").symlink_to(trap)
    check_inside(tmp_path / "by-link", "good.png")
    check_inside(tmp_path / "by-link", "a/../good.png")
    with pytest.raises(ItemError, match="a link that leads out of it"):
        check_inside(tmp_path / "by-link", "linked.png")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("format_name", ["coco", "amg", "semires", "npz"])
def test_no_name_of_masks_made_before_leads_out_of_their_folder(tmp_path, format_name):
    """Names come from the manifest and from the file; what they would lead to is not opened."""
    folder = tmp_path / "masks"
    folder.mkdir()
    suffix = ".npz" if format_name == "npz" else ".json"
    (tmp_path / f"outside{suffix}").write_text("[]")
    os.mkfifo(folder / f"pipe{suffix}")
    names = ["good.jpg", "../outside.jpg", str(tmp_path / "outside.jpg"), "pipe.jpg", "x" * 300]
    manifest = manifest_of(names, refs=[[name.removesuffix(".jpg")] for name in names])
    if format_name == "npz":
        np.savez(folder / "good.npz", masks=np.ones((1, *SIZE), np.bool_))
    elif format_name == "coco":
        images = [
            {"id": n, "file_name": name} for n, name in enumerate(["good.jpg", "/etc/passwd"])
        ]
        (folder / "m.json").write_text(json.dumps({"images": images, "annotations": []}))
    else:
        (folder / "good.json").write_text("[]")
    place = folder / "m.json" if format_name == "coco" else folder
    source = open_masks(ImportConfig(format=format_name, path=place), manifest)
    source.masks_of(0, SIZE)
    for row in range(1, len(names)):
        with pytest.raises(ItemError) as refused:
            source.masks_of(row, SIZE)
        one_line(refused)


@pytest.mark.timeout(60)
def test_a_pipe_in_the_place_of_annotations_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    for read in (read_instances, read_refs, read_image_ids, read_plain_pickle):
        with pytest.raises(ManifestError, match="found a folder, pipe or device") as refused:
            read(tmp_path / "pipe.json")
        one_line(refused)
    config = ImportConfig(format="coco", path=tmp_path / "pipe.json")
    for use in (source_sha256, lambda config: open_masks(config, manifest_of(["1.jpg"]))):
        with pytest.raises(ConfigError, match=r"cannot be read \(no file\)"):
            use(config)


def test_no_manifest_leads_out_of_its_image_root(trap):
    manifest = replace(manifest_of(["good.png", "../outside.png", "linked.png"]), image_root=trap)
    assert manifest.image_file(0) == trap / "good.png"
    for row in (1, 2):
        with pytest.raises(ItemError, match=r"(leads|climbs) out of it"):
            manifest.image_file(row)


@pytest.mark.timeout(60)
def test_the_verb_does_not_wait_for_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "data.jsonl")
    path = tmp_path / "stages.yaml"
    path.write_text(f"version: 1\ndata: {{reader: jsonl, annotations: '{tmp_path}/data.jsonl'}}\n")
    where = ["--config", str(path), "--run-dir", str(tmp_path / "run")]
    result = CliRunner().invoke(prepare_data, where)
    assert result.exit_code == 1
    assert "data.annotations at" in result.stderr
    assert "found a pipe or device" in result.stderr


def test_the_verb_leaves_out_what_climbs_and_says_so(trap, tmp_path):
    lines = [line("good.png", 1), line("../outside.png", 2), line("linked.png", 3)]
    write_image(trap / "val.png", seed=1)
    config = jsonl_config(trap, [*lines, line("val.png", 4, split="val")])
    path = tmp_path / "stages.yaml"
    path.write_text(f"version: 1\ndata: {{reader: jsonl, annotations: '{config.annotations}'}}\n")
    where = ["--config", str(path), "--run-dir", str(tmp_path / "run")]
    result = CliRunner().invoke(prepare_data, where)
    assert result.exit_code == 3, result.output
    assert "'../outside.png', which climbs out of it" in result.stderr
    assert "1 links out of their folder: data.jsonl: line 3 linked.png leads to" in result.stderr
    assert f"'links_into: [{tmp_path}]' to the data section" in result.stderr


# Bombs.


def png_chunk(kind, data):
    crc = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + crc


def png_bomb():
    head = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    pixels = png_chunk(b"IDAT", zlib.compress(bytes(10**6)))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head) + pixels + png_chunk(b"IEND", b"")


def gif_bomb():
    return b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + b"\0\0\0," + struct.pack(
        "<HHHHB", 0, 0, 65_535, 65_535, 0
    ) + b"\x02\x02\x4c\x01\0;"  # fmt: skip


def tiff_bomb():
    tags = [(256, 4, 1, 60_000), (257, 4, 1, 60_000), (258, 3, 1, 8), (259, 3, 1, 1),
            (262, 3, 1, 1), (273, 4, 1, 200), (277, 3, 1, 1), (278, 4, 1, 60_000),
            (279, 4, 1, 10)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(300)


def jpeg_bomb(folder):
    write_image(folder / "a.jpg")
    content = bytearray((folder / "a.jpg").read_bytes())
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = struct.pack(">HH", 65_000, 65_000)
    return bytes(content)


def ppm_bomb():
    return b"P6 60000 60000 255\n"


@pytest.mark.parametrize("kind", ["png", "gif", "tiff", "jpeg", "ppm"])
def test_an_image_that_declares_too_many_pixels_is_refused_from_its_header(tmp_path, kind):
    bombs = {"png": png_bomb, "gif": gif_bomb, "tiff": tiff_bomb, "ppm": ppm_bomb}
    content = jpeg_bomb(tmp_path) if kind == "jpeg" else bombs[kind]()
    (tmp_path / f"bomb.{kind}").write_bytes(content)
    for read in (read_size, lambda path: read_image(path, canvas=64)):
        started = time.monotonic()
        with pytest.raises(ItemError, match=f"expected at most {MAX_PIXELS} pixels") as refused:
            read(tmp_path / f"bomb.{kind}")
        assert time.monotonic() - started < QUICK_SECONDS
        one_line(refused)


def test_text_that_a_png_unpacks_to_is_bounded(tmp_path):
    """A PNG may hold packed text, of which a few bytes unpack to any length."""
    text = png_chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(10**8)))
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 8, 0, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(b"\0\1\2"))
    content = b"\x89PNG\r\n\x1a\n" + head + text + pixels + png_chunk(b"IEND", b"")
    (tmp_path / "text.png").write_bytes(content)
    with pytest.raises(ItemError) as refused:
        read_image(tmp_path / "text.png", canvas=64)
    assert "Decompressed data too large" in one_line(refused)


# JSON.

HOSTILE_JSON = {
    "cut": '{"images": [{"id": 1',
    "deep": "[" * 10**6,
    "deep objects": '{"a":' * 10**5,
    "digits": '{"images": ' + "9" * 10**6 + "}",
    "twice": '{"images": [], "images": [], "annotations": [], "categories": []}',
    "infinite": '{"images": [{"id": Infinity}], "annotations": [], "categories": []}',
    "nan": '{"images": [{"id": NaN}], "annotations": [], "categories": []}',
    "half a pair": '{"images": [{"id": "\\ud800"}], "annotations": [], "categories": []}',
    "two marks": "\ufeff\ufeff{}",
    "nothing": "",
}


@pytest.mark.parametrize("name", HOSTILE_JSON)
def test_hostile_json_is_one_line_by_every_reader(tmp_path, name):
    path = tmp_path / "a.json"
    path.write_text(HOSTILE_JSON[name], encoding="utf-8")
    split = DataConfig(reader="semires-split", annotations=path, images=tmp_path)
    reads = [read_instances, read_refs, read_image_ids,
             lambda _: READERS["semires-split"](split, tmp_path, 1, None)]  # fmt: skip
    for read in reads:
        started = time.monotonic()
        with pytest.raises(ManifestError) as refused:
            read(path)
        assert time.monotonic() - started < QUICK_SECONDS
        assert "a.json" in one_line(refused)


def test_a_hostile_line_is_a_failure_and_the_next_is_read(tmp_path):
    write_image(tmp_path / "good.png")
    hostile = [text for text in HOSTILE_JSON.values() if text]
    config = jsonl_config(tmp_path, [*hostile, line("good.png", 1)])
    found = collect(READERS["jsonl"](config, tmp_path, 1, None), config, limit=None, progress=None)
    assert len(found.failures) == len(hostile)
    assert [found.images.paths[row] for row in found.objects.images] == ["good.png"]
    assert all("\n" not in failure.reason for failure in found.failures)


# YAML.


OF_SECTIONS = ("wide-pattern.yaml", "long-pattern.yaml", "no-depths.yaml", "heads-of-0.yaml")
"""Sound YAML whose values a section refuses; `benchmarks.fuzz` replays them."""


@pytest.mark.parametrize("name", [name for name in TELLING["config"] if name not in OF_SECTIONS])
def test_hostile_yaml_is_one_line_and_quick(tmp_path, name):
    path = tmp_path / "stages.yaml"
    path.write_bytes(TELLING["config"][name])
    started = time.monotonic()
    with pytest.raises(ConfigError) as refused:
        job_config(Settings(path, tmp_path, ()))
    assert time.monotonic() - started < QUICK_SECONDS
    assert one_line(refused).startswith(str(path))


@pytest.mark.parametrize("name", TELLING["set"])
def test_a_hostile_override_is_one_line(tmp_path, name):
    path = tmp_path / "stages.yaml"
    path.write_text("version: 1\ndata: {reader: scenes}\n")
    text = TELLING["set"][name].decode("utf-8", "surrogateescape")
    with pytest.raises(ConfigError) as refused:
        job_config(Settings(path, tmp_path, (text,)))
    one_line(refused)


def test_aliases_that_repeat_little_are_read(tmp_path):
    path = tmp_path / "stages.yaml"
    path.write_text("version: 1\ntrain: {a: &x {rate: 1e-4}, b: *x}\n")
    assert load_document(path)["train"] == {"a": {"rate": 1e-4}, "b": {"rate": 1e-4}}


# The table in the docs.


def zarr_store(folder, **entries):
    """Make a store of one column whose zarr.json says something else."""
    create_store(folder / "a.zarr", (ArraySpec(name="row", dtype="int32"),), 6, 3, {})
    path = folder / "a.zarr" / "row" / "zarr.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    return folder / "a.zarr"


def read_store(folder, **entries):
    store = zarr_store(folder, **entries)
    open_arrays(open_store(store), str(store))


def read_yaml(folder, name):
    (folder / "stages.yaml").write_bytes(TELLING["config"][name])
    parse_config(DataConfig, load_document(folder / "stages.yaml")["data"], "data")


def read_pickle_bytes(folder, content):
    (folder / "refs(unc).p").write_bytes(content)
    read_refs(folder / "refs(unc).p")


def read_written(folder, name, content, read):
    (folder / name).write_bytes(content)
    read(folder / name)


def read_lie(folder):
    with zipfile.ZipFile(folder / "1.npz", "w") as archive:
        header = b"{'descr': '|b1', 'fortran_order': False, 'shape': (1000000, 1000000), }\n"
        archive.writestr(
            "masks.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
        )
    open_masks(ImportConfig(format="npz", path=folder), manifest_of(["1.jpg"])).masks_of(0, SIZE)


def linked(folder, name, target, links_into=()):
    (folder / name).symlink_to(target)
    check_inside(folder, name, links_into)


def load_hostile_checkpoint(folder):
    saved = save_checkpoint(folder, Checkpoint(step=1, weights={}, state={"a": Plain()}, about={}))
    load_checkpoint(saved)


class Plain:
    """A class of somebody's own, which a checkpoint has no business to hold."""


def read_with_code(folder, read):
    torch.save({"model": Runs(folder / "mark")}, folder / "model.pth")
    read(folder / "model.pth")


SHOWN = {
    "pickle that calls": lambda f: read_pickle_bytes(f, SYSTEM + b"(S'true'\ntR."),
    "pickle that asks for 32 GiB": lambda f: read_pickle_bytes(
        f, TELLING["refs-pickle"]["memo-entry-2-billion.p"]
    ),
    "pickle that stands for 10^9 values": lambda f: read_pickle_bytes(
        f, TELLING["refs-pickle"]["ten-to-the-nine.p"]
    ),
    "published weights with code": lambda f: read_with_code(f, read_torch_file),
    "SAM checkpoint with code": lambda f: read_with_code(f, SAM_MODELS["vit_b"].build),
    "checkpoint with a class in it": load_hostile_checkpoint,
    "name that climbs": lambda f: check_inside(f, "../a.png"),
    "name that is absolute": lambda f: check_inside(f, "/etc/passwd"),
    "name of a drive": lambda f: check_inside(f, "C:\\a.png"),
    "link that leads out": lambda f: linked(f, "a.png", "/etc/hostname"),
    "link that leads elsewhere than `data.links_into`": lambda f: linked(
        f, "a.png", "/etc/hostname", [f / "blobs"]
    ),
    "name that climbs into such a folder": lambda f: check_inside(
        f, "../blobs/a.png", [f.parent / "blobs"]
    ),
    "name of two lines": lambda f: check_inside(f, "a\nb.png"),
    "pipe as an image": lambda f: (os.mkfifo(f / "a.png"), read_size(f / "a.png")),
    "pipe as annotations": lambda f: (os.mkfifo(f / "a.json"), read_instances(f / "a.json")),
    "image bomb": lambda f: read_written(f, "a.png", png_bomb(), read_size),
    "array bomb": read_lie,
    "JSON key given twice": lambda f: read_written(
        f, "a.json", HOSTILE_JSON["twice"].encode(), read_instances
    ),
    "YAML tag": lambda f: read_yaml(f, "tag.yaml"),
    "YAML billion laughs": lambda f: read_yaml(f, "billion-laughs.yaml"),
    "YAML nested deep": lambda f: read_yaml(f, "deep.yaml"),
    "YAML key that is no text": lambda f: read_yaml(f, "key-is-a-list.yaml"),
    "YAML number without end": lambda f: read_yaml(f, "digits-5000.yaml"),
    "store of a terabyte": lambda f: read_store(
        f,
        shape=[1 << 40],
        chunk_grid={"name": "regular", "configuration": {"chunk_shape": [1 << 40]}},
    ),
    "store with another codec": lambda f: read_store(
        f, codecs=[{"name": "bytes"}, {"name": "numcodecs.zlib", "configuration": {}}]
    ),
}
"""What the docs show the line of."""


def rows_of_docs():
    """Give the cells of the table's rows."""
    text = DOCS.read_text(encoding="utf-8")
    lines = [row for row in text.splitlines() if row.startswith("|") and "`tests/" in row]
    found = [row.strip("|").split(" | ") for row in lines]
    return [[cell.strip() for cell in row] for row in found]


@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", SHOWN)
def test_the_docs_show_the_line_as_it_is_printed(tmp_path, what):
    with pytest.raises(SemiresError) as refused:
        SHOWN[what](tmp_path)
    message = one_line(refused).replace(str(tmp_path), "DIR")
    shown = {row[0]: row[1] for row in rows_of_docs()}
    assert shown[what] == f"`{message}`"
    assert not (tmp_path / "mark").exists()


def test_the_docs_show_nothing_else():
    assert {row[0] for row in rows_of_docs() if row[1].startswith("`")} == set(SHOWN)


def test_every_test_that_the_docs_name_exists():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", DOCS.read_text(encoding="utf-8"))
    assert len(named) >= len(SHOWN)
    for file, name in named:
        tree = ast.parse((ROOT / file).read_text())
        functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert name in functions, f"{file}::{name}"


def test_the_docs_state_the_limits_as_they_are():
    text = DOCS.read_text(encoding="utf-8")
    assert MAX_PIXELS == 1 << 27
    assert zarr_limits.MAX_CHUNK_BYTES == zarr_limits.MAX_ROW_BYTES == 1 << 30
    assert zarr_limits.MAX_ROWS == 1 << 30
    assert MAX_OUTLINE_NUMBERS == 10**6
    for number, unit in (
        (plain_yaml.MAX_CHARACTERS, "characters"),
        (plain_yaml.MAX_VALUES, "values"),
        (plain_yaml.MAX_DEPTH, "levels"),
        (2 * MAX_MASKS, "masks of the image's size"),
        (zarr_limits.MAX_CHUNKS_PER_ROW, ""),
        (zarr_limits.MAX_CHUNKS_PER_SHARD, ""),
        (len(FUZZED), "readers"),
    ):
        assert f"{number:,} {unit}".replace(",", " ").strip() in text


def test_the_docs_show_what_became_of_every_fuzzed_reader():
    text = DOCS.read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([a-z-]+) \| ([0-9 |]+) \|$", text, re.MULTILINE))
    assert rows.keys() == {*FUZZED, "all"}
    for name, figures in rows.items():
        cases, accepted, refused, crashed, *_ = map(int, figures.split(" | "))
        assert accepted > 0, name
        assert cases == accepted + refused
        assert crashed == 0
    assert int(rows["all"].split(" | ")[0]) >= 100_000
