"""Plainer training scenes of the small SAM: fewer, larger objects on quiet, lit backgrounds.

The scenes of `blobs` are cluttered on purpose; these come closer to photographs in which objects
stand apart. Objects are glued together from one to five parts, each of its own colour or nearly
that of its neighbour; edges are slightly blurred, shadows fall to the lower right.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from pipeline.sam.blobs import SCENE_SIZE, BlobScene

Rng = np.random.Generator
FloatArray = npt.NDArray[np.floating]
_SIDE = SCENE_SIZE
_ROWS, _COLUMNS = (axis.astype(np.float32) / _SIDE for axis in np.mgrid[:_SIDE, :_SIDE])
_TABLE = 256  # ids are uint8
_SHADOW_OFFSET_PX = (5, 4)


class _Painting:
    """A scene being painted, from back to front."""

    def __init__(self, rng: Rng) -> None:
        self.rng = rng
        self.pixels = np.zeros((_SIDE, _SIDE, 3), np.float32)
        self.region_map = np.zeros((_SIDE, _SIDE), np.uint8)
        self.object_of: list[int] = []

    def add(self, mask: npt.NDArray[np.bool_], colour: FloatArray, owner: int | None) -> int:
        """Paint one surface of an object (None = its own) and give its id."""
        surface = len(self.object_of)
        self.object_of.append(surface if owner is None else owner)
        self.pixels[mask] = self._texture(colour)[mask]
        self.region_map[mask] = surface
        return surface

    def shade(self, mask: npt.NDArray[np.bool_]) -> None:
        """Darken what lies below and to the right of a mask."""
        blurred = Image.fromarray((mask * 255).astype(np.uint8)).filter(ImageFilter.BoxBlur(4))
        shadow = np.roll(np.asarray(blurred, np.float32) / 255, _SHADOW_OFFSET_PX, (0, 1))
        self.pixels *= (1 - 0.35 * shadow)[..., None]

    def _texture(self, colour: FloatArray) -> FloatArray:
        rng = self.rng
        grain = _noise(rng, int(rng.choice([4, 8, 16, 40]))) * rng.uniform(5, 45)
        texture = colour[None, None] + grain[..., None]
        if rng.random() < 0.5:
            slope = _COLUMNS * rng.normal() + _ROWS * rng.normal()
            texture = texture + (slope * rng.uniform(10, 60))[..., None]
        return texture


def plain_scene(seed: int, index: int) -> BlobScene:
    """Paint one scene; a pure function of its arguments.

    Args:
        seed: Names a series of scenes.
        index: The scene's number in the series, at least 0.

    Returns:
        A scene of 256 x 256 pixels; a surface is a part of its own, so that the levels `region` and
        `part` agree.
    """
    rng = np.random.default_rng([seed, index])
    painting = _Painting(rng)
    _paint_background(painting)
    num_background = len(painting.object_of)
    for _ in range(rng.integers(3, 9)):
        _paint_object(painting)
    table = np.arange(_TABLE, dtype=np.uint8)
    object_of = table.copy()
    object_of[: len(painting.object_of)] = painting.object_of
    return BlobScene(
        image=_finish(painting),
        region_map=painting.region_map,
        part_of=table,
        object_of=object_of,
        is_background=table < num_background,
    )


def _paint_background(painting: _Painting) -> None:
    rng = painting.rng
    painting.add(np.ones((_SIDE, _SIDE), np.bool_), _colour(rng), None)
    if rng.random() < 0.75:
        horizon = rng.uniform(0.2, 0.8) + rng.normal(0, 0.1) * _COLUMNS
        painting.add(horizon < _ROWS, _colour(rng), None)
        if rng.random() < 0.4:
            painting.add(horizon + rng.uniform(0.05, 0.3) < _ROWS, _colour(rng), None)


def _paint_object(painting: _Painting) -> None:
    rng = painting.rng
    size = np.exp(rng.uniform(np.log(11), np.log(60)))
    centre = rng.uniform(0, _SIDE, 2)
    base, owner = _colour(rng), None
    placed: list[tuple[float, float, float, float]] = []
    for _ in range(rng.integers(1, 6)):
        placed.append(_place(rng, placed, centre, float(size)))
        mask = _polygon(_outline(rng, *placed[-1]))
        if not mask.any() or len(painting.object_of) >= _TABLE:
            continue
        if owner is None and rng.random() < 0.4:
            painting.shade(mask)
        alike = rng.random() < 0.2
        colour = base + rng.normal(0, 12, 3) if alike else _colour(rng)
        surface = painting.add(mask, colour, owner)
        owner = surface if owner is None else owner


def _place(
    rng: Rng, placed: list[tuple[float, float, float, float]], centre: FloatArray, size: float
) -> tuple[float, float, float, float]:
    """Give centre and half axes (x, y, w, h) of the next part: on or beside an earlier one."""
    if not placed:
        w, h = size * rng.uniform(0.5, 1), size * rng.uniform(0.5, 1)
        return float(centre[0]), float(centre[1]), w, h
    x, y, w0, h0 = placed[rng.integers(len(placed))]
    scale = rng.uniform(0.25, 0.9)
    w, h = w0 * scale * rng.uniform(0.6, 1.4), h0 * scale * rng.uniform(0.6, 1.4)
    if rng.random() < 0.4:
        return x + rng.uniform(-0.4, 0.4) * w0, y + rng.uniform(-0.4, 0.4) * h0, w, h
    side = rng.integers(4)
    sign = 1 if side % 2 == 0 else -1
    if side < 2:
        return x + sign * (w0 + w * 0.7), y + rng.uniform(-0.3, 0.3) * h0, w, h
    return x + rng.uniform(-0.3, 0.3) * w0, y + sign * (h0 + h * 0.7), w, h


def _outline(rng: Rng, x: float, y: float, w: float, h: float) -> FloatArray:
    """Draw a turned ellipse, rectangle, triangle, trapezium, smooth blob or polygon, (V, 2)."""
    kind, turn = rng.integers(6), rng.uniform(-0.4, 0.4)
    if kind == 1:
        points = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], np.float64)
    elif kind == 2:
        points = np.array([[0, -1], [1, 1], [-1, 1]], np.float64)
    elif kind == 3:
        top = rng.uniform(0.3, 0.8)
        points = np.array([[-top, -1], [top, -1], [1, 1], [-1, 1]])
    elif kind == 5:
        angle = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(4, 8)))
        points = np.stack([np.cos(angle), np.sin(angle)], 1)
    else:
        angle = np.linspace(0, 2 * np.pi, 32, endpoint=False)
        radius = np.ones(32)
        for amplitude, low in ((0.25, 2), (0.15, 3)) if kind == 4 else ():
            waves, phase = rng.integers(low, 2 * low + 1), rng.uniform(0, 6)
            radius += amplitude * np.sin(waves * angle + phase)
        points = np.stack([np.cos(angle) * radius, np.sin(angle) * radius], 1)
    cos, sin = np.cos(turn), np.sin(turn)
    turned: FloatArray = (points * [w, h]) @ np.array([[cos, -sin], [sin, cos]]) + [x, y]
    return turned


def _polygon(points: FloatArray) -> npt.NDArray[np.bool_]:
    image = Image.new("L", (_SIDE, _SIDE))
    ImageDraw.Draw(image).polygon([(float(x), float(y)) for x, y in points], fill=1)
    return np.asarray(image, np.bool_)


def _noise(rng: Rng, cell_px: int) -> FloatArray:
    """Give smooth noise of about `cell_px` pixels, (H, W), in about [-0.5, 0.5]."""
    count = max(2, _SIDE // cell_px)
    coarse = Image.fromarray(rng.integers(0, 256, (count, count), dtype=np.uint8))
    fine = coarse.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    return np.asarray(fine, np.float32) / 255 - 0.5


def _colour(rng: Rng) -> FloatArray:
    return rng.uniform(15, 240, 3)


def _finish(painting: _Painting) -> npt.NDArray[np.uint8]:
    """Blur most scenes a little and add the sensor's noise."""
    rng = painting.rng
    image = Image.fromarray(np.clip(painting.pixels, 0, 255).astype(np.uint8))
    if rng.random() < 0.7:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.0)))
    noisy = np.asarray(image, np.float32) + rng.normal(0, rng.uniform(0, 7), (_SIDE, _SIDE, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)
