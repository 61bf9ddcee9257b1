"""Weak and strong views of an image, from uint8 pixels to what the network takes.

Pure functions of their arguments; every random draw comes from the generator that is passed.
Shape letters: H W pixels of the original, S side of the network's square.

Departures from the released SemiRES code: pixels are normalised once, at the very end (there the
strong view is normalised twice, and its jitter clamps already normalised values to [0, 1]); the
jitter works on uint8; sizes, probabilities and strengths are config; a flip swaps left and right
in the sentence.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

from pipeline.errors import ConfigError

UInt8Array = NDArray[np.uint8]
FloatArray = NDArray[np.float32]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of red, green and blue, of pixels in [0, 1]."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviation of red, green and blue, of pixels in [0, 1]."""
_SCALE_3 = (1 / (255 * np.array(IMAGENET_STD))).astype(np.float32)
_SHIFT_3 = (np.array(IMAGENET_MEAN) / np.array(IMAGENET_STD)).astype(np.float32)
_SWAPS = {"left": "right", "right": "left"}
_SIDE = re.compile(r"(?<![a-z])(left|right)(?=(?:most|ward|wards|hand|er)?(?![a-z]))", re.I)


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentConfig:
    """What is drawn for a view; the defaults are the released code's values."""

    blur_probability: float = 0.5
    """Chance of a Gaussian blur, for the weak view and again for the strong one, in [0, 1]."""
    blur_radius: float = 1.0
    """Deviation of the blur, in pixels of the network's square; at least 0."""
    flip_probability: float = 0.0
    """Chance of a horizontal flip, in [0, 1]; 0 since sentences say left and right."""
    jitter_probability: float = 0.5
    """Chance that the strong view's colours change, in [0, 1]."""
    brightness: float = 0.25
    """Factor drawn from [1 - this, 1 + this]; in [0, 1]."""
    contrast: float = 0.25
    """As `brightness`; in [0, 1]."""
    saturation: float = 0.25
    """As `brightness`; in [0, 1]."""
    hue: float = 0.25
    """Shift drawn from [-this, this], in turns of the colour circle; in [0, 0.5]."""

    def __post_init__(self) -> None:
        for name in ("blur_probability", "flip_probability", "jitter_probability",
                     "brightness", "contrast", "saturation"):  # fmt: skip
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"augment: {name} is in [0, 1], got {getattr(self, name)!r}")
        if not 0 <= self.hue <= 0.5:
            raise ConfigError(f"augment: hue is in [0, 0.5], got {self.hue!r}")
        if self.blur_radius < 0:
            raise ConfigError(f"augment: blur_radius is not negative, got {self.blur_radius!r}")


def resize_image(image_HW3: UInt8Array, side: int) -> UInt8Array:
    """Resize to a square, bilinear with antialiasing; the aspect ratio is not kept, as in LAVT.

    Args:
        image_HW3: RGB, shape (H, W, 3), uint8.
        side: S, pixels.

    Returns:
        Shape (S, S, 3), uint8; the input itself if it has that size.
    """
    if image_HW3.shape[:2] == (side, side):
        return image_HW3
    resized = Image.fromarray(image_HW3).resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(resized, np.uint8)


def resize_mask(mask_HW: UInt8Array, side: int) -> UInt8Array:
    """Resize labels or weights to a square, nearest neighbour: no new value appears.

    Args:
        mask_HW: Shape (H, W), uint8.
        side: S, pixels.

    Returns:
        Shape (S, S), uint8.
    """
    resized = Image.fromarray(mask_HW).resize((side, side), Image.Resampling.NEAREST)
    return np.asarray(resized, np.uint8)


def normalize(image_SS3: UInt8Array) -> FloatArray:
    """Subtract ImageNet's mean and divide by its deviation.

    Args:
        image_SS3: RGB, shape (S, S, 3), uint8.

    Returns:
        Shape (3, S, S), float32, C-contiguous.
    """
    planes = np.ascontiguousarray(image_SS3.transpose(2, 0, 1), np.float32)  # (3, S, S)
    planes *= _SCALE_3[:, None, None]
    planes -= _SHIFT_3[:, None, None]
    return planes


