"""How a checkpoint from the hub wants its images: scaled into a square, then normalised.

Shape legend: H and W rows and columns of the image, h and w of the scaled image, S side of the
square that the network reads, N images or masks, K points.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn import functional as F

from pipeline.errors import ConfigError
from pipeline.sam.hub_files import PREPROCESSORS, read_json
from pipeline.sam.networks import scaled_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Pixels:
    """The way of an image into a network and of its masks back."""

    side: int
    """Rows and columns of the square that the network reads, S."""
    keep_aspect: bool
    """Whether the longer side is scaled to S and the rest padded (SAM, SAM-HQ), or both sides are
    scaled to S (SAM 2)."""
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    """Taken off each of R, G, B in [0, 255]."""
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    """What the rest is divided by; like `mean` ImageNet's, the default of SAM, SAM-HQ and SAM 2."""
    resample: int = int(Image.Resampling.BILINEAR)
    """Pillow's number of the filter."""

    def scaled_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Give (h, w) of an image of (H, W)."""
        return scaled_size(*size, self.side) if self.keep_aspect else (self.side, self.side)

    def scale(self, image: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Scale an image (H, W, 3) RGB; gives (3, h, w) uint8 on the CPU."""
        height, width = self.scaled_size((image.shape[0], image.shape[1]))
        picture = Image.fromarray(image).resize((width, height), Image.Resampling(self.resample))
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()

    def normalise(self, scaled: Sequence[torch.Tensor], device: torch.device) -> torch.Tensor:
        """Normalise images (3, h, w) and pad them with zeros; gives (N, 3, S, S) float32."""
        mean = torch.tensor(self.mean, device=device)[:, None, None]
        std = torch.tensor(self.std, device=device)[:, None, None]
        square = torch.zeros((len(scaled), 3, self.side, self.side), device=device)
        for row, image in zip(square, scaled, strict=True):
            part = image.to(device, torch.float32, non_blocking=True)
            row[:, : image.shape[1], : image.shape[2]] = (part - mean) / std
        return square

    def to_square(
        self, points: npt.NDArray[np.float64], size: tuple[int, int]
    ) -> npt.NDArray[np.float64]:
        """Scale (x, y) (K, 2) from pixels of an image of (H, W) to pixels of the square."""
        height, width = self.scaled_size(size)
        return points * np.asarray([width / size[1], height / size[0]], np.float64)

    def to_image(self, logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Scale a network's logits (N, rows, columns) to an image of (H, W); gives (N, H, W).

        Where the aspect is kept, this goes by way of the square, to cut the padding off.
        """
        full = logits[:, None]
        if self.keep_aspect:
            square = (self.side, self.side)
            full = F.interpolate(full, square, mode="bilinear", align_corners=False)
            height, width = self.scaled_size(size)
            full = full[..., :height, :width]
        if full.shape[2:] != size:  # to the same size it is the identity
            full = F.interpolate(full, size, mode="bilinear", align_corners=False)
        return full[:, 0]


def read_pixels(folder: Path, side: int, keep_aspect: bool) -> Pixels:
    """Read how a checkpoint wants its images, or give the family's defaults.

    Args:
        folder: The checkpoint; `preprocessor_config.json` counts before `processor_config.json`.
        side: Of the square, according to `config.json`.
        keep_aspect: As the family does.

    Raises:
        ConfigError: If the file asks for something that the networks here do not do.
    """
    path = next((folder / name for name in PREPROCESSORS if (folder / name).is_file()), None)
    if path is None:
        return Pixels(side=side, keep_aspect=keep_aspect)
    found = read_json(path)
    found = found.get("image_processor", found)
    _check_steps(found, path, side, keep_aspect)
    default = Pixels(side=side, keep_aspect=keep_aspect)
    try:
        factor = float(found.get("rescale_factor", 1 / 255))
        mean = tuple(float(x) / factor for x in found["image_mean"])
        std = tuple(float(x) / factor for x in found["image_std"])
        resample = int(Image.Resampling(found.get("resample", default.resample)))
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise ConfigError(
            f"{path} does not say how to normalise images: {type(error).__name__} {error}"
        ) from error
    if len(mean) != 3 or len(std) != 3 or not min(std) > 0:
        raise ConfigError(f"{path}: expected 3 means and 3 deviations above 0, got {mean}, {std}")
    return Pixels(side=side, keep_aspect=keep_aspect, mean=mean, std=std, resample=resample)


def _check_steps(found: Any, path: Path, side: int, keep_aspect: bool) -> None:
    """Refuse a preparation that is not: scale to `side`, normalise, and pad."""
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: image_processor is a JSON object, found {found!r}")
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if found.get(step, True) is not True:
            raise ConfigError(f"{path}: expected {step} true, found {found[step]!r}")
    square = {"height": side, "width": side}
    wanted = {"size": {"longest_edge": side} if keep_aspect else square}
    if keep_aspect:
        wanted["pad_size"] = square
    for name, value in wanted.items():
        if found.get(name, value) != value:
            raise ConfigError(
                f"{path}: expected {name} {value}, the size in config.json, found {found[name]!r}"
            )
