"""Shell: expressions of a manifest to logit margins, batch by batch.

Shape letters: B batch, S side of the network's square, h w pixels of the logits, L word tokens.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pipeline.errors import ItemError
from pipeline.manifest import Manifest
from train import augment
from train.data import SquareCache
from train.networks import NETWORKS, Architecture, Features
from train.text import TextEncoder
from train.trained import Trained, predict_margins

SENTENCES_KEPT = 4096
"""Encoded sentences that are kept; 20 words of 768 channels are 61 KB."""
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """How the network is run; the fields are those of `TeacherConfig`."""

    flip: bool = False
    amp: bool = False
    encode_once: bool | None = None


@dataclass(frozen=True, slots=True)
class View:
    """One thing to predict: an image's row and its pixels (S, S, 3) uint8, and a sentence."""

    image: int
    pixels: npt.NDArray[np.uint8]
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictor:
    """A network that turns manifest expressions into logit margins, batch by batch."""

    manifest: Manifest
    network: nn.Module
    architecture: Architecture
    text: TextEncoder
    side: int
    batch_size: int
    passes: Passes = field(default_factory=Passes)

    def margins(
        self, expressions: npt.NDArray[np.int64]
    ) -> Iterator[tuple[npt.NDArray[np.int64], FloatArray, dict[int, str]]]:
        """Predict expressions, whose order should be that of their images.

        Args:
            expressions: Manifest rows, (n,).

        Yields:
            Per batch the positions (b,) in `expressions` that were predicted, their margins
            (b, h, w) float32, and per position that failed the reason.
        """
        squares = SquareCache(self.manifest, self.side, 1 << 26)
        images = self.manifest.expression_image[expressions]
        forward = Forward(self)
        for start in range(0, len(expressions), self.batch_size):
            batch = range(start, min(start + self.batch_size, len(expressions)))
            usable, views, failed = [], [], {}
            for position in batch:
                image = int(images[position])
                try:
                    pixels = squares.square(image)
                except ItemError as error:
                    failed[position] = str(error)
                    continue
                sentence = self.manifest.expression_text[int(expressions[position])]
                views.append(View(image, pixels, sentence))
                usable.append(position)
            margin_Bhw = forward(views) if views else np.zeros((0, 1, 1), np.float32)
            yield np.asarray(usable, np.int64), margin_Bhw, failed


def predictor_of(
    trained: Trained,
    manifest: Manifest,
    loaded: tuple[nn.Module, TextEncoder],
    batch_size: int,
    passes: Passes,
) -> Predictor:
    """Put a finished training, loaded by `load_trained`, to work on a manifest."""
    network, text = loaded
    return Predictor(
        manifest=manifest,
        network=network,
        architecture=NETWORKS[trained.network.name],
        text=text,
        side=trained.side,
        batch_size=batch_size,
        passes=passes,
    )


def encodes_once(passes: Passes, architecture: Architecture) -> bool:
    """Tell whether parts are encoded once; unless it is said, where images can be shared."""
    return architecture.shares_images if passes.encode_once is None else passes.encode_once


class Forward:
    """The passes through the network, and what they remember from batch to batch."""

    def __init__(self, predictor: Predictor) -> None:
        self._network = predictor.network
        self._architecture = predictor.architecture
        self._text = predictor.text
        self._passes = predictor.passes
        self._once = encodes_once(predictor.passes, predictor.architecture)
        self._device = next(predictor.network.parameters()).device
        self._words: OrderedDict[str, tuple[torch.Tensor, torch.Tensor]] = OrderedDict()
        self._features: dict[tuple[int, bool], Features] = {}

    def __call__(self, views: Sequence[View]) -> FloatArray:
        """Give the margins (B, h, w), float32, of at least one view.

        With `flip`, the mean of the margins of the image and of its mirror image.
        """
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._passes.amp):
            margin_Bhw = self._margins(views, flipped=False)
            if self._passes.flip:
                mirrored = [
                    View(v.image, augment.flip_columns(v.pixels), augment.swap_sides(v.sentence))
                    for v in views
                ]
                margin_Bhw = (margin_Bhw + self._margins(mirrored, flipped=True).flip(-1)) / 2
        return np.asarray(margin_Bhw.numpy(), np.float32)

    def _margins(self, views: Sequence[View], *, flipped: bool) -> torch.Tensor:
        if self._once:
            return self._staged(views, flipped=flipped)
        images = np.stack([augment.normalize(view.pixels) for view in views])
        ids_BL, mask_BL = self._text.encode([view.sentence for view in views])
        return predict_margins(
            self._network, *(torch.from_numpy(array) for array in (images, ids_BL, mask_BL))
        )

    @torch.inference_mode()
    def _staged(self, views: Sequence[View], *, flipped: bool) -> torch.Tensor:
        self._encode_words([view.sentence for view in views])
        self._encode_images(views, flipped=flipped)
        found = [self._features[view.image, flipped] for view in views]
        features = tuple(torch.stack(parts) for parts in zip(*found, strict=True))
        words, masks = zip(*(self._words[view.sentence] for view in views), strict=True)
        logits_B2hw = self._architecture.decode(
            self._network, features, torch.stack(words), torch.stack(masks)
        ).float()
        margin_Bhw: torch.Tensor = (logits_B2hw[:, 1] - logits_B2hw[:, 0]).cpu()
        return margin_Bhw

    def _encode_words(self, sentences: Sequence[str]) -> None:
        for sentence in sentences:
            if sentence in self._words:
                self._words.move_to_end(sentence)
        new = [sentence for sentence in dict.fromkeys(sentences) if sentence not in self._words]
        if new:
            ids, mask = (torch.from_numpy(a).to(self._device) for a in self._text.encode(new))
            words = self._architecture.encode_words(self._network, ids, mask)
            for row, sentence in enumerate(new):  # cloned: a view would keep its whole batch
                self._words[sentence] = words[row].clone(), mask[row]
        while len(self._words) > max(SENTENCES_KEPT, len(sentences)):
            self._words.popitem(last=False)

    def _encode_images(self, views: Sequence[View], *, flipped: bool) -> None:
        """Encode the images that the last batch did not have; forget those that this one lacks."""
        pixels = {(view.image, flipped): view.pixels for view in views}
        for key in [k for k in self._features if k[1] == flipped and k not in pixels]:
            del self._features[key]
        new = [key for key in pixels if key not in self._features]
        if new:
            images = np.stack([augment.normalize(pixels[key]) for key in new])
            features = self._architecture.encode_images(
                self._network, torch.from_numpy(images).to(self._device)
            )
            self._features |= dict(zip(new, zip(*features, strict=True), strict=True))