def _maybe_blur(image: Image.Image, rng: np.random.Generator, config: AugmentConfig) -> Image.Image:
    if rng.random() < config.blur_probability:
        return image.filter(ImageFilter.GaussianBlur(config.blur_radius))
    return image


def shift_hue(image: Image.Image, turns: float) -> Image.Image:
    """Turn the hue of an RGB image by a share of the colour circle, in steps of 1/256."""
    hue, saturation, value = image.convert("HSV").split()
    hue_HW = (np.asarray(hue, np.int16) + round(turns * 256)) % 256
    channels = (Image.fromarray(hue_HW.astype(np.uint8)), saturation, value)
    return Image.merge("HSV", channels).convert("RGB")


def _jitter(image: Image.Image, rng: np.random.Generator, config: AugmentConfig) -> Image.Image:
    """Change brightness, contrast, saturation and hue, in random order as torchvision does."""
    b, c, s = (
        rng.uniform(1 - spread, 1 + spread)
        for spread in (config.brightness, config.contrast, config.saturation)
    )
    turns = rng.uniform(-config.hue, config.hue)
    changes: list[Callable[[Image.Image], Image.Image]] = [
        lambda x: ImageEnhance.Brightness(x).enhance(b),
        lambda x: ImageEnhance.Contrast(x).enhance(c),
        lambda x: ImageEnhance.Color(x).enhance(s),
        lambda x: shift_hue(x, turns),
    ]
    for position in rng.permutation(len(changes)):
        image = changes[position](image)
    return image


def weak_pixels(
    image_HW3: UInt8Array, side: int, rng: np.random.Generator, config: AugmentConfig
) -> UInt8Array:
    """Resize to the square and perhaps blur: the view before normalisation.

    Args:
        image_HW3: RGB, shape (H, W, 3), uint8.
        side: S, pixels.
        rng: Source of every draw.
        config: Probabilities and strengths.

    Returns:
        Shape (S, S, 3), uint8.
    """
    resized = Image.fromarray(resize_image(image_HW3, side))
    return np.asarray(_maybe_blur(resized, rng, config), np.uint8)


def strong_pixels(
    weak_SS3: UInt8Array, rng: np.random.Generator, config: AugmentConfig
) -> UInt8Array:
    """Perhaps change the colours and perhaps blur again; shapes as in `normalize`, uint8 out."""
    image = Image.fromarray(weak_SS3)
    if rng.random() < config.jitter_probability:
        image = _jitter(image, rng, config)
    return np.asarray(_maybe_blur(image, rng, config), np.uint8)


def weak_view(
    image_HW3: UInt8Array, side: int, rng: np.random.Generator, config: AugmentConfig
) -> FloatArray:
    """Give the weak view, normalised: `weak_pixels`, then `normalize`; (3, S, S), float32."""
    return normalize(weak_pixels(image_HW3, side, rng, config))


def strong_view(
    image_HW3: UInt8Array, side: int, rng: np.random.Generator, config: AugmentConfig
) -> FloatArray:
    """Give the strong view, normalised once: `weak_pixels`, `strong_pixels`, `normalize`."""
    return normalize(strong_pixels(weak_pixels(image_HW3, side, rng, config), rng, config))


def draw_flip(rng: np.random.Generator, config: AugmentConfig) -> bool:
    """Decide on a flip; the caller then flips image, label, weight and sentence together."""
    return bool(rng.random() < config.flip_probability)


def flip_columns(array: UInt8Array) -> UInt8Array:
    """Mirror an image (H, W, 3) or a map (H, W) left to right; C-contiguous, uint8."""
    return np.ascontiguousarray(array[:, ::-1])


def swap_sides(sentence: str) -> str:
    """Exchange the words left and right, leftmost and rightmost and their like; keeps the case.

    "right" as in "right next to" is exchanged too: it cannot be told apart by the word alone.
    """

    def other(match: re.Match[str]) -> str:
        word = match.group()
        swapped = _SWAPS[word.lower()]
        if word.isupper():
            return swapped.upper()
        return swapped.capitalize() if word[0].isupper() else swapped

    return _SIDE.sub(other, sentence)
