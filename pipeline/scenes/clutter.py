"""Things that nobody refers to, each a list of shapes one unit high: they hide and distract."""

import numpy as np

from pipeline.scenes.canvas import Shape, box, disc, limb, poly, textured
from pipeline.scenes.chance import between, pick
from pipeline.scenes.palette import RGB, WOOD, shade, vary


def rock(rng: np.random.Generator) -> list[Shape]:
    """Draw a stone."""
    stone = vary(rng, (128, 122, 114), 20)
    outline = [(-0.9, 0.0), (-0.8, 0.5), (-0.3, 0.95), (0.35, 1.0), (0.8, 0.45), (0.95, 0.0)]
    moved = [(x + between(rng, -0.12, 0.12), y) for x, y in outline]
    facet = [(-0.3, 0.95), (0.35, 1.0), (0.2, 0.5), (-0.45, 0.45)]
    return [
        textured(poly("rock", stone, moved, "ball"), "fur"),
        textured(poly("rock", shade(stone, 114), facet), "fur"),
    ]


def bush(rng: np.random.Generator) -> list[Shape]:
    """Draw a low bush."""
    leaf = vary(rng, pick(rng, ((58, 100, 50), (84, 104, 52), (46, 84, 58))), 10)
    lumps = ((-0.5, 0.4, 0.5, 0.4), (0.5, 0.38, 0.55, 0.38), (0.0, 0.55, 0.55, 0.45))
    return [
        textured(disc("bush", shade(leaf, 86 + 8 * k), (x, y), (rx, ry)), "leaf")
        for k, (x, y, rx, ry) in enumerate(lumps)
    ]


def crate(rng: np.random.Generator) -> list[Shape]:
    """Draw a wooden crate or a cardboard box."""
    wood = vary(rng, pick(rng, (WOOD, (184, 148, 104), (120, 112, 104))), 14)
    side, depth = between(rng, 0.5, 0.75), between(rng, 0.2, 0.4)
    edge = shade(wood, 70)
    top = [(-side, 0.8), (side, 0.8), (side + depth, 1.0), (-side + depth, 1.0)]
    right = [(side, 0.0), (side + depth, 0.2), (side + depth, 1.0), (side, 0.8)]
    return [
        textured(box("crate", wood, (-side, 0.0, side, 0.8)), "rows"),
        poly("crate", edge, right),
        poly("crate", shade(wood, 116), top),
    ]


def cone(rng: np.random.Generator) -> list[Shape]:
    """Draw a traffic cone."""
    paint: RGB = vary(rng, (206, 96, 44))
    return [
        box("cone", shade(paint, 60), (-0.42, 0.0, 0.42, 0.09)),
        poly("cone", paint, [(-0.3, 0.08), (0.3, 0.08), (0.06, 1.0), (-0.06, 1.0)], "round"),
        poly(
            "cone",
            (226, 224, 216),
            [(-0.22, 0.4), (0.22, 0.4), (0.15, 0.62), (-0.15, 0.62)],
            "round",
        ),
    ]


def post(rng: np.random.Generator) -> list[Shape]:
    """Draw a row of posts with a rail."""
    wood = vary(rng, pick(rng, (WOOD, (150, 146, 138), (96, 88, 80))), 14)
    count = int(rng.integers(2, 5))
    posts = [
        limb("post", wood, (k - count / 2, 0.0), (k - count / 2, 1.0), (0.13, 0.12))
        for k in range(count)
    ]
    left, right = -count / 2 - 0.3, count / 2 - 0.7
    rails = [box("post", shade(wood, 88), (left, y, right, y + 0.1)) for y in (0.4, 0.72)]
    return [*rails, *posts]


def weed(rng: np.random.Generator) -> list[Shape]:
    """Draw a tuft of grass or sea weed."""
    green = vary(rng, pick(rng, ((72, 108, 56), (98, 116, 60), (62, 96, 74))), 14)
    blades = []
    for k in range(7):
        x, tip = (k - 3) * 0.09, (k - 3) * 0.2 + between(rng, -0.12, 0.12)
        tall = between(rng, 0.55, 1.0)
        blades.append(limb("weed", shade(green, 80 + 6 * k), (x, 0.0), (tip, tall), (0.1, 0.02)))
    return blades


def book(rng: np.random.Generator) -> list[Shape]:
    """Draw a stack of books that lie on their sides."""
    shapes: list[Shape] = []
    count = int(rng.integers(2, 4))
    for k in range(count):
        cover = vary(rng, pick(rng, ((112, 76, 54), (92, 70, 58), (140, 106, 76))), 16)
        left, right = -1.1 + between(rng, -0.2, 0.2), 1.1 + between(rng, -0.2, 0.2)
        low = k / count
        shapes.append(box("book", cover, (left, low, right, low + 1 / count)))
        pages = (left + 0.1, low + 0.25 / count, right, low + 0.75 / count)
        shapes.append(textured(box("book", (214, 206, 188), pages), "rows"))
    return shapes
