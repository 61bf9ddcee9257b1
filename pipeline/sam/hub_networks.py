"""What the networks of `transformers` share: built without storage, images in, masks out.

Shape legend: N masks, K prompts, H and W rows and columns of the image, h and w of the logits.
"""

from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from pipeline.errors import ConfigError, SemiresError
from pipeline.sam.hub_files import CONFIG
from pipeline.sam.hub_pixels import Pixels


class HubNetwork:
    """What SAM-HQ and SAM 2 share: the model, and the way of images in and masks out.

    Args:
        model: Of `transformers`, in evaluation mode.
        pixels: How it wants its images.
        half: Whether encoder and decoder run in bfloat16.
    """

    mask_threshold = 0.0

    def __init__(self, model: Any, pixels: Pixels, *, half: bool = False) -> None:
        self.model = model
        self.pixels = pixels
        self.side = pixels.side
        self._half = half

    def precision(self) -> Any:
        """Give the context that encoder and decoder run in."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._half)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.model.device
        return device

    def to(self, device: str | torch.device) -> Self:
        """Move the weights."""
        self.model.to(device)
        return self

    def eval(self) -> Self:
        """Switch training behaviour off; it is off from the start."""
        self.model.eval()
        return self

    def prepare(self, image: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Scale an image (H, W, 3) RGB, on the CPU; safe in a thread."""
        return self.pixels.scale(image)

    @torch.inference_mode()
    def draw(self, logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Scale logits (N, h, w) to the image, (N, H, W), float32."""
        return self.pixels.to_image(logits, size)

    def prompts(
        self, points: npt.NDArray[np.float64], size: tuple[int, int], dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Give points (1, K, 1, 2) in the square and their labels (1, K, 1), all positive."""
        scaled = torch.as_tensor(self.pixels.to_square(points, size), dtype=dtype)
        labels = torch.ones((1, len(points), 1), dtype=torch.int64, device=self.device)
        return scaled.to(self.device)[None, :, None], labels


def check_finite(name: str, *embeddings: torch.Tensor) -> None:
    """Refuse embeddings that are not finite, with one wait for the device."""
    finite = torch.stack([torch.isfinite(embedding).all() for embedding in embeddings]).all()
    if not bool(finite):
        raise SemiresError(f"{name}'s image embedding is not finite, the checkpoint is damaged")


def build_network(config: Any, model: Any, raw: dict[str, Any], folder: Path) -> Any:
    """Build a network of `transformers` without storage for its weights."""
    try:
        with torch.device("meta"):  # the weights come from the file
            return model(config.from_dict(raw))
    except Exception as error:  # whatever the library raises on numbers that make no network
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"{folder / CONFIG} is not a {model.__name__}'s: {reason}") from error
