"""Outlines and surfaces of the training blobs: closed polygons and colour textures.

Shape legend: N vertices, H and W rows and columns. Outlines are (x, y), colours RGB in [0, 255].
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

FloatArray = npt.NDArray[np.float32]
Rng = np.random.Generator


def _polygon(rng: Rng) -> FloatArray:
    """Give a polygon of 3 to 7 corners at random radii."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 8)))
    radii = rng.uniform(0.6, 1.0, len(angles))
    return _polar(radii, angles)


def _regular(rng: Rng) -> FloatArray:
    """Give a regular polygon of 3 to 8 corners."""
    corners = int(rng.integers(3, 9))
    return _polar(np.ones(corners), (np.arange(corners) + rng.choice([0.0, 0.5])) / corners)


def _ellipse(rng: Rng) -> FloatArray:
    """Give a disc; the caller stretches it."""
    return _polar(np.ones(28), np.arange(28) / 28)


def _rectangle(rng: Rng) -> FloatArray:
    """Give a square with sharp or rounded corners, or a trapezium."""
    if rng.random() < 0.35:
        top = rng.uniform(0.3, 1.0)
        return np.asarray([[-top, -1], [top, -1], [1, 1], [-1, 1]], np.float32)
    exponent = float(rng.choice([2.0, 3.0, 6.0, 40.0], p=[0.1, 0.2, 0.2, 0.5]))
    angle = np.arange(40) / 40 * 2 * np.pi + np.pi / 4
    x, y = np.cos(angle), np.sin(angle)
    radius = (np.abs(x) ** exponent + np.abs(y) ** exponent) ** (-1 / exponent)
    return np.asarray(np.stack([radius * x, radius * y], 1), np.float32)


def _star(rng: Rng) -> FloatArray:
    """Give a star of 4 to 8 points."""
    points = int(rng.integers(4, 9))
    radii = np.where(np.arange(2 * points) % 2 == 0, 1.0, rng.uniform(0.35, 0.75))
    return _polar(radii, np.arange(2 * points) / (2 * points))


def _curve(rng: Rng) -> FloatArray:
    """Give a smooth closed curve: a circle plus four random harmonics."""
    turns = np.arange(48) / 48
    radii = np.ones(48)
    for harmonic in range(2, 6):
        phase = rng.uniform(0, 2 * np.pi)
        radii += rng.normal(0, 0.3 / harmonic) * np.cos(2 * np.pi * harmonic * turns + phase)
    return _polar(np.clip(radii, 0.25, 1.8), turns)


def _sector(rng: Rng) -> FloatArray:
    """Give a sector of a disc, from a third to nearly all of it."""
    turns = np.linspace(0, rng.uniform(0.35, 0.9), 24)
    return np.concatenate([_polar(np.ones(24), turns), np.zeros((1, 2), np.float32)])


def _polar(radii: npt.NDArray[np.float64], turns: npt.NDArray[np.float64]) -> FloatArray:
    """Turn polar vertices (radius, turns of the circle) into (N, 2) x and y."""
    angles = turns * 2 * np.pi if turns.max(initial=0) <= 1 else turns
    return np.asarray(np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1), np.float32)


OUTLINES: dict[str, Callable[[Rng], FloatArray]] = {
    "polygon": _polygon,
    "regular": _regular,
    "ellipse": _ellipse,
    "rectangle": _rectangle,
    "star": _star,
    "curve": _curve,
    "sector": _sector,
}
_OUTLINE_SHARES = (0.12, 0.1, 0.2, 0.28, 0.05, 0.17, 0.08)


def random_outline(rng: Rng, radius_px: float, upright: bool) -> FloatArray:
    """Give a random closed outline about the origin.

    Args:
        rng: Source of randomness.
        radius_px: Geometric mean of the half axes, pixels.
        upright: Keep the axes parallel to the image's, or turn them at random.

    Returns:
        Vertices (x, y), shape (N, 2), float32, pixels.
    """
    name = str(rng.choice(list(OUTLINES), p=_OUTLINE_SHARES))
    outline = OUTLINES[name](rng)
    stretch = float(np.exp(rng.normal(0, 0.45)))
    if rng.random() < 0.12:
        stretch = float(rng.choice([0.3, 3.5]))  # bars
    outline = outline * np.asarray([stretch**0.5, stretch**-0.5], np.float32) * radius_px
    angle = float(rng.normal(0, 0.06)) if upright else float(rng.uniform(0, 2 * np.pi))
    cos, sin = np.cos(angle), np.sin(angle)
    return np.asarray(outline @ np.asarray([[cos, sin], [-sin, cos]]), np.float32)


def smooth_noise(rng: Rng, height: int, width: int, cells: int) -> FloatArray:
    """Give noise in [-1, 1] that varies over about `cells` cells per side, shape (H, W)."""
    grid = Image.fromarray(rng.uniform(-1, 1, (cells + 1, cells + 1)).astype(np.float32))
    return np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC), np.float32)


def random_texture(rng: Rng, height: int, width: int, color: FloatArray) -> FloatArray:
    """Paint a surface of one base colour.

    Args:
        rng: Source of randomness.
        height: Rows.
        width: Columns.
        color: RGB in [0, 255], shape (3,).

    Returns:
        The surface, shape (H, W, 3), float32, about [0, 255]: flat, a gradient, stripes, tiles,
        clouds or speckles.
    """
    kind = rng.choice(6, p=[0.42, 0.2, 0.12, 0.08, 0.12, 0.06])
    if kind == 0:
        return np.broadcast_to(color, (height, width, 3)).astype(np.float32)
    other = np.clip(color + rng.normal(0, 45, 3), 0, 255).astype(np.float32)
    share = _share(rng, int(kind), height, width)[:, :, None]
    return np.asarray(color * (1 - share) + other * share, np.float32)


def _share(rng: Rng, kind: int, height: int, width: int) -> FloatArray:
    """Give how much of the second colour each pixel has, shape (H, W), in [0, 1]."""
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    angle = rng.uniform(0, np.pi) if rng.random() < 0.5 else rng.choice([0.0, np.pi / 2])
    along = columns * np.cos(angle) + rows * np.sin(angle)
    if kind == 1:
        along = along - along.min()
        return np.asarray(along / max(float(along.max()), 1.0), np.float32)
    period = rng.uniform(4, 20)
    if kind == 2:
        return np.asarray((along / period) % 1 < rng.uniform(0.2, 0.8), np.float32)
    if kind == 3:
        across = rows * np.cos(angle) - columns * np.sin(angle)
        tiles = np.floor(along / period) + np.floor(across / (period * rng.uniform(0.5, 2)))
        return np.asarray(tiles % 2, np.float32) * np.float32(rng.uniform(0.3, 1))
    if kind == 4:
        clouds = smooth_noise(rng, height, width, int(rng.integers(2, 10)))
        return np.asarray(np.clip(0.5 + clouds, 0, 1), np.float32)
    return np.asarray(rng.random((height, width)) < rng.uniform(0.05, 0.4), np.float32)
