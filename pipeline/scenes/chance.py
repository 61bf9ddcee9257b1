"""Draws from a generator, and smooth noise, all by arithmetic that is the same on every machine.

Shapes: H, W image; random reals are 53-bit fractions, noise is 8-bit and resized in fixed point.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

T = TypeVar("T")
IntArray = NDArray[np.int32]


def pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    """Give one of `choices`, all equally likely."""
    return choices[int(rng.integers(len(choices)))]


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """Give a real number in [low, high)."""
    return low + (high - low) * float(rng.random())


def chance(rng: np.random.Generator, probability: float) -> bool:
    """Give True with the given probability."""
    return float(rng.random()) < probability


def smooth_noise(rng: np.random.Generator, height: int, width: int, cell: int) -> IntArray:
    """Give noise whose blobs are about `cell` pixels wide, shape (H, W), int32 in [0, 255]."""
    rows, columns = height // cell + 3, width // cell + 3
    grid = rng.integers(0, 256, (rows, columns), dtype=np.uint8)
    size = (columns * cell, rows * cell)
    large = Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(large, np.int32)[cell : cell + height, cell : cell + width]


def fractal_noise(rng: np.random.Generator, height: int, width: int, cell: int) -> IntArray:
    """Give cloud-like noise of three octaves, (H, W), int32 with mean 0, about -128 to 127."""
    total = 4 * smooth_noise(rng, height, width, cell)
    total = total + 2 * smooth_noise(rng, height, width, max(cell // 2, 1))
    total = total + smooth_noise(rng, height, width, max(cell // 4, 1))
    return np.asarray(total * 3 // 14 - 191, np.int32)
