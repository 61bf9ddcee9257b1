"""`prepare-data` of many images: its seconds and its memory; a part of `make bench-scale`.

Every image is a file of its own name, a polygon and five sentences; the pictures are few, under
many names. Training and validation stand mixed: all columns have to be put into another order.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.data_config import DataConfig, LabelledConfig
from pipeline.prepare import prepare_data

EXPRESSIONS_PER_IMAGE = 5
SIZE = (480, 640)
_LINKS = 50_000
"""Names of a file; ext4 takes 65 000."""
_FOLDER = 10_000
_VAL = 20
"""One image of so many is of the validation split."""


def make_data(folder: Path, num_images: int) -> None:
    """Write images and data.jsonl into a new folder."""
    with (folder / "data.jsonl").open("w", encoding="utf-8") as lines:
        for number in range(num_images):
            name = f"images/{number // _FOLDER:05d}/{number:09d}.png"
            picture = folder / f"{number // _LINKS}.png"
            if number % _LINKS == 0:
                colour = (number // _LINKS % 256, 90, 160)
                Image.new("RGB", SIZE[::-1], colour).save(picture)
            if number % _FOLDER == 0:
                (folder / name).parent.mkdir(parents=True)
            os.link(picture, folder / name)
            lines.write(json.dumps(_line(name, number)) + "\n")


def _line(name: str, number: int) -> dict[str, Any]:
    texts = [f"the thing on the left {number} {k}" for k in range(EXPRESSIONS_PER_IMAGE)]
    return {
        "image": name,
        "id": f"{number}",
        "category": "thing",
        "split": "train" if number % _VAL else "val",
        "expressions": texts,
        "segmentation": [_outline(number)],
    }


def _outline(number: int) -> list[float]:
    """Give 16 points on an ellipse, x and y in turn, pixels."""
    centre, radii = (200 + number % 240, 160 + number % 160), (60 + number % 70, 40 + number % 50)
    turns = [2 * math.pi * k / 16 for k in range(16)]
    return [
        round(middle + radius * wave(turn), 1)
        for turn in turns
        for middle, radius, wave in zip(centre, radii, (math.cos, math.sin), strict=True)
    ]


def measure_preparing(folder: Path, num_images: int) -> Iterator[tuple[str, str]]:
    """Prepare so many images in a process of its own."""
    folder.mkdir(parents=True)
    make_data(folder, num_images)
    command = [sys.executable, "-m", "benchmarks.preparing", "--once", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout)
    first, most = found["first_mib"], found["peak_mib"]
    assert found["images"] == num_images
    each = (most - first) * 2**20 / num_images
    yield f"prepare-data of {num_images} images", _seconds(found)
    yield "its memory", f"{most:.0f} MiB at most, {first:.0f} before: {each:.0f} bytes per image"


def _seconds(found: dict[str, float]) -> str:
    return f"{found['seconds']:.0f} s, {found['processor_seconds']:.0f} of them of the processor"


def prepare_once(folder: Path) -> dict[str, float]:
    """Prepare what `make_data` wrote; give seconds and the memory before and at most, MiB."""
    config = DataConfig(
        reader="jsonl", annotations=folder / "data.jsonl", labelled=LabelledConfig(ratio=0.1)
    )
    first, started = peak_mib(), time.monotonic()
    summary = prepare_data(config, folder / "run")
    seconds = time.monotonic() - started
    return {
        "images": summary.images,
        "seconds": seconds,
        "processor_seconds": time.process_time(),
        "first_mib": first,
        "peak_mib": peak_mib(),
    }


def peak_mib() -> float:
    """Give the most that this process had resident (Linux).

    Not `ru_maxrss`: that of the process that started this one is handed down in it.
    """
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    """Print every figure on a line of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="where to write; a temporary one by default")
    parser.add_argument("--once", type=Path, help="used by this script itself")
    options = parser.parse_args()
    if options.once is not None:
        print(json.dumps(prepare_once(options.once)))
        return
    with tempfile.TemporaryDirectory(prefix="semires-preparing-", dir=options.folder) as name:
        for what, figure in measure_preparing(Path(name) / "data", options.images):
            print(f"{what:55} {figure}", flush=True)


if __name__ == "__main__":
    main()
