"""Skies and perspective ground, in integer arithmetic.

Shapes: H, W image; R the rows below the horizon. Colours are int32 RGB levels.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from pipeline.scenes.chance import IntArray, fractal_noise, pick, smooth_noise
from pipeline.scenes.palette import RGB, vary

_TILE = 512
_TEXELS = 40
"""Texture samples a metre."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Where the camera stands and where the light comes from."""

    height: int
    """Rows of the image."""
    width: int
    """Columns of the image."""
    horizon: int
    """Row of the horizon."""
    near: int
    """Pixels a metre at the bottom edge; it falls linearly to 0 at the horizon."""
    light: int
    """1 for light from the right, -1 from the left."""

    def scale(self, depth: float) -> float:
        """Give pixels a metre at `depth`, 0 at the horizon and 1 at the bottom edge."""
        return depth * self.near

    def row(self, depth: float) -> int:
        """Give the row of the ground at `depth`."""
        return self.horizon + round(depth * (self.height - self.horizon))


@cache
def _tile(surface: str) -> IntArray:
    """Give the surface's brightness change in 1/256, (512, 512), the same in every process."""
    rng = np.random.default_rng([11, len(surface), *surface.encode()])
    z, x = np.mgrid[0:_TILE, 0:_TILE].astype(np.int32)
    fine = smooth_noise(rng, _TILE, _TILE, 2) - 128
    broad = fractal_noise(rng, _TILE, _TILE, 64)
    if surface == "grass":
        return np.asarray(broad // 3 + fine * 2 // 5, np.int32)
    if surface == "sand":
        return np.asarray(
            broad // 5 + fractal_noise(rng, _TILE, _TILE, 12) // 6 + fine // 6, np.int32
        )
    if surface == "water":
        wide = smooth_noise(rng, _TILE, _TILE // 8, 8).repeat(8, axis=1) - 128
        return np.asarray(broad // 5 + wide // 2 + fine // 8, np.int32)
    if surface == "planks":
        board = x // 12
        tone = (board * 7919 % 13 - 6) * 5
        joint = (x % 12 == 0) | ((z + board * 37) % 96 == 0)
        grain = smooth_noise(rng, _TILE // 16, _TILE, 2).repeat(16, axis=0) - 128
        return np.asarray(np.where(joint, -64, tone) + grain // 6 + fine // 12, np.int32)
    if surface == "tiles":
        joint = (x % 32 < 2) | (z % 32 < 2)
        tone = (x // 32 * 5 + z // 32 * 3) % 4 * 8 - 12
        return np.asarray(np.where(joint, -46, tone) + broad // 8 + fine // 10, np.int32)
    if surface == "cloth":
        check = (x // 16 % 2 + z // 16 % 2) * 22 - 22
        return np.asarray(check + broad // 10 + fine // 10, np.int32)
    return np.asarray(broad // 6 + fine // 5, np.int32)


def gradient(height: int, width: int, top: RGB, bottom: RGB) -> IntArray:
    """Give a vertical gradient, (H, W, 3)."""
    t = np.arange(height, dtype=np.int32)[:, None] * 256 // max(height - 1, 1)
    rows = (np.array(top, np.int32) * (256 - t) + np.array(bottom, np.int32) * t) // 256
    return np.repeat(rows[:, None, :], width, axis=1)


def blend(below: IntArray, above: IntArray | RGB, share: IntArray | int) -> IntArray:
    """Lay `above` over `below` with weight `share` in 1/256, a number or (H, W)."""
    weight = np.asarray(share, np.int32)[..., None]
    return np.asarray(
        (below * (256 - weight) + np.asarray(above, np.int32) * weight) // 256, np.int32
    )


SKIES: tuple[tuple[RGB, RGB], ...] = (
    ((88, 140, 208), (196, 216, 232)),
    ((108, 156, 204), (222, 224, 218)),
    ((150, 164, 180), (204, 208, 210)),
    ((96, 116, 170), (240, 196, 150)),
    ((120, 176, 220), (214, 234, 240)),
)


def sky(rng: np.random.Generator, view: View) -> IntArray:
    """Paint a sky over the whole image, with clouds that flatten towards the horizon."""
    top, low = pick(rng, SKIES)
    picture = gradient(max(view.horizon, 1), view.width, vary(rng, top), vary(rng, low))
    padded = np.empty((view.height, view.width, 3), np.int32)
    padded[: len(picture)] = picture
    padded[len(picture) :] = picture[-1:]
    amount = int(rng.integers(-50, 45))
    cloud = fractal_noise(rng, view.height, view.width // 2 + 1, 26)
    cloud = cloud.repeat(2, axis=1)[:, : view.width]
    fade = np.arange(view.height, dtype=np.int32)[:, None] * 60 // max(view.horizon, 1)
    share = np.clip((cloud + amount - fade // 2) * 3, 0, 200)
    grey = np.clip(252 - np.clip(cloud + amount, 0, 90) // 2, 0, 255)
    return blend(padded, np.repeat(grey[..., None], 3, axis=2), share)


def ground(
    rng: np.random.Generator, view: View, surface: str, colours: tuple[RGB, RGB]
) -> IntArray:
    """Paint a textured plane in perspective.

    Args:
        rng: Moves the texture.
        view: The camera.
        surface: Name of the texture: grass, sand, water, planks, tiles, cloth or asphalt.
        colours: Colour at the horizon and at the bottom edge.

    Returns:
        The rows from the horizon down, (R, W, 3).
    """
    rows = view.height - view.horizon
    below = np.arange(1, rows + 1, dtype=np.int32)[:, None]
    metre = below * view.near  # pixels a metre, times `rows`
    x = np.arange(view.width, dtype=np.int32)[None, :] - view.width // 2
    across = (x * _TEXELS * rows) // metre + int(rng.integers(_TILE))
    along = (view.width * _TEXELS * rows) // metre + int(rng.integers(_TILE))
    change = _tile(surface)[_mirrored(along), _mirrored(across)]
    # The texture fades where its samples are finer than pixels.
    change = change * np.minimum(64 + metre * 256 // (rows * _TEXELS), 256) // 256
    base = gradient(rows, view.width, *colours)
    return np.asarray(np.clip(base * (256 + change[..., None]) // 256, 0, 255), np.int32)


def _mirrored(position: IntArray) -> IntArray:
    """Give positions in a tile laid again and again, every other copy mirrored: no seams."""
    wrapped = position % (2 * _TILE)
    return np.asarray(np.minimum(wrapped, 2 * _TILE - 1 - wrapped), np.int32)


def ridge(rng: np.random.Generator, width: int, cell: int, tall: int) -> IntArray:
    """Give the height of a skyline at every column, (W,), 0 to `tall` pixels."""
    return np.asarray(smooth_noise(rng, 1, width, cell)[0] * tall // 256, np.int32)


def under_ridge(view: View, foot: int, heights: IntArray) -> NDArray[np.bool_]:
    """Give the pixels between a skyline and the row `foot` it stands on, (H, W)."""
    rows = np.arange(view.height, dtype=np.int32)[:, None]
    return np.asarray((rows >= foot - heights[None, :]) & (rows < foot), np.bool_)
