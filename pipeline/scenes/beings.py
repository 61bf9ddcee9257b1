"""People and animals, each a list of shapes one unit high, seen from the side or the front."""

import numpy as np

from pipeline.scenes.canvas import Shape, box, disc, limb, poly, textured
from pipeline.scenes.chance import between, chance, pick
from pipeline.scenes.palette import HAIRS, RGB, SKINS, shade, vary

TROUSERS: tuple[RGB, ...] = (
    (44, 52, 84),
    (60, 58, 56),
    (120, 104, 80),
    (34, 34, 38),
    (92, 96, 104),
)


def _head(hair: RGB, skin: RGB) -> list[Shape]:
    return [
        box("head", shade(skin, 88), (-0.03, 0.8, 0.03, 0.88), "round"),
        disc("head", skin, (0, 0.915), (0.066, 0.08)),
        poly(
            "hair",
            hair,
            [(-0.07, 0.91), (-0.06, 0.97), (0, 1.0), (0.06, 0.97), (0.07, 0.91), (0.04, 0.95)],
        ),
        disc("head", (40, 30, 28), (-0.024, 0.912), (0.01, 0.011), "plain"),
        disc("head", (40, 30, 28), (0.026, 0.912), (0.01, 0.011), "plain"),
        box("head", (150, 70, 66), (-0.02, 0.866, 0.022, 0.876), "plain"),
    ]


def man(rng: np.random.Generator, paint: RGB) -> list[Shape]:
    """Draw a man in a shirt of colour `paint` and trousers."""
    skin, hair = vary(rng, pick(rng, SKINS), 8), pick(rng, HAIRS)
    legs = vary(rng, pick(rng, TROUSERS), 8)
    step, swing = between(rng, 0.03, 0.13), between(rng, 0.02, 0.14)
    shoe = (46, 36, 32)
    shapes = [
        limb("arms", shade(paint, 78), (-0.12, 0.8), (-0.14 - swing, 0.58), (0.075, 0.06)),
        limb("arms", skin, (-0.14 - swing, 0.58), (-0.13 - swing / 2, 0.44), (0.05, 0.04)),
        limb("legs", shade(legs, 84), (-0.05, 0.5), (-0.04 - step, 0.03), (0.13, 0.075)),
        limb("legs", legs, (0.05, 0.5), (0.04 + step, 0.03), (0.13, 0.075)),
        box("legs", shoe, (-0.08 - step, 0.0, 0.02 - step, 0.04)),
        box("legs", shoe, (0.0 + step, 0.0, 0.11 + step, 0.04)),
        poly(
            "torso",
            paint,
            [(-0.15, 0.79), (-0.06, 0.84), (0.06, 0.84), (0.15, 0.79), (0.12, 0.46), (-0.12, 0.46)],
            "round",
        ),
        *_head(hair, skin),
        limb("arms", shade(paint, 92), (0.12, 0.8), (0.14 + swing, 0.59), (0.08, 0.06)),
        limb("arms", skin, (0.14 + swing, 0.59), (0.15 + swing / 2, 0.45), (0.05, 0.04)),
    ]
    if chance(rng, 0.35):
        brim = vary(rng, pick(rng, ((60, 60, 70), (180, 150, 100), (110, 96, 84))))
        shapes.append(box("hat", brim, (-0.1, 0.945, 0.1, 0.965)))
        shapes.append(box("hat", brim, (-0.06, 0.96, 0.06, 1.02), "round"))
    return shapes


def woman(rng: np.random.Generator, paint: RGB) -> list[Shape]:
    """Draw a woman with long hair in a dress of colour `paint`."""
    skin, hair = vary(rng, pick(rng, SKINS), 8), pick(rng, HAIRS)
    step, swing = between(rng, 0.02, 0.06), between(rng, 0.02, 0.12)
    wide = between(rng, 0.17, 0.23)
    shoe = shade(paint, 55)
    return [
        poly("hair", hair, [(-0.085, 0.93), (0.085, 0.93), (0.11, 0.72), (-0.11, 0.72)], "round"),
        limb("arms", skin, (-0.1, 0.79), (-0.13 - swing, 0.6), (0.055, 0.045)),
        limb("arms", skin, (-0.13 - swing, 0.6), (-0.12 - swing / 2, 0.47), (0.045, 0.035)),
        limb("legs", shade(skin, 88), (-0.05, 0.4), (-0.03 - step, 0.03), (0.085, 0.05)),
        limb("legs", skin, (0.05, 0.4), (0.03 + step, 0.03), (0.085, 0.05)),
        box("legs", shoe, (-0.07 - step, 0.0, 0.01 - step, 0.035)),
        box("legs", shoe, (0.0 + step, 0.0, 0.08 + step, 0.035)),
        poly(
            "skirt",
            shade(paint, 92),
            [(-0.085, 0.58), (0.085, 0.58), (wide, 0.27), (0, 0.25), (-wide, 0.27)],
            "round",
        ),
        poly(
            "torso",
            paint,
            [
                (-0.12, 0.79),
                (-0.05, 0.83),
                (0.05, 0.83),
                (0.12, 0.79),
                (0.085, 0.57),
                (-0.085, 0.57),
            ],
            "round",
        ),
        *_head(hair, skin),
        limb("arms", skin, (0.1, 0.79), (0.13 + swing, 0.61), (0.055, 0.045)),
        limb("arms", skin, (0.13 + swing, 0.61), (0.14 + swing / 2, 0.48), (0.045, 0.035)),
    ]


