"""Vehicles, each a list of shapes one unit high, seen from the side."""

import numpy as np

from pipeline.scenes.canvas import Point, Shape, box, disc, limb, poly, ring, textured
from pipeline.scenes.chance import between, chance, pick
from pipeline.scenes.palette import GLASS, METAL, RGB, TYRE, WOOD, shade, vary


def _wheel(centre: Point, radius: float) -> list[Shape]:
    return [
        disc("wheels", TYRE, centre, (radius, radius)),
        disc("wheels", METAL, centre, (radius * 0.56, radius * 0.56)),
        disc("wheels", (84, 86, 90), centre, (radius * 0.2, radius * 0.2)),
    ]


def car(rng: np.random.Generator, paint: RGB) -> list[Shape]:
    """Draw a car that faces right: saloon or hatchback."""
    hatch = chance(rng, 0.4)
    back = -0.98 if hatch else -0.66
    roof = shade(paint, 94)
    cabin = [(back, 0.56), (back + 0.22, 0.97), (0.24, 1.0), (0.62, 0.58)]
    front = [(0.02, 0.6), (0.02, 0.91), (0.2, 0.91), (0.48, 0.6)]
    rear = [(back + 0.13, 0.6), (back + 0.28, 0.9), (-0.06, 0.91), (-0.06, 0.6)]
    body = [
        (-1.18, 0.2), (-1.2, 0.5), (-1.08, 0.6), (0.6, 0.61), (1.12, 0.5), (1.2, 0.38), (1.18, 0.2),
    ]  # fmt: skip
    return [
        poly("cabin", roof, cabin, "tall"),
        textured(poly("windows", GLASS, front), "glass"),
        textured(poly("windows", GLASS, rear), "glass"),
        poly("body", paint, body, "tall"),
        box("body", shade(paint, 64), (-1.17, 0.17, 1.17, 0.26)),
        box("body", shade(paint, 76), (-0.03, 0.28, -0.01, 0.6)),
        box("body", shade(paint, 60), (-0.24, 0.48, -0.12, 0.51)),
        disc("lights", (250, 240, 190), (1.11, 0.43), (0.07, 0.055)),
        box("lights", (190, 40, 36), (-1.19, 0.4, -1.1, 0.5)),
        *_wheel((-0.7, 0.21), 0.215),
        *_wheel((0.7, 0.21), 0.215),
    ]


def bus(rng: np.random.Generator, paint: RGB) -> list[Shape]:
    """Draw a bus that faces right, with a row of windows and a stripe."""
    stripe = pick(rng, ((236, 234, 226), shade(paint, 62)))
    panes = [
        textured(box("windows", GLASS, (x, 0.52, x + 0.235, 0.82), "tall"), "glass")
        for x in (-1.08, -0.8, -0.52, -0.24, 0.04, 0.32)
    ]
    body = [(-1.2, 0.14), (-1.2, 0.9), (-1.12, 0.98), (1.1, 0.98), (1.2, 0.86), (1.22, 0.14)]
    return [
        poly("body", paint, body, "tall"),
        box("roof", shade(paint, 118), (-1.12, 0.93, 1.08, 1.0)),
        box("stripe", stripe, (-1.2, 0.36, 1.215, 0.43)),
        *panes,
        textured(box("door", shade(GLASS, 80), (0.66, 0.18, 0.9, 0.82), "tall"), "glass"),
        box("door", shade(paint, 60), (0.77, 0.18, 0.79, 0.82)),
        textured(
            poly("windows", GLASS, [(1.0, 0.5), (1.0, 0.84), (1.14, 0.84), (1.21, 0.5)]), "glass"
        ),
        box("lights", (250, 240, 190), (1.12, 0.22, 1.21, 0.3)),
        *_wheel((-0.72, 0.15), 0.16),
        *_wheel((0.5, 0.15), 0.16),
    ]


