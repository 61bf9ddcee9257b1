"""Buildings, plants and furniture, each a list of shapes one unit high."""

import numpy as np

from pipeline.scenes.canvas import Shape, box, disc, limb, poly, ring, textured
from pipeline.scenes.chance import between, chance, pick
from pipeline.scenes.palette import COLOURS, GLASS, METAL, RGB, WOOD, shade, vary


def house(rng: np.random.Generator, paint: RGB) -> list[Shape]:
    """Draw a house with walls of colour `paint`, a gabled roof, a door and windows."""
    roof = vary(rng, pick(rng, ((120, 62, 50), (84, 84, 92), (96, 74, 60), (66, 70, 84))))
    door = vary(rng, pick(rng, ((90, 54, 36), (46, 78, 70), (120, 40, 40), (60, 64, 100))))
    half, eaves = between(rng, 0.48, 0.62), between(rng, 0.5, 0.58)
    door_x = pick(rng, (-0.1, half - 0.32))
    panes = [x for x in (-half + 0.1, half - 0.28) if abs(x - door_x) > 0.2]
    windows: list[Shape] = []
    for x in panes:
        windows.append(box("windows", (236, 232, 222), (x - 0.025, 0.19, x + 0.195, 0.42)))
        windows.append(textured(box("windows", GLASS, (x, 0.21, x + 0.17, 0.4), "tall"), "glass"))
        windows.append(box("windows", (236, 232, 222), (x + 0.075, 0.21, x + 0.095, 0.4)))
    gable = [(-half, eaves - 0.01), (0, 0.94), (half, eaves - 0.01)]
    slope = [
        (-half - 0.1, eaves - 0.06), (0, 1.0), (half + 0.1, eaves - 0.06), (half, eaves - 0.08),
        (0, 0.88), (-half, eaves - 0.08),
    ]  # fmt: skip
    front = chance(rng, 0.4)
    top = poly("roof", roof, slope, "tall")
    side = [(-half - 0.1, eaves), (-half + 0.12, 0.95), (half - 0.12, 0.95), (half + 0.1, eaves)]
    return [
        box("chimney", (122, 74, 62), (half * 0.35, 0.72, half * 0.35 + 0.11, 1.04), "round"),
        textured(
            box("walls", paint, (-half, 0, half, eaves), "tall"),
            pick(rng, ("brick", "rows", "grain")),
        ),
        *([poly("walls", shade(paint, 94), gable, "tall"), top] if front else []),
        *([] if front else [textured(poly("roof", roof, side, "tall"), "rows")]),
        *windows,
        box("door", door, (door_x, 0, door_x + 0.2, 0.38), "tall"),
        disc("door", (220, 190, 100), (door_x + 0.165, 0.18), (0.015, 0.015)),
        box("walls", shade(paint, 62), (-half, 0, door_x, 0.035)),
        box("walls", shade(paint, 62), (door_x + 0.2, 0, half, 0.035)),
    ]


