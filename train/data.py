"""Shell: the samples of a round, read lazily in each loading process."""

from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from pipeline.errors import ItemError, StoreError
from pipeline.images import read_image
from pipeline.manifest import Manifest, load_manifest
from pipeline.paths import RunPaths
from pipeline.places import Place, here, reaching
from pipeline.records import FailedItem
from refine.labels import NO_LABEL, LabelReader
from refine.strategies import KEEP_LABEL, UNTRAINED
from train import augment
from train.config import TrainConfig
from train.label_rows import FastLabelReader
from train.loss import IGNORE
from train.order import LABELLED, Draw
from train.text import TextEncoder, load_text_encoder

SampleArrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample as it is loaded: arrays as in `batches.Batch`, without the first axis."""

    arrays: SampleArrays
    row: int
    """Manifest row of the expression."""
    labelled: bool
    damage: str | None
    """What is wrong, if it cannot be read."""


class SquareCache:
    """Decoded images at the network's square, the least recently used dropped first."""

    def __init__(self, manifest: Manifest, side: int, capacity_bytes: int) -> None:
        self._manifest = manifest
        self._side = side
        self._capacity = max(1, capacity_bytes // (side * side * 3))
        self._kept: OrderedDict[int, npt.NDArray[np.uint8]] = OrderedDict()

    def square(self, image: int) -> npt.NDArray[np.uint8]:
        """Give manifest row `image` as (S, S, 3) uint8.

        Raises:
            ItemError: If the file cannot be used.
        """
        if image in self._kept:
            self._kept.move_to_end(image)
            return self._kept[image]
        height, width = (int(side) for side in self._manifest.image_size[image])
        path, sha256 = self._manifest.image_file(image), self._manifest.image_sha256[image]
        pixels = read_image(path, canvas=None, size=(height, width), sha256=sha256)
        square = augment.resize_image(pixels, self._side)
        self._kept[image] = square
        if len(self._kept) > self._capacity:
            self._kept.popitem(last=False)
        return square


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleIndex:
    """What a round may draw from: manifest rows of labelled expressions, rows of labels."""

    labelled: npt.NDArray[np.int64]
    """(n,) expression rows whose truth is used."""
    refined: npt.NDArray[np.int64]
    """(m,) rows of the round's labels.zarr that hold a label; empty in round 0."""

    def first(self, count: int, *, stream: int) -> "SampleIndex":
        """Keep the first `count` samples of one stream, for trials."""
        if stream == LABELLED:
            return replace(self, labelled=self.labelled[:count])
        return replace(self, refined=self.refined[:count])

    @property
    def counts(self) -> tuple[int, int]:
        """Samples per stream."""
        return len(self.labelled), len(self.refined)


def build_index(
    manifest: Manifest,
    labels: Place | None,
    held_out: npt.NDArray[np.int64] | None = None,
) -> tuple[SampleIndex, tuple[FailedItem, ...]]:
    """List what a round may draw from.

    Labelled images are few: each is decoded once here, so that a bad one is left out instead of
    ending the training. Images with a refined label were decoded by the teacher.

    Args:
        manifest: The data set; only expressions of labelled images with a truth are used.
        labels: The round's labels.zarr; None for round 0.
        held_out: Manifest rows of labelled images that are not used; None uses all.

    Returns:
        The index, and the labelled images that cannot be used.

    Raises:
        StoreError: If nothing is labelled, or there is no label.
    """
    rows = manifest.expressions_of("train", labelled=True)
    lengths = np.diff(manifest.object_rle.offsets)
    rows = rows[lengths[manifest.expression_object[rows]] > 0]
    if held_out is not None:
        rows = rows[~np.isin(manifest.expression_image[rows], held_out)]
    images = manifest.expression_image[rows]
    bad: dict[int, FailedItem] = {}
    for image in np.unique(images):
        try:
            path, sha256 = manifest.image_file(int(image)), manifest.image_sha256[int(image)]
            read_image(path, canvas=None, size=manifest.size_of(image), sha256=sha256)
        except ItemError as error:
            item = manifest.image_path[image]
            bad[int(image)] = FailedItem(item=item, reason=f"left out of training: {error}")
    labelled = rows[~np.isin(images, list(bad))]
    if not len(labelled):
        raise StoreError(_why_nothing_is_labelled(tuple(bad.values())))
    refined = np.zeros(0, np.int64)
    if labels is not None:
        reader = LabelReader(labels)
        left_out = [NO_LABEL, *(reader.code_of(name) for name in UNTRAINED)]
        refined = np.flatnonzero(~np.isin(reader.scalars()["source"], left_out))
        if not len(refined):
            raise StoreError(f"{labels}: holds no label: all is labelled, or all items failed")
    index = SampleIndex(labelled=np.asarray(labelled, np.int64), refined=refined)
    return index, tuple(bad.values())


def _why_nothing_is_labelled(bad: tuple[FailedItem, ...]) -> str:
    expected = "expected labelled training expressions with masks, found none"
    if not bad:
        return f"{expected}; raise data.labelled"
    more = f", and {len(bad) - 1} more images; mend them" if len(bad) > 1 else "; mend the image"
    return f"{expected} whose image can be read: {bad[0].item} {bad[0].reason}{more}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSource:
    """Where the samples of one round come from, and how large they are made."""

    config: TrainConfig
    run_dir: Place
    number: int
    index: SampleIndex
    side: int
    """S, side of the network's square, pixels."""
    vocabulary: Path
    """What `load_text_encoder` reads."""


class RoundDataset(Dataset[Sample]):
    """Samples of one round by their draw; picklable, opens files in the process that reads."""

    def __init__(self, source: RoundSource) -> None:
        self._source = source
        self._open: _OpenRound | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}

    def __getitem__(self, draw: Draw) -> Sample:
        """Load one sample.

        Raises:
            SemiresError: If its label or image cannot be read and `damaged` is `stop`.
        """
        if self._open is None:
            self._open = _OpenRound(self._source)
        return self._open.load(draw)


