"""Shapes in metres, and the sprite that they make once shaded and supersampled.

Object frame: x to the right, y up, (0, 0) where the object stands; 1 is the object's height.
Shapes: H, W sprite in image pixels. All pixel values come from integer arithmetic.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from pipeline.scenes.chance import IntArray, fractal_noise, smooth_noise
from pipeline.scenes.outline import fill_polygon
from pipeline.scenes.palette import RGB

Point = tuple[float, float]
Edges = tuple[float, float, float, float]
SAMPLES = 2
"""Samples a pixel along each axis."""
_TILE = 512

# (towards the light, towards the top, loss at the sides, loss at top and bottom), in 1/256
_SHADES: dict[str, tuple[int, int, int, int]] = {
    "flat": (16, 14, 0, 0),
    "round": (58, 10, 46, 0),
    "ball": (52, 50, 34, 40),
    "tall": (20, 44, 0, 0),
    "plain": (0, 0, 0, 0),
}
# A circle out of (1 - t^2, 2t) / (1 + t^2), which needs no sine.
_QUARTER = [((64 - k * k) / (64 + k * k), 16 * k / (64 + k * k)) for k in range(8)]
_CIRCLE: list[Point] = [
    point
    for a, b in ((1, 0), (0, 1), (-1, 0), (0, -1))
    for point in [(c * a - s * b, c * b + s * a) for c, s in _QUARTER]
]


@dataclass(frozen=True, slots=True)
class Shape:
    """One filled outline of a part."""

    part: str
    points: tuple[Point, ...]
    colour: RGB
    shade: str = "flat"
    texture: str = "grain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sprite:
    """An object drawn alone: colour, coverage and parts, to be laid over a picture."""

    colour: IntArray
    """Colour summed over the covered samples, (H, W, 3)."""
    coverage: IntArray
    """Covered samples of a pixel, (H, W), 0 to SAMPLES squared."""
    part: NDArray[np.uint8]
    """1 + position in `names` where at least half of the pixel is covered, else 0; (H, W)."""
    names: tuple[str, ...]
    left: int
    """Column of the sprite's first pixel, relative to where the object stands."""
    top: int
    """Row of the sprite's first pixel, relative to where the object stands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pose:
    """How an object is turned to the camera."""

    scale: float
    """Pixels a unit of the object frame."""
    mirror: bool
    lean: float
    """Tangent of half the angle of rotation, small."""


def poly(part: str, colour: RGB, points: Sequence[Point], shade: str = "flat") -> Shape:
    """Give a polygon."""
    return Shape(part, tuple(points), colour, shade)


def box(part: str, colour: RGB, edges: Edges, shade: str = "flat") -> Shape:
    """Give a rectangle out of (left, bottom, right, top)."""
    x0, y0, x1, y1 = edges
    return Shape(part, ((x0, y0), (x1, y0), (x1, y1), (x0, y1)), colour, shade)


def disc(part: str, colour: RGB, centre: Point, radii: Point, shade: str = "ball") -> Shape:
    """Give an ellipse."""
    points = tuple((centre[0] + radii[0] * x, centre[1] + radii[1] * y) for x, y in _CIRCLE)
    return Shape(part, points, colour, shade)


def ring(part: str, colour: RGB, centre: Point, outer: float, inner: float) -> Shape:
    """Give a circle with a hole, as one outline that goes in and comes back."""
    rim = [(centre[0] + outer * x, centre[1] + outer * y) for x, y in [*_CIRCLE, _CIRCLE[0]]]
    hole = [(centre[0] + inner * x, centre[1] + inner * y) for x, y in [*_CIRCLE, _CIRCLE[0]]]
    return Shape(part, tuple(rim + hole[::-1]), colour)


def limb(part: str, colour: RGB, start: Point, end: Point, widths: Point) -> Shape:
    """Give a tapered bar from `start` to `end`, `widths` wide at the two."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    length = float(np.sqrt(dx * dx + dy * dy)) or 1.0
    nx, ny = -dy / length / 2, dx / length / 2
    a, b = widths
    points = (
        (start[0] + nx * a, start[1] + ny * a),
        (end[0] + nx * b, end[1] + ny * b),
        (end[0] - nx * b, end[1] - ny * b),
        (start[0] - nx * a, start[1] - ny * a),
    )
    return Shape(part, points, colour, "round")


def textured(shape: Shape, texture: str) -> Shape:
    """Give `shape` with another texture."""
    return Shape(shape.part, shape.points, shape.colour, shape.shade, texture)


