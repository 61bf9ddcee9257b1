"""Small data sets made on the spot, and where the shared real ones lie."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.data_config import DataConfig

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
PHOTOS = SHARED / "photos"
RELEASED = SHARED / "semires-split" / "refcoco_1%_image.json"

needs_photos = pytest.mark.skipif(not PHOTOS.is_dir(), reason="the shared photos are absent")
needs_released = pytest.mark.skipif(not RELEASED.is_file(), reason="the released split is absent")

SQUARE = [[2, 2, 8, 2, 8, 6, 2, 6]]


def write_image(path: Path, size: tuple[int, int] = (12, 20), seed: int = 0) -> Path:
    """Write a random RGB image of (H, W)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def line(name: str, number: int, /, **changes: Any) -> dict[str, Any]:
    """Give one valid line of a jsonl data set."""
    return {
        "image": name,
        "expressions": [f"left thing {number}"],
        "segmentation": SQUARE,
        "split": "train",
        "id": f"thing-{number}",
        **changes,
    }


def write_lines(path: Path, lines: list[Any]) -> Path:
    """Write lines; text is written as it is, everything else as JSON."""
    texts = [entry if isinstance(entry, str) else json.dumps(entry) for entry in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def jsonl_config(folder: Path, lines: list[Any], **changes: Any) -> DataConfig:
    """Write lines as data.jsonl and give the config that reads them."""
    path = write_lines(folder / "data.jsonl", lines)
    return DataConfig(reader="jsonl", annotations=path, **changes)


def train_and_val(folder: Path, num_train: int = 10, num_val: int = 2) -> list[dict[str, Any]]:
    """Write images and give one line for each."""
    lines = []
    for number in range(num_train + num_val):
        name = f"images/{number}.png"
        write_image(folder / name, seed=number)
        lines.append(line(name, number, split="train" if number < num_train else "val"))
    return lines
