"""Shell: the masks of images, one after another: from a network, or from files made before."""

import functools
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.candidate_config import CandidatesConfig, generator_options
from pipeline.devices import resolve_device
from pipeline.errors import ItemError
from pipeline.exchange import ImportConfig, MaskSource, best_masks, open_masks
from pipeline.images import canvas_size, read_image
from pipeline.manifest import Manifest
from pipeline.read_ahead import read_ahead
from pipeline.sam.masks import Masks
from pipeline.sam.models import SAM_MODELS
from pipeline.sam.options import GeneratorOptions

_LOG = logging.getLogger(__name__)
Images = npt.NDArray[np.int64]
MasksOrError = tuple[int, Masks | ItemError]
"""Manifest row of an image, and its masks, or why it has none."""


def masks_of_images(
    config: CandidatesConfig, manifest: Manifest, images: Images, source: str
) -> Iterator[MasksOrError]:
    """Give the masks of images in canvas geometry, in their order.

    Args:
        config: What makes the masks.
        manifest: Where the images are listed.
        images: Manifest rows, (n,) int64.
        source: From `source_of_masks`; what is loaded is kept as long as it stays.

    Raises:
        SemiresError: If the network is damaged, or the files as a whole.
    """
    if config.masks is None:
        return _from_network(config, manifest, images, source)
    opened = _open_files(config.masks, manifest.fingerprint, source, _Hidden(manifest))
    return _from_files(config, manifest, images, opened)


@functools.lru_cache(maxsize=1)
def load_network(
    model: str, checkpoint: Path | None, _sha256: str, device: str, options: GeneratorOptions
) -> Any:
    """Build the network once per process and file content; workers are reused."""
    return SAM_MODELS[model].load(checkpoint, device, options)


def _from_network(
    config: CandidatesConfig, manifest: Manifest, images: Images, sha256: str
) -> Iterator[MasksOrError]:
    """Read and scale the next images in a thread while a network works on some."""
    entry, options = SAM_MODELS[config.model], generator_options(config)
    device = resolve_device(config.device)
    network = load_network(config.model, config.checkpoint, sha256, device, options)

    def read(image: int) -> Any:
        try:
            path, size = manifest.image_file(image), manifest.size_of(image)
            sha256 = manifest.image_sha256[image]
            pixels = read_image(path, canvas=config.canvas, size=size, sha256=sha256)
        except ItemError as error:
            return error
        return entry.prepare(network, pixels, options)

    step, rows = options.images_per_batch or 1, images.tolist()
    read_images = read_ahead(read, rows, depth=2 * step)
    for start in range(0, len(rows), step):
        batch = list(itertools.islice(read_images, step))
        good = [one for one in batch if not isinstance(one, ItemError)]
        masks = iter(entry.generate(network, good, options))
        for image, one in zip(rows[start : start + step], batch, strict=True):
            yield image, one if isinstance(one, ItemError) else next(masks)


def forget_loaded() -> None:
    """Let go of the network and the files that this process has kept."""
    load_network.cache_clear()
    _open_files.cache_clear()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class _Hidden:
    """A value that a cache does not look at."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hidden)

    def __hash__(self) -> int:
        return 0


@functools.lru_cache(maxsize=1)
def _open_files(
    config: ImportConfig, _manifest: str, _sha256: str, manifest: _Hidden
) -> MaskSource:
    """Open the files once per process and content."""
    return open_masks(config, manifest.value)


def _from_files(
    config: CandidatesConfig, manifest: Manifest, images: Images, opened: MaskSource
) -> Iterator[MasksOrError]:
    """Read the masks of one image after another."""
    for image in images.tolist():
        try:
            found = opened.read(image, canvas_size(manifest.size_of(image), config.canvas))
        except ItemError as error:
            yield image, error
            continue
        for note in found.notes:
            _LOG.warning(note)
        yield image, best_masks(found.masks, config.max_candidates)
