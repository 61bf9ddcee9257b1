"""Write a generated data set in the form of a user's own: images and JSON lines."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import ManifestError
from pipeline.records import atomic_write
from pipeline.scenes.scene import SPLITS, make_scene
from pipeline.segmentation import encode_mask

FORMAT_VERSION = 1
"""Raised by every change that makes another picture, mask, expression or file."""
_DONE = "scenes.json"
_CHUNK = 8


def write_scenes(
    root: Path,
    *,
    seed: int,
    counts: dict[str, int],
    progress: Callable[[], None] | None = None,
    workers: int = 1,
) -> Path:
    """Write scenes as JPEG files with `scenes.jsonl` and `parts.jsonl` beside them.

    `scenes.jsonl` has a line for every object that is referred to: id, image, expressions,
    segmentation (compressed COCO RLE), split and category. `parts.jsonl` has a line for every
    part of those objects: object (its id), part and segmentation. `scenes.json` is written last
    and says what was made; a data set that has it and was made alike is left untouched. A run
    that was interrupted is made again from its start and gives the same bytes.

    Args:
        root: Folder of the data set, made if need be.
        seed: Seed of the data set, at least 0.
        counts: Number of scenes of each split; a split left out has none.
        progress: Called once a scene.
        workers: Processes; the result does not depend on it.

    Returns:
        The path of `scenes.jsonl`.

    Raises:
        ManifestError: If `root` holds a data set made with another seed, counts or format.
        ValueError: If a split is unknown or a count is negative.
    """
    _check_counts(counts)
    made = {
        "format_version": FORMAT_VERSION,
        "seed": seed,
        "counts": {split: counts.get(split, 0) for split in SPLITS},
    }
    if _is_complete(root, made):
        return root / "scenes.jsonl"
    objects, parts = _write_all(root, made, workers, progress)
    atomic_write(root / "parts.jsonl", "".join(parts).encode())
    atomic_write(root / "scenes.jsonl", "".join(objects).encode())
    atomic_write(root / _DONE, (json.dumps(made, indent=2) + "\n").encode())
    return root / "scenes.jsonl"


def _write_all(
    root: Path, made: dict[str, Any], workers: int, progress: Callable[[], None] | None
) -> tuple[list[str], list[str]]:
    """Write all images; give the lines of objects and of parts, in the order of the images."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    jobs = [(split, index) for split, count in made["counts"].items() for index in range(count)]
    objects: list[str] = []
    parts: list[str] = []
    with _mapper(workers) as mapper:
        for object_lines, part_lines in mapper(partial(_write_scene, root, made["seed"]), jobs):
            objects += object_lines
            parts += part_lines
            if progress is not None:
                progress()
    return objects, parts


def _check_counts(counts: dict[str, int]) -> None:
    for split, count in counts.items():
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        if count < 0:
            raise ValueError(f"number of scenes of split {split!r} must be at least 0, got {count}")


def _is_complete(root: Path, made: dict[str, Any]) -> bool:
    """Tell whether `root` already holds this data set."""
    done = root / _DONE
    if not done.exists():
        return False
    try:
        found = json.loads(done.read_text())
    except json.JSONDecodeError as error:
        raise ManifestError(f"{done} is not JSON ({error}); delete {root} to start over") from error
    for key, value in made.items():
        if found.get(key) != value:
            raise ManifestError(
                f"{root} holds scenes made with {key} {found.get(key)!r}, now {value!r}; "
                "delete it or choose another folder"
            )
    return (root / "scenes.jsonl").exists() and (root / "parts.jsonl").exists()


Lines = tuple[list[str], list[str]]
Mapper = Callable[[Callable[[tuple[str, int]], Lines], Iterable[tuple[str, int]]], Iterable[Lines]]


@contextmanager
def _mapper(workers: int) -> Iterator[Mapper]:
    """Give a map that keeps the order, over one or several processes."""
    if workers <= 1:
        yield map
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield partial(pool.map, chunksize=_CHUNK)


def _write_scene(root: Path, seed: int, job: tuple[str, int]) -> Lines:
    """Write one image; give the JSON lines of its objects and of their parts."""
    split, index = job
    scene = make_scene(seed, split, index)
    stem = f"{split}_{index:05d}"
    buffer = BytesIO()
    Image.fromarray(scene.image).save(buffer, "JPEG", quality=95, subsampling=0)
    path = root / "images" / f"{stem}.jpg"
    # Not `atomic_write`: forcing every image to the disk costs more than making it.
    partial_path = path.with_suffix(f".{os.getpid()}.partial")
    partial_path.write_bytes(buffer.getvalue())
    partial_path.replace(path)
    objects: list[str] = []
    parts: list[str] = []
    for number, one in enumerate(scene.objects):
        if not one.expressions:
            continue
        name = f"{stem}-{number}"
        record = {
            "id": name,
            "image": f"images/{stem}.jpg",
            "expressions": list(one.expressions),
            "segmentation": _rle(one.mask),
            "split": split,
            "category": one.category,
        }
        objects.append(json.dumps(record) + "\n")
        for part, mask in one.parts.items():
            line = {"object": name, "part": part, "segmentation": _rle(mask)}
            parts.append(json.dumps(line) + "\n")
    return objects, parts


def _rle(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Give the compressed COCO RLE of a mask, its counts as text."""
    return {"size": list(mask.shape), "counts": encode_mask(mask).decode("ascii")}