@cache
def _tile(texture: str) -> IntArray:
    """Give the texture's brightness change in 1/256, (512, 512), the same in every process."""
    rng = np.random.default_rng([7, len(texture), *texture.encode()])
    rows, columns = np.mgrid[0:_TILE, 0:_TILE].astype(np.int32)
    fine = smooth_noise(rng, _TILE, _TILE, 2) - 128
    if texture == "leaf":
        return np.asarray(fractal_noise(rng, _TILE, _TILE, 12) * 3 // 4 + fine // 3, np.int32)
    if texture == "fur":
        return np.asarray(fractal_noise(rng, _TILE, _TILE, 8) // 3 + fine // 5, np.int32)
    if texture == "brick":
        joint = (rows % 8 == 0) | ((columns + rows // 8 % 2 * 8) % 16 == 0)
        return np.asarray(np.where(joint, -48, 6) + fine // 6, np.int32)
    if texture == "rows":
        return np.asarray(np.where(rows % 6 < 2, -42, 10) + fine // 6, np.int32)
    if texture == "stripes":
        return np.asarray(np.where(columns % 10 < 4, -40, 12) + fine // 8, np.int32)
    if texture == "glass":
        return np.asarray((rows * 3 + columns * 5) % 150 // 2 - 24, np.int32)
    return np.asarray(fractal_noise(rng, _TILE, _TILE, 24) // 8 + fine // 10, np.int32)


def _outline(shape: Shape, pose: Pose) -> list[tuple[int, int]]:
    """Give the outline in samples, x to the right, y down."""
    t = pose.lean
    cos, sin = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    unit = pose.scale * SAMPLES
    sign = -1 if pose.mirror else 1
    return [
        (round((x * cos - y * sin) * unit) * sign, -round((x * sin + y * cos) * unit))
        for x, y in shape.points
    ]


def _shade(shape: Shape, size: tuple[int, int], light: int, start: tuple[int, int]) -> IntArray:
    """Give the brightness of a shape's box, 256 for its own colour, (height, width)."""
    height, width = size
    to_light, to_top, sides, ends = _SHADES[shape.shade]
    u = ((2 * np.arange(width, dtype=np.int32) + 1 - width) * 256 // width)[None, :]
    v = ((2 * np.arange(height, dtype=np.int32) + 1 - height) * 256 // height)[:, None]
    smooth = 256 + (to_light * light * u - to_top * v) // 256
    smooth = smooth - (sides * u * u + ends * v * v) // 65536
    rows = (np.arange(height) + start[0]) % _TILE
    columns = (np.arange(width) + start[1]) % _TILE
    return np.asarray(smooth + _tile(shape.texture)[rows[:, None], columns[None, :]], np.int32)


def rasterise(shapes: Sequence[Shape], pose: Pose, light: int, rng: np.random.Generator) -> Sprite:
    """Draw shapes, the later over the earlier.

    Args:
        shapes: At least one and at most 255 shapes of one object.
        pose: Scale, mirroring and rotation.
        light: 1 for light from the right, -1 from the left.
        rng: Places the textures.

    Returns:
        The sprite, at most as large as the object's box plus one pixel on each side.
    """
    outlines = [_outline(shape, pose) for shape in shapes]
    xs = [x for outline in outlines for x, _ in outline]
    ys = [y for outline in outlines for _, y in outline]
    left, top = min(xs) // SAMPLES - 1, min(ys) // SAMPLES - 1
    width, height = max(xs) // SAMPLES + 2 - left, max(ys) // SAMPLES + 2 - top
    index = np.zeros((height * SAMPLES, width * SAMPLES), np.uint8)
    windows = []
    for number, outline in enumerate(outlines, 1):
        x, y, inside = fill_polygon([(x - left * SAMPLES, y - top * SAMPLES) for x, y in outline])
        window = (slice(y, y + inside.shape[0]), slice(x, x + inside.shape[1]))
        np.copyto(index[window], np.uint8(number), where=inside)
        windows.append(window)
    colour = np.zeros((*index.shape, 3), np.int32)
    for number, (shape, window) in enumerate(zip(shapes, windows, strict=True), 1):
        start = (int(rng.integers(_TILE)), int(rng.integers(_TILE)))
        _fill(colour[window], index[window] == number, shape, light, start)
    names = tuple(dict.fromkeys(shape.part for shape in shapes))
    lut = np.array([0, *(names.index(shape.part) + 1 for shape in shapes)], np.uint8)
    blocks = _blocks(lut[index])
    return Sprite(
        colour=_sum_samples(colour),
        coverage=np.asarray((blocks > 0).sum(axis=-1), np.int32),
        part=np.sort(blocks, axis=-1)[..., SAMPLES * SAMPLES // 2],
        names=names,
        left=left,
        top=top,
    )


def _sum_samples(samples: IntArray) -> IntArray:
    """Add up the samples of each pixel, (H, W, 3)."""
    total = samples[::SAMPLES, ::SAMPLES].copy()
    for row in range(SAMPLES):
        for column in range(SAMPLES):
            if row or column:
                total += samples[row::SAMPLES, column::SAMPLES]
    return total


def _blocks(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Give the samples of each pixel along the last axis, (H, W, SAMPLES squared)."""
    height, width = labels.shape[0] // SAMPLES, labels.shape[1] // SAMPLES
    split = labels.reshape(height, SAMPLES, width, SAMPLES).swapaxes(1, 2)
    return split.reshape(height, width, SAMPLES * SAMPLES)


def _fill(
    colour: IntArray, chosen: NDArray[np.bool_], shape: Shape, light: int, start: tuple[int, int]
) -> None:
    """Paint the chosen samples of a shape's box, in place."""
    if not chosen.any():
        return
    bright = _shade(shape, (chosen.shape[0], chosen.shape[1]), light, start)
    base = np.array(shape.colour, np.int32)
    # Adding a little of the light itself keeps dark paint from being flat.
    lit = base * bright[..., None] // 256 + (bright[..., None] - 256) // 16
    np.copyto(colour, np.clip(lit, 0, 255), where=chosen[..., None])