def bicycle(rng: np.random.Generator, paint: RGB) -> list[Shape]:
    """Draw a bicycle that faces right."""
    back, front, crank = (-0.52, 0.33), (0.52, 0.33), (-0.06, 0.32)
    seat, head = (-0.2, 0.76), (0.36, 0.8)
    wide = (0.075, 0.075)
    wheels = [ring("wheels", TYRE, centre, 0.33, 0.265) for centre in (back, front)]
    spokes = [
        limb(
            "wheels",
            METAL,
            (x + a * 0.27, 0.33 + b * 0.27),
            (x - a * 0.27, 0.33 - b * 0.27),
            (0.02, 0.02),
        )
        for x in (-0.52, 0.52)
        for a, b in ((1.0, 0.0), (0.5, 0.866), (-0.5, 0.866))
    ]
    return [
        *spokes,
        *wheels,
        limb("frame", paint, back, crank, wide),
        limb("frame", paint, back, (-0.18, 0.7), wide),
        limb("frame", paint, crank, seat, wide),
        limb("frame", paint, crank, (0.4, 0.68), wide),
        limb("frame", paint, (-0.16, 0.68), (0.38, 0.72), wide),
        limb("frame", paint, front, head, wide),
        limb("handlebar", (60, 60, 64), head, (0.34, 0.96), (0.05, 0.05)),
        limb("handlebar", (60, 60, 64), (0.22, 0.96), (0.48, 0.94), (0.06, 0.06)),
        box("seat", (50, 40, 36), (-0.34, 0.76, -0.06, 0.84)),
        disc("frame", shade(paint, 60), crank, (0.08, 0.08)),
    ]


def boat(rng: np.random.Generator, paint: RGB) -> list[Shape]:
    """Draw a sailing boat with a hull of colour `paint` and two sails."""
    cloth = vary(rng, pick(rng, ((240, 236, 224), (240, 236, 224), (226, 180, 120))), 8)
    lean = between(rng, 0.26, 0.4)
    hull = [(-0.5, 0.2), (-0.36, -0.02), (0.34, -0.02), (0.58, 0.22)]
    return [
        limb("mast", WOOD, (0.02, 0.16), (0.02, 1.0), (0.035, 0.02)),
        poly("sail", cloth, [(-0.02, 0.27), (-0.02, 0.97), (-lean - 0.06, 0.29)], "round"),
        poly("jib", shade(cloth, 88), [(0.07, 0.25), (0.05, 0.86), (0.46, 0.27)], "round"),
        box("cabin", shade(cloth, 92), (-0.24, 0.18, 0.08, 0.26)),
        poly("hull", paint, hull, "tall"),
        poly("hull", shade(paint, 140), [(-0.5, 0.2), (-0.475, 0.16), (0.55, 0.175), (0.58, 0.22)]),
    ]


def airplane(rng: np.random.Generator, paint: RGB) -> list[Shape]:
    """Draw an airliner that flies to the right."""
    trim = pick(rng, (shade(paint, 60), (220, 220, 222), (60, 80, 140)))
    body = [
        (-1.3, 0.62), (-1.2, 0.5), (-0.6, 0.36), (0.9, 0.36), (1.2, 0.44), (1.3, 0.52),
        (1.15, 0.62), (0.9, 0.68), (-0.9, 0.68),
    ]  # fmt: skip
    panes = [
        box("windows", (58, 74, 96), (x, 0.53, x + 0.07, 0.6), "plain")
        for x in (-0.7, -0.5, -0.3, -0.1, 0.1, 0.3, 0.5, 0.7)
    ]
    return [
        poly("wings", shade(paint, 72), [(0.1, 0.6), (0.4, 0.6), (-0.1, 0.94), (-0.3, 0.94)]),
        poly("tail", trim, [(-1.3, 0.62), (-1.36, 1.05), (-1.1, 1.05), (-0.8, 0.66)]),
        poly("body", paint, body, "tall"),
        *panes,
        poly("windows", (58, 74, 96), [(1.0, 0.55), (1.02, 0.62), (1.14, 0.6), (1.2, 0.55)]),
        poly("tail", shade(trim, 80), [(-1.2, 0.6), (-1.0, 0.56), (-1.3, 0.42), (-1.44, 0.44)]),
        poly(
            "wings",
            shade(paint, 84),
            [(-0.15, 0.46), (0.3, 0.46), (-0.35, 0.0), (-0.58, 0.0)],
            "tall",
        ),
        disc("engine", (92, 96, 104), (0.02, 0.26), (0.17, 0.08)),
    ]