class _OpenRound:
    """Open stores, tokenizer and caches of one loading process."""

    def __init__(self, source: RoundSource) -> None:
        paths, config, number = RunPaths(here(source.run_dir)), source.config, source.number
        self._config = config
        self._number = number
        self._side = source.side
        self._index = source.index
        self._manifest = load_manifest(paths.manifest)
        self._manifest.require_images()
        self._labels = FastLabelReader(paths.labels(number)) if number else None
        self._squares = SquareCache(self._manifest, source.side, config.cache_bytes)
        self._text: TextEncoder = load_text_encoder(source.vocabulary, config.network.max_tokens)
        self._run_dir = source.run_dir

    def load(self, draw: Draw) -> Sample:
        with reaching(self._run_dir):  # an object store out of reach is no damage to skip
            return self._load(draw)

    def _load(self, draw: Draw) -> Sample:
        labelled = draw.stream == LABELLED
        try:
            arrays, row = self._read(draw)
        except (StoreError, ItemError) as error:
            if self._config.damaged == "stop":
                raise
            reason = " ".join(str(error).split())
            row = self._row(draw)
            return Sample(self._blank(row, refined=labelled), row, labelled, reason)
        return Sample(arrays, row, labelled, None)

    def _row(self, draw: Draw) -> int:
        """Give the manifest row of a sample's expression."""
        if draw.stream == LABELLED:
            return int(self._index.labelled[draw.index])
        assert self._labels is not None, "round 0 draws no refined labels"
        return int(self._labels.scalars()["expression"][self._index.refined[draw.index]])

    def _blank(self, row: int, *, refined: bool) -> SampleArrays:
        """Give what stands for a sample that cannot be read: grey, its label ignored."""
        side = self._side
        ids_NL, tokens_NL = self._text.encode([self._manifest.expression_text[row]])
        return {
            "image": np.zeros((3, side, side), np.float32),
            "label": np.full((side, side), IGNORE, np.uint8),
            "weight": np.zeros((side, side), np.float32),
            "token_ids": ids_NL[0],
            "token_mask": tokens_NL[0],
            "refined": np.asarray(refined),
        }

    def _read(self, draw: Draw) -> tuple[SampleArrays, int]:
        labelled = draw.stream == LABELLED
        if labelled:
            expression = int(self._index.labelled[draw.index])
            mask_HW, weight_HW, refined = self._truth(expression), None, True
        else:
            expression, mask_HW, weight_HW, refined = self._label(draw.index)
        image = int(self._manifest.expression_image[expression])
        rng = np.random.default_rng(
            [self._config.seed, self._number, draw.stream, draw.epoch, draw.index]
        )
        pixels = self._squares.square(image)
        sentence = self._manifest.expression_text[expression]
        mask_SS = augment.resize_mask(mask_HW, self._side)
        weight_SS = (
            np.full_like(mask_SS, 255)
            if weight_HW is None
            else augment.resize_mask(weight_HW, self._side)
        )
        if augment.draw_flip(rng, self._config.augment):
            pixels, mask_SS, weight_SS = (
                augment.flip_columns(array) for array in (pixels, mask_SS, weight_SS)
            )
            sentence = augment.swap_sides(sentence)
        view = self._config.labelled_view if labelled else "strong"
        ids_NL, tokens_NL = self._text.encode([sentence])
        arrays = {
            "image": _view(view, pixels, self._side, rng, self._config.augment),
            "label": mask_SS,
            "weight": weight_SS.astype(np.float32) / np.float32(255),
            "token_ids": ids_NL[0],
            "token_mask": tokens_NL[0],
            "refined": np.asarray(refined),
        }
        return arrays, expression

    def _truth(self, expression: int) -> npt.NDArray[np.uint8]:
        mask = self._manifest.truth(int(self._manifest.expression_object[expression]), None)
        assert mask is not None, "build_index lists only expressions with a truth"
        return mask.astype(np.uint8)

    def _label(self, index: int) -> tuple[int, npt.NDArray[np.uint8], npt.NDArray[np.uint8], bool]:
        assert self._labels is not None, "round 0 draws no refined labels"
        row = int(self._index.refined[index])
        label = self._labels.read(row)
        assert label is not None, "build_index lists only rows with a label"
        weight = np.rint(label.weight * 255).astype(np.uint8)
        return (
            label.expression,
            label.mask.astype(np.uint8),
            weight,
            label.source not in KEEP_LABEL,
        )


def _view(
    name: str,
    pixels: npt.NDArray[np.uint8],
    side: int,
    rng: np.random.Generator,
    config: augment.AugmentConfig,
) -> npt.NDArray[np.float32]:
    if name == "plain":
        return augment.normalize(augment.resize_image(pixels, side))
    make = augment.weak_view if name == "weak" else augment.strong_view
    return make(pixels, side, rng, config)
