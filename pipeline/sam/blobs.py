"""Training scenes of the small SAM: random blobs glued together from parts.

Shape legend: H and W rows and columns, P parts.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from pipeline.sam.blob_parts import FloatArray, Rng, random_outline, random_texture, smooth_noise

SCENE_SIZE = 256
"""Side of a scene, pixels."""
LEVELS = ("region", "part", "object")
"""From fine to coarse: one surface; a part with its decorations; the whole object."""
_MAX_PARTS = 250  # ids are uint8


@dataclass(frozen=True, slots=True)
class BlobScene:
    """One scene: the picture and which surface is visible where."""

    image: npt.NDArray[np.uint8]
    """Shape (H, W, 3), RGB."""
    region_map: npt.NDArray[np.uint8]
    """Visible surface per pixel, shape (H, W), an index into the tables below."""
    part_of: npt.NDArray[np.uint8]
    """The part that a surface decorates, or itself, shape (P,)."""
    object_of: npt.NDArray[np.uint8]
    """The surface that names the object, shape (P,)."""
    is_background: npt.NDArray[np.bool_]
    """Surfaces that belong to no object, shape (P,)."""

    def level_map(self, level: Literal["region", "part", "object"]) -> npt.NDArray[np.uint8]:
        """Give the id of each pixel's segment at one level, shape (H, W), uint8."""
        if level == "region":
            return self.region_map
        table = self.part_of if level == "part" else self.object_of
        return table[self.region_map]

    def masks(
        self, level: Literal["region", "part", "object"], min_area: int = 48
    ) -> npt.NDArray[np.bool_]:
        """Cut out the visible segments of one level, background left out.

        Args:
            level: One of `LEVELS`.
            min_area: Segments with fewer visible pixels are left out.

        Returns:
            Shape (N, H, W), bool; N may be 0.
        """
        segment_map = self.level_map(level)
        area = np.bincount(segment_map.ravel(), minlength=len(self.part_of))
        ids = np.flatnonzero((area >= min_area) & ~self.is_background)
        return np.asarray(segment_map[None] == ids[:, None, None], np.bool_)


class _Canvas:
    """A scene being painted, from back to front."""

    def __init__(self, rng: Rng) -> None:
        self.rng = rng
        self.pixels = np.zeros((SCENE_SIZE, SCENE_SIZE, 3), np.float32)
        self.region_map = np.zeros((SCENE_SIZE, SCENE_SIZE), np.uint8)
        self.part_of: list[int] = []
        self.object_of: list[int] = []
        self.is_background: list[bool] = []

    def add(self, part: int | None, owner: int | None, background: bool = False) -> int:
        """Register a surface (of a part, of an object; None = its own) and give its id."""
        index = len(self.part_of)
        self.part_of.append(index if part is None else part)
        self.object_of.append(index if owner is None else owner)
        self.is_background.append(background)
        return index

    def full(self) -> bool:
        """Tell whether no further surface can be registered."""
        return len(self.part_of) >= _MAX_PARTS

    def paint(
        self,
        outline: FloatArray,
        surface: int,
        color: FloatArray,
        rim: tuple[int, FloatArray] | None = None,
        within: int | None = None,
    ) -> None:
        """Fill an outline (N, 2) with a texture, optionally only where `within` is visible."""
        low = np.maximum(np.floor(outline.min(0)).astype(int), 0)
        high = np.minimum(np.ceil(outline.max(0)).astype(int) + 1, SCENE_SIZE)
        if np.any(high <= low):
            return
        (x0, y0), (x1, y1) = low, high
        stencil = Image.new("L", (int(x1 - x0), int(y1 - y0)))
        corners = [(float(x), float(y)) for x, y in outline - low]
        draw = ImageDraw.Draw(stencil)
        draw.polygon(corners, fill=1)
        if rim is not None:
            draw.line([*corners, corners[0], corners[1]], fill=2, width=rim[0], joint="curve")
        inside = np.asarray(stencil)
        window = (slice(y0, y1), slice(x0, x1))
        if within is not None:
            inside = inside * (self.region_map[window] == within)
        texture = random_texture(self.rng, int(y1 - y0), int(x1 - x0), color)
        if rim is not None:
            texture[inside == 2] = rim[1]
        self.pixels[window][inside > 0] = texture[inside > 0]
        self.region_map[window][inside > 0] = surface

    def shade(self, outline: FloatArray, factor: float) -> None:
        """Multiply the light inside an outline, softly at its edge."""
        stencil = Image.new("L", (SCENE_SIZE, SCENE_SIZE))
        ImageDraw.Draw(stencil).polygon([(float(x), float(y)) for x, y in outline], fill=255)
        blurred = stencil.filter(ImageFilter.GaussianBlur(float(self.rng.uniform(0.5, 4))))
        light = 1 - (1 - factor) * np.asarray(blurred, np.float32) / 255
        self.pixels *= light[:, :, None]


