"""Small valid files of every kind that users hand us, all made here; `python -m tests.fuzz.seeds`
writes those that the corpus lacks."""

import io
import json
import pickle
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from pipeline.columns import file_sha256
from pipeline.paths import RunPaths
from refine.stage import RefineConfig, refine_labels
from tests.conftest import SMALL_JOB
from tests.fuzz.telling import TELLING
from tests.pipeline.exchange.small_masks import (
    coco_document,
    plain_rle,
    record,
    semires_rle,
    two_masks,
)
from tests.refine.small_run import Picture, make_run
from train.checkpoint import Checkpoint, save_checkpoint
from train.outcomes import Outcomes, save_outcomes

CANVAS = 16
SQUARE = [[2, 2, 8, 2, 8, 6, 2, 6]]
REFS = [
    {
        "ref_id": number,
        "ann_id": 10 + number,
        "image_id": 100,
        "category_id": 7,
        "split": split,
        "file_name": "COCO_train2014_000000000100_11.jpg",
        "sent_ids": [0],
        "sentences": [{"sent_id": 0, "raw": "The LEFT cat!", "sent": "the left cat", "tokens": []}],
    }
    for number, split in ((1, "train"), (2, "val"))
]
INSTANCES = {
    "images": [{"id": 100, "file_name": "a.png", "height": 12, "width": 20}],
    "annotations": [
        {"id": 11, "image_id": 100, "category_id": 7, "segmentation": SQUARE},
        {
            "id": 12,
            "image_id": 100,
            "category_id": 7,
            "segmentation": {"size": [12, 20], "counts": [30, 10, 200]},
        },
    ],
    "categories": [{"id": 7, "name": "cat"}],
}
SPLIT = {
    "train": [{"iid": 100, "bbox": [1, 1, 2, 2], "cat_id": 7, "mask_id": 1, "refs": ["a", "b"]}],
    "val": [{"iid": 100, "bbox": [1, 1, 2, 2], "cat_id": 7, "mask_id": 2, "refs": ["c"]}],
}
LINES = [
    {"image": "images/a.png", "expressions": ["left cat"], "segmentation": SQUARE, "id": "one"},
    {
        "image": "images/a.png",
        "expression": "right cat",
        "segmentation": {"size": [12, 20], "counts": [30, 10, 200]},
        "split": "val",
        "category": "cat",
    },
    {"image": "images/a.png", "expression": "the mask", "segmentation": "mask.png", "id": 3},
]
ANCHORS = """\
version: 1
data: {reader: jsonl, annotations: data.jsonl, labelled: &few {ratio: 0.25, seed: 3}}
candidates:
  canvas: 1e2
teacher: {batch_size: 8}
"""


