"""The named colours of objects, and how paint varies within a name."""

import numpy as np

RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "red": (196, 38, 36),
    "blue": (38, 78, 184),
    "green": (46, 138, 56),
    "yellow": (232, 196, 44),
    "white": (232, 230, 224),
    "black": (38, 38, 44),
    "orange": (232, 122, 28),
    "purple": (122, 58, 156),
    "pink": (232, 130, 168),
    "brown": (122, 78, 44),
    "gray": (130, 132, 136),
}

SKINS: tuple[RGB, ...] = ((236, 198, 170), (214, 166, 130), (168, 116, 82), (108, 72, 52))
HAIRS: tuple[RGB, ...] = ((36, 28, 24), (84, 54, 32), (150, 110, 56), (60, 58, 60))
GLASS: RGB = (126, 160, 182)
TYRE: RGB = (34, 34, 36)
METAL: RGB = (168, 172, 176)
WOOD: RGB = (138, 98, 60)


def vary(rng: np.random.Generator, colour: RGB, amount: int = 14) -> RGB:
    """Give `colour` with its brightness and each channel moved by at most `amount` levels."""
    gain = int(rng.integers(-amount, amount + 1))
    steps = rng.integers(-amount // 2, amount // 2 + 1, 3)
    red, green, blue = (
        min(max(value + gain + int(step), 0), 255)
        for value, step in zip(colour, steps, strict=True)
    )
    return red, green, blue


def shade(colour: RGB, percent: int) -> RGB:
    """Give `colour` at `percent` of its brightness, clipped to 255."""
    red, green, blue = (min(value * percent // 100, 255) for value in colour)
    return red, green, blue
