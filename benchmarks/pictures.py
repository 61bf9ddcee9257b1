"""Images for benchmarks: generated scenes of several sizes, and photographs if there are any."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.images import read_image
from pipeline.scenes.scene import make_scene

_SIZES = ((480, 640), (640, 480), (256, 256), (333, 500), (97, 301), (601, 400))


def generated(count: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Give scenes (H, W, 3) RGB that no weights were trained on, at photo-like sizes."""
    for index in range(count):
        height, width = _SIZES[index % len(_SIZES)]
        scene = Image.fromarray(make_scene(0, "val", index).image)
        yield np.array(scene.resize((width, height), Image.Resampling.BICUBIC))


def photographs(folder: Path, count: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Give the first JPEG files of a folder, by name, at no more than 640 pixels."""
    for path in sorted(folder.glob("*.jpg"))[:count]:
        yield read_image(path, canvas=640)
