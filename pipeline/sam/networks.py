"""What the mask generator asks of a promptable network, and how `segment_anything` answers.

Shape legend: K prompts, M masks of a prompt (3), N masks, H and W rows and columns of the image,
h and w of the decoder's logits.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn import functional as F

from pipeline.errors import SemiresError
from pipeline.sam.attention import IN_ORDER, REASSOCIATED
from pipeline.sam.decoder import decode_tokens, draw_masks, draw_masks_in_order

Select = Callable[[torch.Tensor], torch.Tensor]
"""Predicted IoU (K, M) -> which masks are wanted, (K, M) bool."""


class Decoded(NamedTuple):
    """What a network says to point prompts."""

    logits: torch.Tensor
    """The wanted masks alone, by prompt and then by output, shape (N, h, w), float32."""
    predicted_iou: torch.Tensor
    """Of every mask, wanted or not, shape (K, M), float32."""
    wanted: torch.Tensor
    """(prompt, output) of each of `logits`, shape (N, 2), int64."""


class Network(Protocol):
    """A promptable segmentation network with its weights, in evaluation mode on its device."""

    mask_threshold: float
    """Logits above it are mask."""
    side: int
    """Of the square that it reads, pixels; `draw` goes through masks of this size."""

    def prepare(self, image: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Scale an image (H, W, 3) RGB to what `encode` takes, on the CPU; safe in a thread."""
        ...

    def encode(self, prepared: Sequence[torch.Tensor]) -> list[Any]:
        """Encode images at once; one embedding each, which only `decode` looks into.

        Raises:
            SemiresError: If an embedding is not finite.
        """
        ...

    def decode(
        self,
        embedding: Any,
        points: npt.NDArray[np.float64],
        size: tuple[int, int],
        select: Select,
    ) -> Decoded:
        """Prompt with one positive point each, three masks a point.

        Args:
            embedding: Of one image.
            points: (x, y) in pixels of the image, shape (K, 2).
            size: (H, W) of the image.
            select: Which masks are wanted; the others need not be drawn.
        """
        ...

    def draw(self, logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Scale logits (N, h, w) to the image, (N, H, W), float32."""
        ...


def scaled_size(height: int, width: int, longest: int) -> tuple[int, int]:
    """Give (H, W) after scaling the longer side to `longest`, rounded half up as SAM does."""
    scale = longest * 1.0 / max(height, width)
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def resized(image: npt.NDArray[np.uint8], size: tuple[int, int]) -> torch.Tensor:
    """Scale an image (H, W, 3) to (h, w) as SAM does, shape (3, h, w), uint8."""
    picture = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def require_finite(values: torch.Tensor, name: str) -> torch.Tensor:
    """Give the values back, or refuse the checkpoint that they came from.

    Raises:
        SemiresError: If one is NaN or infinite.
    """
    if not bool(torch.isfinite(values).all()):
        raise SemiresError(f"SAM's {name} is not finite, the checkpoint is damaged")
    return values


class SegmentAnything:
    """A `segment_anything` Sam as a `Network`.

    Args:
        sam: In evaluation mode, on its device.
        profile: `reference` sums in the order of segment-anything's own code, `fast` does not.
        half: Whether encoder and decoder run in bfloat16.
        compile_encoder: Whether the encoder goes through `torch.compile`.
    """

    def __init__(
        self,
        sam: Any,
        profile: Literal["reference", "fast"] = "reference",
        *,
        half: bool = False,
        compile_encoder: bool = False,
    ) -> None:
        self.sam = sam
        self.mask_threshold = float(sam.mask_threshold)
        self.side = int(sam.image_encoder.img_size)
        self._half = half
        self._encoder = torch.compile(sam.image_encoder) if compile_encoder else sam.image_encoder
        in_order = profile == "reference"
        self._attention = IN_ORDER if in_order else REASSOCIATED
        self._draw = draw_masks_in_order if in_order else draw_masks

    def _precision(self) -> Any:
        """Give the context that encoder and decoder run in."""
        return torch.autocast(self.sam.device.type, torch.bfloat16, enabled=self._half)

    def prepare(self, image: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Scale the longer side to the network's, shape (3, h, w), uint8."""
        return resized(image, scaled_size(image.shape[0], image.shape[1], self.side))

    def encode(self, prepared: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Normalise, pad and encode images; one embedding (1, C, h, w), float32, each."""
        pixels = torch.stack([self.sam.preprocess(one.to(self.sam.device)) for one in prepared])
        with self._precision():
            embeddings = self._encoder(pixels).float()
        return list(require_finite(embeddings, "image embedding").split(1))

    def decode(
        self,
        embedding: torch.Tensor,
        points: npt.NDArray[np.float64],
        size: tuple[int, int],
        select: Select,
    ) -> Decoded:
        """Decode points, drawing the masks of those alone of which one is wanted."""
        sparse = self._prompt(points, size)  # in bfloat16 points would move by a pixel or two
        with self._precision():
            iou, rows, pixels = decode_tokens(self.sam, embedding, sparse, self._attention)
            require_finite(rows, "mask decoder's output")  # also where no mask is wanted
            iou = iou.float()
            wanted = select(iou)
            drawn = torch.nonzero(wanted.any(1))[:, 0]
            logits = self._draw(self.sam, embedding, rows[drawn], pixels[drawn]).float()
        return Decoded(logits[wanted[drawn]], iou, torch.nonzero(wanted))

    def _prompt(self, points: npt.NDArray[np.float64], size: tuple[int, int]) -> torch.Tensor:
        """Embed one positive point per prompt, in double precision as the original does."""
        height, width = scaled_size(*size, self.side)
        scale = np.asarray((width / size[1], height / size[0]))
        scaled = torch.as_tensor(points * scale, device=self.sam.device)[:, None]
        labels = torch.ones(len(points), 1, dtype=torch.int, device=self.sam.device)
        sparse: torch.Tensor = self.sam.prompt_encoder((scaled, labels), boxes=None, masks=None)[0]
        return sparse

    def draw(self, logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Scale logits (N, h, w) to the image, (N, H, W), as `Sam.postprocess_masks` does."""
        height, width = scaled_size(*size, self.side)
        square = (self.side, self.side)
        full = F.interpolate(logits[:, None], square, mode="bilinear", align_corners=False)
        full = full[..., :height, :width]
        if full.shape[2:] != size:  # to the same size it is the identity
            full = F.interpolate(full, size, mode="bilinear", align_corners=False)
        return full[:, 0]