def picture(seed: int = 0) -> np.ndarray:
    """Give an image, (12, 20, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (12, 20, 3), dtype=np.uint8)


def write_data(folder: Path) -> None:
    """Write the data sets that the annotations are about."""
    (folder / "images").mkdir()
    Image.fromarray(picture()).save(folder / "images" / "a.png")
    (folder / "mask.png").write_bytes(_image_bytes("PNG", mask_image()))
    (folder / "refs(unc).p").write_bytes(pickle.dumps(REFS, protocol=2))
    (folder / "refs.json").write_text(json.dumps(REFS))
    (folder / "instances.json").write_text(json.dumps(INSTANCES))


def small_run(folder: Path) -> Path:
    """Give a finished run: copied, if one lies beside, else made."""
    ready = folder.parent.parent / "ready-run"
    if not ready.exists():
        _make_small_run(ready)
    shutil.copytree(ready, folder)
    return folder


def _make_small_run(run: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(2):
        truth = np.zeros((1, 12, 16), np.bool_)
        truth[0, 2:8, 3:9] = True
        masks = np.concatenate((truth, ~truth))
        logits = np.where(truth[:, ::4, ::4], 2, -2) + rng.normal(size=(1, 3, 4))
        pictures.append(Picture(masks=masks, logits=logits.astype(np.float16), truth=truth))
    make_run(run, pictures)
    (run / "manifest" / "failures.jsonl").write_text(
        '{"file": "b.png", "item": "data.jsonl: line 2", "reason": "empty", "severity": "failed"}\n'
        '{"file": "c.png", "item": "data.jsonl: line 3", "leads_to": "/blobs/c.png", '
        '"reason": "expected a file inside images, found a link", "severity": "failed"}\n'
    )
    about = json.loads((run / "manifest" / "manifest.json").read_text())
    about["links_into"] = ["../images", "/blobs"]
    (run / "manifest" / "manifest.json").write_text(json.dumps(about, indent=1, sort_keys=True))
    refine_labels(RefineConfig(shard_size=2, measure=False), run, 1)
    ones = np.ones(2, np.int64)
    outcomes = Outcomes(
        expression=np.arange(2),
        image=np.arange(2),
        true_area=ones * 36,
        image_area=ones * 192,
        intersection={"whole": ones * 30},
        union={"whole": ones * 40},
    )
    save_outcomes(run / "round-1" / "outcomes-val.npz", outcomes)
    found = {
        "file": "outcomes-val.npz",
        "sha256": file_sha256(run / "round-1" / "outcomes-val.npz"),
    }
    document = {"val": {"inputs": {"manifest": "0" * 64}, "outcomes": found}}
    (run / "round-1" / "metrics.json").write_text(json.dumps(document))
    checkpoint = Checkpoint(
        step=2,
        weights={"student": {"a.weight": torch.ones(2, 3)}},
        state={"optimizer": {"lr": 0.1, "steps": [1, 2], "moment": torch.ones(3)}},
        about={"round": 1},
    )
    save_checkpoint(run / "student", checkpoint)


def mask_image() -> Image.Image:
    """Give a mask of one channel."""
    mask = np.zeros((12, 20), np.uint8)
    mask[3:7, 4:12] = 255
    return Image.fromarray(mask)


def _image_bytes(kind: str, image: Image.Image, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def _images() -> Iterator[tuple[str, bytes]]:
    whole = Image.fromarray(picture())
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("PNG", "GIF", "BMP", "TIFF", "PPM"):
        yield f"rgb.{kind.lower()}", _image_bytes(kind, whole)
    yield "turned.jpeg", _image_bytes("JPEG", whole, exif=exif, quality=40)
    yield "progressive.jpeg", _image_bytes("JPEG", whole, progressive=True, quality=30)
    yield "cmyk.jpeg", _image_bytes("JPEG", whole.convert("CMYK"), quality=30)
    yield "lossless.webp", _image_bytes("WEBP", whole, lossless=True)
    yield "lossy.webp", _image_bytes("WEBP", whole, quality=20)
    yield "palette.png", _image_bytes("PNG", whole.quantize(4), transparency=b"\0\x80\xff\xff")
    yield "grey-alpha.png", _image_bytes("PNG", whole.convert("LA"))
    deep = Image.fromarray(np.asarray(whole.convert("L"), np.uint16) * 257)
    yield "deep.png", _image_bytes("PNG", deep)
    yield "packed.tiff", _image_bytes("TIFF", whole, compression="tiff_lzw")
    frames = [Image.fromarray(picture(seed)).quantize(8) for seed in (1, 2)]
    yield "moving.gif", _image_bytes("GIF", frames[0], save_all=True, append_images=frames[1:])


def _torch_bytes(value: Any, *, legacy: bool = False) -> bytes:
    content = io.BytesIO()
    torch.save(value, content, _use_new_zipfile_serialization=not legacy)
    return content.getvalue()


def _npz(**arrays: Any) -> bytes:
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def valid_files(run: Path) -> dict[str, dict[str, bytes]]:
    """Give valid files of every reader, by the names of `tests.fuzz.readers.READERS`."""
    first, second = two_masks()
    tensors = {"image_encoder.pos_embed": torch.ones(1, 2, 2, 8), "mask.bias": torch.ones(3)}
    bert = {"bert.embeddings.word_embeddings.weight": torch.ones(4, 3)}
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "left", "cat", "the", "##s"]
    files: dict[str, dict[str, bytes]] = {
        "config": {"small.yaml": SMALL_JOB.encode(), "anchors.yaml": ANCHORS.encode()},
        "set": {
            "train": b"train.ema_decay=0.9\ntrain.burn_in.steps=3\n",
            "data": b"data.labelled={ratio: 0.25}\ndata.scenes={train: 8, val: 3}\n",
            "refine": b"refine.chain=[{strategy: cpi-u}, {strategy: pwa}]\nrounds.rounds=1\n",
        },
        "refs-pickle": {f"protocol-{p}.p": pickle.dumps(REFS, protocol=p) for p in range(6)},
        "instances": {"instances.json": _json(INSTANCES)},
        "jsonl": {"data.jsonl": b"\n".join(map(_json, LINES)), "one.jsonl": _json(LINES[0])},
        "ids-text": {"ids.txt": b"5\n\n ./a/b.png \n5\n"},
        "ids-json": {"list.json": b'[5, "x"]', "split.json": _json(SPLIT)},
        "split": {"split.json": _json(SPLIT)},
        "image": dict(_images()),
        "mask-png": {
            "mask.png": _image_bytes("PNG", mask_image()),
            "bits.png": _image_bytes("PNG", mask_image().convert("1")),
        },
        "coco": {
            "m.json": _json(
                coco_document(
                    {1: "1.jpg", 2: "2.jpg"},
                    [
                        (1, record(first)),
                        (1, {"segmentation": plain_rle(second)}),
                        (2, {"segmentation": SQUARE}),
                        (2, record(second, score=0.5)),
                    ],
                )
            )
        },
        "amg": {
            "1.json": _json([record(first), record(second)]),
            "image.json": _json(
                {"image": {"height": 10, "width": 12}, "annotations": [{"segmentation": SQUARE}]}
            ),
        },
        "semires": {"ref-0.json": _json([semires_rle(first), semires_rle(second)])},
        "npz": {
            "masks.npz": _npz(masks=two_masks(), predicted_iou=np.float32([0.5, 0.75])),
            "packed.npz": _npz(
                packed=np.packbits(two_masks(), axis=2),
                size=np.array([10, 12]),
                point=np.ones((2, 2)),
                stability_score=np.ones(2),
            ),
        },
        "sam-checkpoint": {
            "tensors.pth": _torch_bytes(tensors),
            "legacy.pth": _torch_bytes(tensors, legacy=True),
        },
        "sam-safetensors": {"tensors.safetensors": save(tensors)},
        "published": {
            "model.pth": _torch_bytes({"model": bert, "epoch": 3, "lr": [0.1]}),
            "legacy.pth": _torch_bytes(bert, legacy=True),
        },
        "safetensors": {"tensors.safetensors": save(tensors, {"format": "pt"})},
        "hub-config": {"config.json": b'{"model_type": "sam", "vision_config": {"depth": 2}}'},
        "vocabulary": {"vocab.txt": "".join(f"{word}\n" for word in words).encode()},
    }
    return files | _run_files(run)


def _run_files(run: Path) -> dict[str, dict[str, bytes]]:
    paths = RunPaths(run)
    stage = run / "candidates.stage"
    labels, teacher, candidates = paths.labels(1), paths.teacher(1), paths.candidates
    student = run / "student" / "step-00000002"
    places = {
        "manifest": [run / "manifest" / "manifest.json"],
        "failures": [run / "manifest" / "failures.jsonl"],
        "column": [run / "manifest" / "object_image.npy"],
        "text-offsets": [run / "manifest" / "expression_text.offsets.npy"],
        "truth": [run / "manifest" / "object_rle.data.npy"],
        "metrics": [run / "round-1" / "metrics.json"],
        "zarr-group": [candidates / "zarr.json"],
        "zarr-array": [candidates / "cells" / "zarr.json"],
        "zarr-column": [candidates / "num_candidates" / "zarr.json"],
        "zarr-payload": [candidates / "membership" / "zarr.json"],
        "zarr-chunk": [candidates / "cells" / "c" / "0" / "0" / "0"],
        "zarr-scalars": [candidates / "num_cells" / "c" / "0"],
        "teacher-array": [teacher / "logit" / "zarr.json"],
        "labels-array": [labels / "mask" / "zarr.json"],
        "labels-chunk": [labels / "mask" / "c" / "0" / "0" / "0"],
        "checkpoint-about": [student / "checkpoint.json"],
        "checkpoint-state": [student / "state.pt"],
    }
    files = {name: {p.name: p.read_bytes() for p in found} for name, found in places.items()}
    for name, path in (
        ("plan", stage / "plan.json"),
        ("done-record", stage / "done" / "00000.json"),
    ):
        whole = path.read_bytes()
        document = json.loads(whole)
        document.pop("check", None)  # without it a changed document is not refused at once
        files[name] = {"checked.json": whole, "unchecked.json": _json(document)}
    return files


def main(folder: Path = Path(__file__).parent / "corpus") -> None:
    """Write the files that the corpus lacks."""
    with tempfile.TemporaryDirectory() as place:
        run = small_run(Path(place) / "reader" / "run")
        for name, valid in valid_files(run).items():
            files = valid | TELLING.get(name, {})
            (folder / name).mkdir(parents=True, exist_ok=True)
            for file, content in files.items():
                if not (folder / name / file).exists():
                    (folder / name / file).write_bytes(content)


if __name__ == "__main__":
    main()
