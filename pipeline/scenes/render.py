"""Lay sprites over a background: haze, shadows, light, blur and sensor noise.

Shapes: H, W image. Everything is integer arithmetic.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from pipeline.scenes.canvas import SAMPLES, Sprite, rasterise
from pipeline.scenes.chance import IntArray, between, pick
from pipeline.scenes.ground import View
from pipeline.scenes.layout import Placed
from pipeline.scenes.palette import RGB

_FULL = SAMPLES * SAMPLES


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """A picture and who covers each pixel."""

    image: NDArray[np.uint8]
    """(H, W, 3) RGB."""
    owner: NDArray[np.uint8]
    """1 + position of the object that covers the pixel, 0 for the background; (H, W)."""
    part: NDArray[np.uint8]
    """1 + position of that object's part in its names, 0 for the background; (H, W)."""
    names: tuple[tuple[str, ...], ...]
    """The names of each object's parts."""
    full_areas: tuple[int, ...]
    """Pixels of each object as if nothing hid it, outside of the picture included."""


def render(
    rng: np.random.Generator, view: View, background: IntArray, placed: list[Placed]
) -> Rendered:
    """Draw the objects over the background, back to front.

    Args:
        rng: Texture offsets, light and noise.
        view: The camera.
        background: (H, W, 3) levels; it is drawn over.
        placed: At most 254 objects, back to front.
    """
    haze = background[: max(view.horizon, 1)].mean(axis=(0, 1), dtype=np.int64)
    haze_colour: RGB = (int(haze[0]), int(haze[1]), int(haze[2]))
    sprites = [rasterise(one.shapes, one.pose, view.light, rng) for one in placed]
    for one, sprite in zip(placed, sprites, strict=True):
        if not one.aloft:
            _cast_shadow(background, one, sprite, view.light)
    owner = np.zeros(background.shape[:2], np.uint8)
    part = np.zeros(background.shape[:2], np.uint8)
    for number, (one, sprite) in enumerate(zip(placed, sprites, strict=True), 1):
        target, source = _windows(owner.shape, one, sprite)
        cover = sprite.coverage[source][..., None]
        colour = sprite.colour[source]
        mist = max(round(70 * (0.55 - one.depth)), 0)
        hazed = (colour * (256 - mist) + np.array(haze_colour, np.int32) * cover * mist) // 256
        background[target] = (background[target] * (_FULL - cover) + hazed) // _FULL
        labels = sprite.part[source]
        np.copyto(owner[target], np.uint8(number if one.category else 0), where=labels > 0)
        np.copyto(part[target], labels if one.category else np.uint8(0), where=labels > 0)
    return Rendered(
        image=_photograph(rng, background),
        owner=owner,
        part=part,
        names=tuple(sprite.names for sprite in sprites),
        full_areas=tuple(int((sprite.part > 0).sum()) for sprite in sprites),
    )


def _clip(
    shape: tuple[int, ...], corner: tuple[int, int], size: tuple[int, int]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Give the slices of picture and patch that coincide, possibly empty."""
    spans = []
    for limit, start, length in zip(shape, corner, size, strict=False):
        low = min(max(start, 0), limit)
        high = min(max(start + length, low), limit)
        spans.append((slice(low, high), slice(low - start, high - start)))
    (rows, patch_rows), (columns, patch_columns) = spans
    return (rows, columns), (patch_rows, patch_columns)


def _windows(
    shape: tuple[int, ...], one: Placed, sprite: Sprite
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Give where the sprite falls in the picture, and which of its pixels those are."""
    size = (sprite.part.shape[0], sprite.part.shape[1])
    return _clip(shape, (one.row + sprite.top, one.column + sprite.left), size)


def _cast_shadow(background: IntArray, one: Placed, sprite: Sprite, light: int) -> None:
    """Darken the ground by the sprite's silhouette, laid down away from the light and blurred."""
    height, width = sprite.coverage.shape
    foot = height + sprite.top  # rows of the sprite below where it stands
    tall = max((height - foot) * 2 // 7, 2)
    rows = np.arange(tall, dtype=np.int32)[:, None]
    source_rows = np.clip(height - foot - 1 - rows * 7 // 2, 0, height - 1)
    pad = tall + 6
    columns = np.arange(width + 2 * pad, dtype=np.int32)[None, :]
    source = columns - pad + rows * light  # away from the light, farther up the ground
    inside = (source >= 0) & (source < width)
    picked = sprite.coverage[source_rows, np.clip(source, 0, width - 1)]
    silhouette = np.where(inside, picked, 0)[::-1]
    dark = np.zeros((tall + 12, width + 2 * pad), np.uint8)
    dark[4 : 4 + tall] = silhouette * (108 // _FULL)
    contact = sprite.coverage[-max(height // 10, 3) - 1 :].max(axis=0) * (120 // _FULL)
    band = max(round(one.pose.scale / 40), 1)
    under = dark[4 + tall - band : 4 + tall + band, pad : pad + width]
    np.maximum(under, contact[None, :].astype(np.uint8), out=under)
    radius = min(max(round(one.pose.scale / 36), 1), 4)
    soft = np.asarray(Image.fromarray(dark).filter(ImageFilter.BoxBlur(radius)), np.int32)
    corner = (one.row - tall - 4, one.column + sprite.left - pad)
    target, patch = _clip(background.shape, corner, (soft.shape[0], soft.shape[1]))
    background[target] = background[target] * (256 - soft[patch])[..., None] // 256


_TINTS: tuple[RGB, ...] = (
    (256, 256, 256), (268, 256, 238), (246, 254, 268), (272, 250, 226), (240, 244, 256),
)  # fmt: skip


def _photograph(rng: np.random.Generator, picture: IntArray) -> NDArray[np.uint8]:
    """Give what a camera makes of the picture: light, vignette, blur and noise, (H, W, 3)."""
    height, width, _ = picture.shape
    gain = round(256 * between(rng, 0.88, 1.16))
    tint = np.array([value * gain // 256 for value in pick(rng, _TINTS)], np.int32)
    y = np.abs(2 * np.arange(height, dtype=np.int32) - height) * 256 // height
    x = np.abs(2 * np.arange(width, dtype=np.int32) - width) * 256 // width
    corner = (y * y)[:, None] + (x * x)[None, :]  # up to 131072
    vignette = 256 - corner * int(rng.integers(10, 44)) // 131072
    lit = np.clip(picture * tint // 256 * vignette[..., None] // 256, 0, 255)
    blur = ImageFilter.BoxBlur(pick(rng, (0.15, 0.25, 0.35, 0.5)))
    soft = np.asarray(Image.fromarray(lit.astype(np.uint8)).filter(blur), np.int32)
    level = int(rng.integers(3, 10))
    noise = rng.integers(0, level + 1, (2, *soft.shape), dtype=np.uint8)
    shaken = soft + noise[0] - noise[1].astype(np.int32)
    return np.asarray(np.clip(shaken, 0, 255), np.uint8)
