"""The worlds: a background, a camera, and what may stand where."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.scenes import background, clutter
from pipeline.scenes.canvas import Shape
from pipeline.scenes.chance import IntArray
from pipeline.scenes.ground import View


@dataclass(frozen=True, slots=True)
class Litter:
    """Something that lies about and has no name."""

    build: Callable[[np.random.Generator], list[Shape]]
    """Draws one, one unit high."""
    metres: float
    """Usual height."""
    colour: str
    """The colour that "the green one" could take it for."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A category's place in a world."""

    category: str
    near: float
    """On the ground: least depth, 0 at the horizon, 1 at the bottom. In the air: least height."""
    far: float
    """The largest depth; in the air, the largest height as a share of the way to the top."""
    weight: int
    """How often it is drawn."""
    size: float = 1.0
    """Times its usual size."""
    aloft: bool = False
    """Whether it flies or swims, at a size of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A kind of scene."""

    paint: Callable[[np.random.Generator, View], IntArray]
    """Paints the background."""
    horizon: tuple[float, float]
    """Range of the horizon, as a share of the height."""
    near: tuple[float, float]
    """Range of the pixels a metre at the bottom edge, as a share of the shorter side."""
    weight: int
    """How often it is drawn."""
    slots: tuple[Slot, ...]
    clutter: tuple[Litter, ...]
    """What lies about unnamed."""
    litter: tuple[float, float]
    """Range of the depths where clutter lies."""


_BIRDS = (
    Slot("bird", 0.15, 0.85, 2, 0.8, aloft=True),
    Slot("airplane", 0.3, 0.85, 1, 0.75, aloft=True),
)

WORLDS: dict[str, World] = {
    "street": World(
        paint=background.street,
        horizon=(0.3, 0.4),
        near=(0.36, 0.44),
        weight=4,
        clutter=(
            Litter(clutter.cone, 0.6, "orange"),
            Litter(clutter.crate, 0.5, "brown"),
            Litter(clutter.bush, 0.6, "green"),
            Litter(clutter.post, 0.7, "brown"),
        ),
        litter=(0.8, 1.0),
        slots=(
            Slot("car", 0.46, 0.76, 6),
            Slot("bus", 0.44, 0.6, 3),
            Slot("man", 0.3, 0.35, 2, 1.2),
            Slot("woman", 0.3, 0.35, 2, 1.2),
            Slot("man", 0.8, 1.0, 2, 0.85),
            Slot("woman", 0.8, 1.0, 2, 0.85),
            Slot("bicycle", 0.45, 0.95, 2),
            Slot("tree", 0.22, 0.34, 2, 1.2),
            Slot("dog", 0.8, 1.0, 1),
            *_BIRDS,
        ),
    ),
    "park": World(
        paint=background.park,
        horizon=(0.34, 0.46),
        near=(0.38, 0.5),
        weight=4,
        clutter=(
            Litter(clutter.rock, 0.35, "gray"),
            Litter(clutter.bush, 0.8, "green"),
            Litter(clutter.weed, 0.4, "green"),
            Litter(clutter.post, 0.7, "brown"),
        ),
        litter=(0.25, 1.0),
        slots=(
            Slot("man", 0.3, 0.95, 3),
            Slot("woman", 0.3, 0.95, 3),
            Slot("tree", 0.18, 0.55, 4),
            Slot("house", 0.2, 0.4, 4),
            Slot("dog", 0.45, 1.0, 3),
            Slot("bicycle", 0.4, 0.9, 2),
            Slot("flower", 0.6, 1.05, 2),
            Slot("ball", 0.5, 1.0, 1),
            Slot("chair", 0.4, 0.9, 1),
            Slot("car", 0.3, 0.6, 1),
            *_BIRDS,
        ),
    ),
    "beach": World(
        paint=background.beach,
        horizon=(0.3, 0.4),
        near=(0.36, 0.46),
        weight=3,
        clutter=(
            Litter(clutter.rock, 0.35, "gray"),
            Litter(clutter.weed, 0.4, "green"),
            Litter(clutter.crate, 0.4, "brown"),
            Litter(clutter.post, 0.6, "brown"),
        ),
        litter=(0.45, 1.0),
        slots=(
            Slot("umbrella", 0.45, 0.85, 4),
            Slot("man", 0.42, 0.95, 3),
            Slot("woman", 0.42, 0.95, 3),
            Slot("boat", 0.08, 0.27, 4, 1.6),
            Slot("ball", 0.5, 1.0, 2),
            Slot("chair", 0.5, 0.95, 2),
            Slot("dog", 0.5, 1.0, 2),
            *_BIRDS,
        ),
    ),
    "lake": World(
        paint=background.lake,
        horizon=(0.34, 0.46),
        near=(0.38, 0.48),
        weight=2,
        clutter=(
            Litter(clutter.rock, 0.35, "gray"),
            Litter(clutter.weed, 0.5, "green"),
            Litter(clutter.bush, 0.5, "green"),
        ),
        litter=(0.9, 1.05),
        slots=(
            Slot("boat", 0.2, 0.78, 7),
            Slot("man", 0.92, 1.05, 2, 0.8),
            Slot("woman", 0.92, 1.05, 2, 0.8),
            Slot("dog", 0.92, 1.05, 1, 0.9),
            Slot("flower", 0.95, 1.08, 1, 0.8),
            *_BIRDS,
        ),
    ),
    "room": World(
        paint=background.room,
        horizon=(0.36, 0.46),
        near=(0.42, 0.54),
        weight=3,
        clutter=(
            Litter(clutter.crate, 0.4, "brown"),
            Litter(clutter.book, 0.2, "brown"),
            Litter(clutter.crate, 0.3, "brown"),
        ),
        litter=(0.35, 1.0),
        slots=(
            Slot("chair", 0.4, 0.98, 4),
            Slot("table", 0.4, 0.85, 2),
            Slot("lamp", 0.34, 0.8, 3, 0.9),
            Slot("man", 0.42, 0.9, 2),
            Slot("woman", 0.42, 0.9, 2),
            Slot("dog", 0.5, 1.0, 2),
            Slot("flower", 0.4, 1.0, 2),
            Slot("ball", 0.55, 1.0, 2),
        ),
    ),
    "tabletop": World(
        paint=background.tabletop,
        horizon=(0.22, 0.34),
        near=(1.5, 1.9),
        weight=2,
        clutter=(
            Litter(clutter.book, 0.09, "brown"),
            Litter(clutter.crate, 0.1, "brown"),
            Litter(clutter.book, 0.06, "brown"),
        ),
        litter=(0.3, 0.95),
        slots=(
            Slot("bottle", 0.42, 0.95, 4, 0.95),
            Slot("cup", 0.45, 0.98, 4, 1.15),
            Slot("flower", 0.4, 0.8, 2, 0.6),
            Slot("ball", 0.45, 0.95, 1, 0.34),
            Slot("lamp", 0.36, 0.6, 1, 0.36),
        ),
    ),
    "reef": World(
        paint=background.reef,
        horizon=(0.66, 0.76),
        near=(0.5, 0.6),
        weight=1,
        clutter=(
            Litter(clutter.rock, 0.3, "gray"),
            Litter(clutter.weed, 0.6, "green"),
            Litter(clutter.weed, 0.4, "green"),
        ),
        litter=(0.1, 1.0),
        slots=(
            Slot("fish", 0.05, 0.9, 7, 0.8, aloft=True),
            Slot("starfish", 0.3, 0.95, 2, 1.3),
        ),
    ),
}
WITH_PEOPLE = ("street", "park", "beach", "room")
"""The worlds of split testA."""
