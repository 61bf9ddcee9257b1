"""Shell: look at a split while training: which teacher is best, and when to stop early."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pipeline.errors import ConfigError
from pipeline.manifest import Manifest
from train import augment
from train.config import TrainConfig
from train.data import SquareCache
from train.metrics import IoUSums, iou_sums
from train.networks import upsample
from train.processes import Processes
from train.text import TextEncoder, load_text_encoder
from train.trained import predict_margins

SPLIT = "val"
"""The split that is looked at."""
BATCH = 16
"""Expressions per forward pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What the looks so far have come to; saved with every checkpoint."""

    best_step: int | None = None
    """Updates that the best teacher has had; None before the first look."""
    best_figure: float = -1.0
    """Its figure, in [0, 1]."""
    without_better: int = 0
    """Looks since then."""

    def after(self, step: int, figure: float) -> "Progress":
        """Take a look's figure in; only a larger one is better, so that the earliest best stays."""
        if figure > self.best_figure:
            return Progress(best_step=step, best_figure=figure)
        return replace(self, without_better=self.without_better + 1)

    def is_over(self, patience: int | None) -> bool:
        """Tell whether patience is at an end."""
        return patience is not None and self.without_better >= patience

    def plain(self) -> dict[str, Any]:
        """Give it as JSON's types."""
        return {
            "best_step": self.best_step,
            "best_figure": self.best_figure,
            "without_better": self.without_better,
        }

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "Progress":
        """Read what `plain` gave."""
        return cls(**plain)


NO_LOOK = Progress()
"""Before the first look."""


def rows_to_look_at(manifest: Manifest, count: int) -> npt.NDArray[np.int64]:
    """List `count` expressions with a truth, evenly spread over the split, in its order.

    Raises:
        ConfigError: If the split has none.
    """
    rows = manifest.expressions_of(SPLIT)
    lengths = np.diff(manifest.object_rle.offsets)
    rows = rows[lengths[manifest.expression_object[rows]] > 0]
    if not len(rows):
        raise ConfigError(
            f"train.evaluate_every: expected expressions with masks in split {SPLIT!r}, found "
            f"none; leave it out"
        )
    chosen = np.linspace(0, len(rows) - 1, min(count, len(rows))).round()
    return np.asarray(rows[chosen.astype(np.int64)], np.int64)


class Examiner:
    """What measures a teacher: the expressions, and the images and tokenizer they need."""

    def __init__(
        self,
        config: TrainConfig,
        manifest: Manifest,
        rows: npt.NDArray[np.int64],
        side: int,
        vocabulary: Path,
    ) -> None:
        self._manifest = manifest
        self._rows = rows
        self._side = side
        self._squares = SquareCache(manifest, side, config.cache_bytes)
        self._text: TextEncoder = load_text_encoder(vocabulary, config.network.max_tokens)

    def measure(self, teacher: nn.Module, processes: Processes) -> IoUSums:
        """Sum up the teacher's overlaps with the truth, by the `square` protocol.

        Every process takes its part of the expressions; all get the whole.

        Raises:
            ItemError: If an image cannot be read.
        """
        mine = self._rows[processes.rank :: processes.count]
        sums = processes.together(lambda: self._measure(teacher, mine))
        return sum(processes.gather(sums), IoUSums())

    def _measure(self, teacher: nn.Module, rows: npt.NDArray[np.int64]) -> IoUSums:
        sums = IoUSums()
        for start in range(0, len(rows), BATCH):
            sums += self._measure_batch(teacher, rows[start : start + BATCH])
        return sums

    def _measure_batch(self, teacher: nn.Module, rows: npt.NDArray[np.int64]) -> IoUSums:
        manifest, side = self._manifest, self._side
        images = manifest.expression_image[rows]
        pixels = [augment.normalize(self._squares.square(int(image))) for image in images]
        ids_BL, mask_BL = self._text.encode([manifest.expression_text[row] for row in rows])
        margin_Bhw = predict_margins(
            teacher,
            torch.from_numpy(np.stack(pixels)),
            torch.from_numpy(ids_BL),
            torch.from_numpy(mask_BL),
        )
        predicted_BSS = upsample(margin_Bhw[:, None], (side, side))[:, 0].numpy() > 0
        truths = []
        for row in rows:
            truth_HW = manifest.truth(int(manifest.expression_object[row]), None)
            assert truth_HW is not None, "only expressions with a truth are looked at"
            truths.append(augment.resize_mask(truth_HW.astype(np.uint8), side) > 0)
        return iou_sums(predicted_BSS, np.stack(truths))