def dog(rng: np.random.Generator, paint: RGB) -> list[Shape]:
    """Draw a dog from the side."""
    far, step = shade(paint, 70), between(rng, 0.0, 0.12)
    collar = pick(rng, ((180, 40, 40), (40, 70, 170), (40, 120, 60)))
    tail_y = between(rng, 0.75, 1.0)
    shapes = [
        limb("tail", paint, (-0.52, 0.66), (-0.78, tail_y), (0.11, 0.05)),
        limb("legs", far, (-0.36, 0.45), (-0.36 - step, 0), (0.17, 0.1)),
        limb("legs", far, (0.34, 0.45), (0.38 + step, 0), (0.16, 0.1)),
        limb("legs", shade(paint, 92), (-0.44, 0.5), (-0.46 + step, 0), (0.2, 0.11)),
        limb("legs", shade(paint, 92), (0.4, 0.5), (0.32 - step, 0), (0.17, 0.11)),
        textured(disc("body", paint, (0, 0.55), (0.58, 0.23)), "fur"),
        textured(limb("body", paint, (0.38, 0.58), (0.62, 0.84), (0.36, 0.26)), "fur"),
        limb("body", collar, (0.47, 0.8), (0.66, 0.68), (0.06, 0.06)),
        textured(disc("head", paint, (0.66, 0.86), (0.2, 0.16)), "fur"),
        disc("head", shade(paint, 84), (0.84, 0.8), (0.15, 0.09)),
        disc("head", (28, 24, 24), (0.97, 0.83), (0.035, 0.035)),
        disc("head", (24, 20, 20), (0.72, 0.9), (0.026, 0.03)),
        poly("ear", shade(paint, 58), [(0.5, 0.98), (0.62, 0.99), (0.6, 0.72), (0.5, 0.7)]),
    ]
    if chance(rng, 0.4):
        spot = disc("body", shade(paint, 60), (-0.15, 0.62), (0.17, 0.12), "flat")
        shapes.insert(6, spot)
    return shapes


def bird(rng: np.random.Generator, paint: RGB) -> list[Shape]:
    """Draw a bird in flight, its wings raised more or less."""
    lift = pick(rng, (1.0, 0.88, 0.74))
    far, near = shade(paint, 66), shade(paint, 84)
    return [
        poly("wings", far, [(0.05, 0.55), (0.3, 0.5), (0.2, lift), (0.02, lift + 0.04)]),
        poly("tail", near, [(-0.3, 0.5), (-0.3, 0.4), (-0.72, 0.42), (-0.7, 0.58)]),
        textured(disc("body", paint, (0, 0.46), (0.4, 0.15)), "fur"),
        disc("head", paint, (0.42, 0.54), (0.14, 0.12)),
        poly("beak", (226, 150, 40), [(0.53, 0.58), (0.7, 0.52), (0.53, 0.49)]),
        disc("head", (20, 20, 20), (0.46, 0.57), (0.03, 0.03), "plain"),
        poly(
            "wings", near, [(-0.24, 0.5), (0.18, 0.52), (-0.12, lift), (-0.42, lift + 0.05)], "tall"
        ),
    ]


def fish(rng: np.random.Generator, paint: RGB) -> list[Shape]:
    """Draw a fish from the side, some with stripes."""
    fin = vary(rng, pick(rng, (shade(paint, 70), (236, 206, 90), (236, 236, 230))))
    tall = between(rng, 0.34, 0.46)
    shapes = [
        poly("tail", fin, [(-0.6, 0.5), (-1.05, 0.86), (-0.92, 0.5), (-1.05, 0.14)]),
        poly("fin", fin, [(-0.4, 0.7), (-0.1, 1.0), (0.3, 0.98), (0.35, 0.7)]),
        poly("fin", fin, [(-0.2, 0.25), (-0.25, 0.02), (0.05, 0.2)]),
        disc("body", paint, (0, 0.5), (0.75, tall)),
    ]
    if chance(rng, 0.45):
        stripe = (240, 240, 236) if sum(paint) < 520 else (50, 50, 60)
        radii = (0.055, tall * 0.86)
        shapes += [disc("stripes", stripe, (x, 0.5), radii, "plain") for x in (-0.28, 0.12)]
    shapes.append(
        poly("fin", shade(fin, 88), [(0.1, 0.5), (-0.22, 0.38), (-0.1, 0.26), (0.1, 0.4)])
    )
    shapes.append(disc("eye", (244, 244, 240), (0.5, 0.58), (0.085, 0.085), "plain"))
    shapes.append(disc("eye", (16, 16, 20), (0.52, 0.58), (0.05, 0.05), "plain"))
    return shapes


def starfish(rng: np.random.Generator, paint: RGB) -> list[Shape]:
    """Draw a starfish that lies on the ground, foreshortened."""
    tips = ((0.0, 1.0), (-0.95, 0.62), (-0.6, 0.02), (0.6, 0.02), (0.95, 0.62))
    inner = ((-0.26, 0.68), (-0.36, 0.42), (0.0, 0.26), (0.36, 0.42), (0.26, 0.68))
    outline = [point for pair in zip(tips, inner, strict=True) for point in pair]
    dots = [
        disc("dots", shade(paint, 130), (x * 0.5, 0.5 + (y - 0.5) * 0.5), (0.07, 0.05), "plain")
        for x, y in tips
    ]
    core = disc("centre", shade(paint, 112), (0, 0.5), (0.26, 0.17))
    return [textured(poly("arms", paint, outline, "tall"), "fur"), core, *dots]