def _color(rng: Rng) -> FloatArray:
    """Draw a colour: half vivid, half dull."""
    color = rng.uniform(0, 255, 3)
    if rng.random() < 0.4:
        color = color.mean() + (color - color.mean()) * rng.uniform(0, 0.5)
    return np.asarray(color, np.float32)


def _paint_background(canvas: _Canvas) -> None:
    """Cover the canvas with a texture, up to four large regions and some clutter lines."""
    rng = canvas.rng
    everything = np.asarray([[-1, -1], [257, -1], [257, 257], [-1, 257]], np.float32)
    canvas.paint(everything, canvas.add(None, None, background=True), _color(rng))
    if rng.random() < 0.5:  # a horizon
        height, slope = rng.uniform(60, 220), rng.normal(0, 12)
        ground = np.asarray(
            [[-1, height], [257, height + slope], [257, 257], [-1, 257]], np.float32
        )
        canvas.paint(ground, canvas.add(None, None, background=True), _color(rng))
    for _ in range(rng.integers(0, 4)):
        outline = random_outline(rng, rng.uniform(40, 150), upright=rng.random() < 0.5)
        outline = outline + rng.uniform(0, SCENE_SIZE, 2).astype(np.float32)
        canvas.paint(outline, canvas.add(None, None, background=True), _color(rng))
    if rng.random() < 0.25:
        _scratch(canvas)