def tree(rng: np.random.Generator, paint: RGB) -> list[Shape]:
    """Draw a tree, a fir or with a round crown of several clumps."""
    trunk = vary(rng, (92, 66, 46), 10)
    red, green, blue = paint  # leaves are duller than paint
    paint = ((red * 3 + 84) // 4, (green * 3 + 92) // 4, (blue * 3 + 36) // 4)
    if chance(rng, 0.3):
        tiers = [
            textured(
                poly("crown", shade(paint, 84 + 8 * k), [(-w, y), (0, top), (w, y)], "round"),
                "leaf",
            )
            for k, (w, y, top) in enumerate(
                ((0.32, 0.18, 0.58), (0.26, 0.38, 0.8), (0.19, 0.6, 1.0))
            )
        ]
        return [limb("trunk", trunk, (0, 0), (0, 0.3), (0.1, 0.08)), *tiers]
    shapes = [
        limb("trunk", trunk, (0, 0), (0.01, 0.6), (0.13, 0.07)),
        limb("trunk", trunk, (0, 0.34), (-0.16, 0.56), (0.05, 0.03)),
        limb("trunk", trunk, (0, 0.3), (0.17, 0.54), (0.05, 0.03)),
    ]
    clumps = (
        (0.0, 0.64, 0.34, 0.25),
        (-0.2, 0.6, 0.2, 0.17),
        (0.21, 0.62, 0.2, 0.18),
        (0.02, 0.82, 0.22, 0.18),
    )
    for number, (x, y, rx, ry) in enumerate(clumps):
        x, y = x + between(rng, -0.04, 0.04), y + between(rng, -0.03, 0.0)
        clump = disc("crown", shade(paint, 84 + 8 * number), (x, y), (rx, ry))
        shapes.append(textured(clump, "leaf"))
    return shapes


def flower(rng: np.random.Generator, paint: RGB) -> list[Shape]:
    """Draw a flower with petals of colour `paint`, in a pot half of the time."""
    stem, leaf = (56, 118, 50), vary(rng, (62, 134, 58), 8)
    centre = (112, 76, 34) if paint[0] > 200 and paint[1] > 150 else (236, 190, 60)
    petals = [
        disc(
            "petals", shade(paint, 88 + 12 * (k % 2)), (0.155 * x, 0.79 + 0.155 * y), (0.115, 0.115)
        )
        for k, (x, y) in enumerate(
            ((1, 0), (0.5, 0.87), (-0.5, 0.87), (-1, 0), (-0.5, -0.87), (0.5, -0.87))
        )
    ]
    pot: list[Shape] = []
    if chance(rng, 0.5):
        clay = vary(rng, pick(rng, ((172, 96, 64), (96, 100, 110), (200, 190, 170))))
        pot = [
            poly("pot", clay, [(-0.13, 0), (0.13, 0), (0.19, 0.24), (-0.19, 0.24)], "round"),
            box("pot", shade(clay, 86), (-0.21, 0.22, 0.21, 0.28), "round"),
        ]
    return [
        limb("stem", stem, (0, 0.0), (0, 0.7), (0.05, 0.04)),
        poly("leaves", leaf, [(0, 0.3), (0.14, 0.5), (0.3, 0.52), (0.16, 0.34)]),
        poly("leaves", shade(leaf, 86), [(0, 0.26), (-0.16, 0.44), (-0.3, 0.42), (-0.14, 0.28)]),
        *pot,
        *petals,
        disc("centre", centre, (0, 0.79), (0.1, 0.1)),
    ]


def lamp(rng: np.random.Generator, paint: RGB) -> list[Shape]:
    """Draw a standing lamp with a shade of colour `paint`."""
    pole = pick(rng, (METAL, WOOD, (60, 60, 66)))
    top = between(rng, 0.1, 0.16)
    return [
        disc("base", shade(pole, 84), (0, 0.03), (0.17, 0.035)),
        limb("pole", pole, (0, 0.03), (0, 0.72), (0.045, 0.04)),
        disc("bulb", (255, 244, 200), (0, 0.67), (0.07, 0.05), "plain"),
        poly("shade", paint, [(-0.26, 0.67), (0.26, 0.67), (top, 1.0), (-top, 1.0)], "round"),
        box("shade", shade(paint, 72), (-0.26, 0.665, 0.26, 0.69), "round"),
    ]


def chair(rng: np.random.Generator, paint: RGB) -> list[Shape]:
    """Draw a chair with seat and back of colour `paint`."""
    legs = pick(rng, (WOOD, shade(WOOD, 64), METAL))
    back = [(-0.31, 0.5), (-0.24, 0.52), (-0.27, 1.0), (-0.35, 1.0)]
    far, near = shade(legs, 72), legs
    rails = [
        limb("legs", far, (-0.2, 0.45), (-0.22, 0.08), (0.05, 0.045)),
        limb("legs", far, (0.27, 0.45), (0.3, 0.08), (0.05, 0.045)),
        limb("legs", near, (-0.3, 0.45), (-0.34, 0), (0.06, 0.05)),
        limb("legs", near, (0.2, 0.45), (0.22, 0), (0.06, 0.05)),
    ]
    seat = [(-0.36, 0.42), (0.26, 0.42), (0.36, 0.52), (-0.26, 0.52)]
    if chance(rng, 0.5):  # seen from the front
        back = [(-0.27, 0.5), (0.32, 0.5), (0.3, 1.0), (-0.25, 1.0)]
    return [
        *rails,
        textured(poly("back", shade(paint, 90), back, "tall"), "grain"),
        poly("seat", paint, seat, "tall"),
        poly("seat", shade(paint, 66), [(-0.36, 0.42), (0.26, 0.42), (0.26, 0.37), (-0.36, 0.37)]),
    ]


def table(rng: np.random.Generator, paint: RGB) -> list[Shape]:
    """Draw a table with a top of colour `paint`."""
    half = between(rng, 0.75, 1.0)
    far = shade(paint, 58)
    legs = shade(paint, 80)
    return [
        limb("legs", far, (-half + 0.28, 0.8), (-half + 0.28, 0.14), (0.08, 0.07)),
        limb("legs", far, (half - 0.12, 0.8), (half - 0.12, 0.14), (0.08, 0.07)),
        limb("legs", legs, (-half + 0.1, 0.8), (-half + 0.1, 0), (0.1, 0.08)),
        limb("legs", legs, (half - 0.3, 0.8), (half - 0.3, 0), (0.1, 0.08)),
        textured(
            poly(
                "top",
                paint,
                [(-half, 0.82), (half - 0.2, 0.82), (half, 1.0), (-half + 0.2, 1.0)],
                "tall",
            ),
            "rows",
        ),
        poly(
            "top",
            shade(paint, 66),
            [(-half, 0.82), (half - 0.2, 0.82), (half - 0.2, 0.74), (-half, 0.74)],
        ),
    ]


def umbrella(rng: np.random.Generator, paint: RGB) -> list[Shape]:
    """Draw an open parasol, plain or with white panels."""
    second = (238, 234, 224) if chance(rng, 0.5) and sum(paint) < 560 else shade(paint, 78)
    rim = [(-0.52, 0.66), (-0.26, 0.62), (0.0, 0.64), (0.26, 0.62), (0.52, 0.66)]
    dome = [(0.44, 0.8), (0.26, 0.91), (0.0, 0.96), (-0.26, 0.91), (-0.44, 0.8)]
    left = [(-0.26, 0.62), (-0.39, 0.645), (-0.31, 0.84), (-0.13, 0.94), (0.0, 0.96), (-0.19, 0.84)]
    right = [(0.26, 0.62), (0.39, 0.645), (0.31, 0.84), (0.13, 0.94), (0.0, 0.96), (0.19, 0.84)]
    return [
        limb("pole", (206, 200, 190), (0, 0), (0, 0.95), (0.035, 0.03)),
        poly("canopy", paint, [*rim, *dome], "round"),
        poly("panels", second, left),
        poly("panels", second, right),
        disc("pole", (120, 110, 100), (0, 0.975), (0.02, 0.025)),
    ]


def bottle(rng: np.random.Generator, paint: RGB) -> list[Shape]:
    """Draw a bottle with a label and a cap."""
    label = vary(rng, pick(rng, ((238, 232, 214), (226, 196, 130), (210, 214, 220))), 8)
    cap = pick(rng, ((190, 160, 60), (60, 60, 64), (180, 50, 44)))
    half = between(rng, 0.13, 0.17)
    body = [
        (-half, 0.02), (-half, 0.56), (-0.06, 0.72), (-0.055, 0.94), (0.055, 0.94), (0.06, 0.72),
        (half, 0.56), (half, 0.02),
    ]  # fmt: skip
    return [
        disc("body", shade(paint, 70), (0, 0.02), (half, 0.02)),
        poly("body", paint, body, "round"),
        box("label", label, (-half, 0.18, half, 0.46), "round"),
        disc("label", shade(paint, 86), (0, 0.32), (half * 0.5, 0.07), "plain"),
        box("cap", cap, (-0.07, 0.91, 0.07, 1.0), "round"),
        box("body", shade(paint, 170), (half * 0.45, 0.48, half * 0.62, 0.56), "plain"),
    ]


def cup(rng: np.random.Generator, paint: RGB) -> list[Shape]:
    """Draw a cup with a handle and a drink."""
    drink = pick(rng, ((84, 50, 30), (160, 90, 40), (236, 226, 206)))
    wide = between(rng, 0.4, 0.48)
    body = [(-wide * 0.74, 0.04), (wide * 0.74, 0.04), (wide, 0.88), (-wide, 0.88)]
    return [
        ring("handle", shade(paint, 84), (wide + 0.05, 0.52), 0.26, 0.16),
        disc("body", shade(paint, 78), (0, 0.05), (wide * 0.74, 0.06)),
        poly("body", paint, body, "round"),
        disc("rim", shade(paint, 116), (0, 0.88), (wide, 0.12), "flat"),
        disc("drink", drink, (0, 0.87), (wide * 0.84, 0.085), "plain"),
    ]


def ball(rng: np.random.Generator, paint: RGB) -> list[Shape]:
    """Draw a ball with a band or panels."""
    other = (240, 238, 230) if sum(paint) < 520 else (70, 90, 150)
    shapes = [disc("ball", paint, (0, 0.5), (0.5, 0.5))]
    if chance(rng, 0.6):
        band = [(-0.495, 0.42), (0, 0.3), (0.495, 0.42), (0.48, 0.63), (0, 0.52), (-0.48, 0.63)]
        return [*shapes, poly("band", other, band, "round")]
    shapes.append(disc("band", other, (-0.12, 0.6), (0.15, 0.17), "flat"))
    return [*shapes, disc("band", shade(COLOURS["white"], 104), (0.28, 0.3), (0.1, 0.11), "flat")]
