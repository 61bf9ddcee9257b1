"""The categories: how each is drawn, how large it is, its colours and its nouns."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.scenes import beings, things, vehicles
from pipeline.scenes.canvas import Shape
from pipeline.scenes.palette import RGB

Builder = Callable[[np.random.Generator, RGB], list[Shape]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Category:
    """A kind of object."""

    build: Builder
    """Draws one, one unit high, in a main colour."""
    metres: float
    """Usual height; smaller than life for what would not fit beside a person."""
    colours: tuple[str, ...]
    """Names of its main colours, in `palette.COLOURS`; a name may stand twice."""
    nouns: tuple[str, ...]
    """Words for it, the most common first."""


_WEAR = ("red", "blue", "green", "yellow", "white", "black", "orange", "purple", "pink")
_BRIGHT = ("red", "blue", "green", "yellow", "orange", "purple", "pink", "white")
_TOYS = ("red", "blue", "green", "yellow", "orange", "purple")

CATEGORIES: dict[str, Category] = {
    "man": Category(
        build=beings.man, metres=1.75, colours=_WEAR[:7], nouns=("man", "guy", "gentleman")
    ),
    "woman": Category(
        build=beings.woman, metres=1.65, colours=_WEAR, nouns=("woman", "lady", "girl")
    ),
    "dog": Category(
        build=beings.dog,
        metres=0.64,
        colours=("brown", "black", "white", "gray", "orange"),
        nouns=("dog", "puppy"),
    ),
    "bird": Category(
        build=beings.bird,
        metres=0.8,
        colours=("white", "black", "red", "blue", "yellow"),
        nouns=("bird",),
    ),
    "fish": Category(build=beings.fish, metres=0.55, colours=_BRIGHT[:7], nouns=("fish",)),
    "starfish": Category(
        build=beings.starfish,
        metres=0.3,
        colours=("red", "orange", "purple", "yellow", "pink"),
        nouns=("starfish", "sea star"),
    ),
    "car": Category(
        build=vehicles.car,
        metres=1.2,
        colours=("red", "blue", "green", "yellow", "white", "black", "gray", "orange"),
        nouns=("car", "auto"),
    ),
    "bus": Category(
        build=vehicles.bus,
        metres=1.9,
        colours=("red", "blue", "green", "yellow", "white", "orange"),
        nouns=("bus", "coach"),
    ),
    "bicycle": Category(
        build=vehicles.bicycle,
        metres=1.05,
        colours=("red", "blue", "green", "yellow", "black", "pink"),
        nouns=("bicycle", "bike"),
    ),
    "boat": Category(
        build=vehicles.boat,
        metres=2.6,
        colours=("red", "blue", "green", "white", "black", "brown"),
        nouns=("boat", "sailboat"),
    ),
    "airplane": Category(
        build=vehicles.airplane,
        metres=1.5,
        colours=("white", "gray", "red", "blue", "yellow"),
        nouns=("airplane", "plane", "jet"),
    ),
    "house": Category(
        build=things.house,
        metres=3.0,
        colours=("white", "red", "yellow", "blue", "gray", "pink", "brown"),
        nouns=("house", "cottage"),
    ),
    "tree": Category(
        build=things.tree,
        metres=3.2,
        colours=("green", "green", "green", "orange", "yellow"),
        nouns=("tree",),
    ),
    "flower": Category(
        build=things.flower,
        metres=0.75,
        colours=("red", "yellow", "white", "pink", "purple", "blue"),
        nouns=("flower",),
    ),
    "lamp": Category(
        build=things.lamp,
        metres=1.6,
        colours=("white", "red", "yellow", "green", "blue", "orange"),
        nouns=("lamp", "light"),
    ),
    "chair": Category(
        build=things.chair,
        metres=1.0,
        colours=("red", "blue", "green", "brown", "white", "black", "yellow"),
        nouns=("chair", "seat"),
    ),
    "table": Category(
        build=things.table,
        metres=0.85,
        colours=("brown", "white", "black", "gray"),
        nouns=("table", "desk"),
    ),
    "umbrella": Category(
        build=things.umbrella, metres=2.1, colours=_BRIGHT, nouns=("umbrella", "parasol")
    ),
    "bottle": Category(
        build=things.bottle,
        metres=0.42,
        colours=("green", "brown", "blue", "white", "black", "red"),
        nouns=("bottle",),
    ),
    "cup": Category(
        build=things.cup,
        metres=0.17,
        colours=("white", "red", "blue", "yellow", "green", "black", "pink"),
        nouns=("cup", "mug"),
    ),
    "ball": Category(build=things.ball, metres=0.5, colours=_TOYS, nouns=("ball",)),
}
PEOPLE = ("man", "woman")
"""The categories of split testA; testB refers to all the others."""