def _scratch(canvas: _Canvas) -> None:
    """Draw thin lines over the background, which belong to whatever is below."""
    rng = canvas.rng
    picture = Image.fromarray(np.clip(canvas.pixels, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.integers(3, 25)):
        ends = rng.uniform(0, SCENE_SIZE, 4)
        if rng.random() < 0.6:
            ends[2:] = ends[:2] + rng.normal(0, 12, 2)
        fill = tuple(int(v) for v in _color(rng))
        draw.line([float(v) for v in ends], fill=fill, width=int(rng.integers(1, 3)))
    canvas.pixels = np.asarray(picture, np.float32).copy()


def _decorate(canvas: _Canvas, outline: FloatArray, part: int, owner: int, radius: float) -> None:
    """Paint one to six marks on a part: scattered, or equal ones in a row or grid."""
    rng = canvas.rng
    low, high = outline.min(0), outline.max(0)
    count = int(rng.integers(1, 5))
    size = radius * rng.uniform(0.12, 0.45)
    regular = rng.random() < 0.55
    mark, color = random_outline(rng, size, upright=True), _color(rng)
    rows = 2 if regular and rng.random() < 0.4 else 1
    middle = rng.uniform(0.25, 0.75)
    for number in range(count * rows):
        if canvas.full():
            return
        if regular:
            share = np.asarray([(number // rows + 0.5) / count, middle])
            if rows == 2:
                share[1] = (number % 2 + 0.5) / 2
        else:
            share = rng.uniform(0.1, 0.9, 2)
            mark, color = random_outline(rng, size, upright=True), _color(rng)
        center = (low + share * (high - low)).astype(np.float32)
        canvas.paint(mark + center, canvas.add(part, owner), color, within=part)


def _layout(rng: Rng, radius: float) -> list[tuple[FloatArray, float]]:
    """Place the outlines of an object's parts about the origin, each touching an earlier one."""
    upright = bool(rng.random() < 0.65)
    parts = [(random_outline(rng, radius, upright), radius)]
    for _ in range(rng.integers(0, 5)):
        anchor, anchor_radius = parts[rng.integers(len(parts))]
        size = max(anchor_radius * rng.uniform(0.3, 0.95), 4.0)
        outline = random_outline(rng, size, upright)
        joint = anchor[rng.integers(len(anchor))]
        if upright and rng.random() < 0.5:  # straight above, below or beside
            side = rng.integers(4)
            joint = anchor.mean(0)
            extreme = [anchor.min(0)[0], anchor.min(0)[1], anchor.max(0)[0], anchor.max(0)[1]]
            joint[side % 2] = extreme[side]
        away = joint - anchor.mean(0)
        center = joint + away / (np.linalg.norm(away) + 1e-3) * size * rng.uniform(-0.3, 0.6)
        parts.append((np.asarray(outline + center, np.float32), size))
        if rng.random() < 0.3:  # its mirror twin
            twin = parts[-1][0] * np.asarray([-1, 1], np.float32)
            parts.append((twin + np.asarray([2 * anchor.mean(0)[0], 0], np.float32), size))
    return parts[:6]


def _paint_object(canvas: _Canvas) -> None:
    """Add one object of one to six parts at a random place."""
    rng = canvas.rng
    radius = float(np.clip(np.exp(rng.normal(3.1, 0.55)), 6, 75))
    parts = _layout(rng, radius)
    center = rng.uniform(0.02, 0.98, 2).astype(np.float32) * SCENE_SIZE
    if rng.random() < 0.3:
        everything = np.concatenate([outline for outline, _ in parts]) + center
        foot = np.asarray([everything.mean(0)[0], everything.max(0)[1]])
        disc = np.stack([np.cos(np.arange(20) / 3.1), np.sin(np.arange(20) / 3.1)], 1)
        canvas.shade(np.asarray(foot + disc * [radius, radius * 0.25], np.float32), 0.6)
    rim = (int(rng.integers(1, 4)), _color(rng) * 0.4) if rng.random() < 0.3 else None
    base = _color(rng)
    kinship = rng.choice([0.0, 0.5, 0.85], p=[0.5, 0.3, 0.2])
    order = rng.permutation(len(parts)) if rng.random() < 0.6 else np.arange(len(parts))
    owner = None
    for index in order:
        if canvas.full():
            return
        outline, size = parts[index][0] + center, parts[index][1]
        surface = canvas.add(None, owner)
        owner = surface if owner is None else owner
        color = np.asarray(base * kinship + _color(rng) * (1 - kinship), np.float32)
        canvas.paint(outline, surface, color, rim=rim)
        if size > 8 and rng.random() < 0.35:
            _decorate(canvas, outline, surface, owner, size)


def _photograph(canvas: _Canvas) -> npt.NDArray[np.uint8]:
    """Light, blur and grain the canvas like a camera would, shape (H, W, 3), uint8."""
    rng = canvas.rng
    pixels = canvas.pixels
    if rng.random() < 0.5:
        light = 1 + rng.uniform(0.05, 0.3) * smooth_noise(rng, SCENE_SIZE, SCENE_SIZE, 2)
        pixels = pixels * light[:, :, None]
    picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if rng.random() < 0.6:
        picture = picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.2, 0.9))))
    pixels = np.asarray(picture, np.float32)
    if rng.random() < 0.6:
        grain = rng.standard_normal(pixels.shape[: rng.integers(2, 4)], np.float32)
        pixels = pixels + grain.reshape(SCENE_SIZE, SCENE_SIZE, -1) * rng.uniform(1, 12)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def blob_scene(seed: int, index: int) -> BlobScene:
    """Paint scene number `index` of a seed.

    Args:
        seed: Names the series of scenes; the training and held-out series differ in it.
        index: Position in the series; equal arguments give equal scenes.

    Returns:
        A scene of 256 x 256 pixels with one to eleven objects, some hidden in part.
    """
    canvas = _Canvas(np.random.default_rng([seed, index]))
    _paint_background(canvas)
    for _ in range(canvas.rng.integers(1, 12)):
        if not canvas.full():
            _paint_object(canvas)
    return BlobScene(
        image=_photograph(canvas),
        region_map=canvas.region_map,
        part_of=np.asarray(canvas.part_of, np.uint8),
        object_of=np.asarray(canvas.object_of, np.uint8),
        is_background=np.asarray(canvas.is_background, np.bool_),
    )
