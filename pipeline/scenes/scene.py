"""One scene: a picture, its objects with exact masks, and expressions that each name one object."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.scenes.chance import between, pick
from pipeline.scenes.expressions import describe
from pipeline.scenes.ground import View
from pipeline.scenes.layout import Placed, choose_slots, place_all
from pipeline.scenes.objects import PEOPLE
from pipeline.scenes.render import Rendered, render
from pipeline.scenes.resolve import Query, Thing
from pipeline.scenes.worlds import WITH_PEOPLE, WORLDS

SPLITS = ("train", "val", "testA", "testB")
MIN_AREA_SHARE = 0.004
"""Least share of the image that an object must show to be referred to."""
MIN_VISIBLE_SHARE = 0.45
"""Least share of itself that an object must show to be referred to."""
MIN_SEEN_PX = 12
"""Objects that show fewer pixels count as background."""
_ATTEMPTS = 100
_SIZES = ((192, 256), (256, 192), (256, 256), (176, 256), (208, 256), (256, 208), (160, 256))


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneObject:
    """What is seen of one object."""

    category: str
    """A key of `objects.CATEGORIES`."""
    colour: str
    """Name of its main colour, a key of `palette.COLOURS`."""
    mask: NDArray[np.bool_]
    """Its visible pixels, (H, W)."""
    parts: dict[str, NDArray[np.bool_]]
    """Visible pixels of each part that shows, (H, W); disjoint, their union is `mask`."""
    expressions: tuple[str, ...]
    """2 or 3 expressions, each true of this object alone; empty if it is not referred to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A picture with its objects."""

    image: NDArray[np.uint8]
    """(H, W, 3) RGB, longest side 256."""
    objects: tuple[SceneObject, ...]
    """Back to front; their masks are disjoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A drawn scene with what is said of it and what that means."""

    drawn: Rendered
    seen: tuple[int, ...]
    """Numbers of the drawn objects that show."""
    things: tuple[Thing, ...]
    """What language knows of each object seen."""
    litter: tuple[Thing, ...]
    """The clutter, which "the green one" must not mean either."""
    told: tuple[tuple[tuple[str, Query], ...], ...]
    """Expressions of each object seen, with their meanings."""


def make_scene(seed: int, split: str, index: int) -> Scene:
    """Make one scene; the same arguments give the same bytes on every machine.

    Args:
        seed: Seed of the data set, at least 0.
        split: One of `SPLITS`; testA refers to people only, testB to everything else only.
        index: Number of the scene in its split, from 0.

    Raises:
        ValueError: If the split is unknown.
    """
    draft = draft_scene(seed, split, index)
    objects = tuple(
        _object(thing, draft.drawn, number, tuple(text for text, _ in pairs))
        for number, thing, pairs in zip(draft.seen, draft.things, draft.told, strict=True)
    )
    return Scene(image=draft.drawn.image, objects=objects)


def draft_scene(seed: int, split: str, index: int) -> Draft:
    """Make a scene as `make_scene` does, with the meanings kept."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    for attempt in range(_ATTEMPTS):
        draft = _attempt(np.random.default_rng([seed, SPLITS.index(split), index, attempt]), split)
        if any(draft.told):
            return draft
    raise AssertionError(f"no scene for seed {seed}, split {split!r}, index {index}")


def _attempt(rng: np.random.Generator, split: str) -> Draft:
    """Make a scene that may happen to have nothing to refer to."""
    names = WITH_PEOPLE if split == "testA" else tuple(WORLDS)
    world = WORLDS[pick(rng, [name for name in names for _ in range(WORLDS[name].weight)])]
    height, width = pick(rng, _SIZES)
    view = View(
        height=height,
        width=width,
        horizon=round(height * between(rng, *world.horizon)),
        near=round(min(height, width) * between(rng, *world.near)),
        light=pick(rng, (-1, 1)),
    )
    slots = choose_slots(rng, world, PEOPLE if split == "testA" else ())
    placed = place_all(rng, view, world, slots)
    drawn = render(rng, view, world.paint(rng, view), placed)
    seen = tuple(k for k in range(len(placed)) if _area(drawn, k) >= MIN_SEEN_PX)
    things = tuple(_thing(placed[k], drawn, k, split) for k in seen)
    litter = tuple(_litter(one) for one in placed if not one.category)
    told = describe(rng, [*things, *litter], (height, width))[: len(things)]
    return Draft(drawn=drawn, seen=seen, things=things, litter=litter, told=told)


def _area(drawn: Rendered, number: int) -> int:
    return int(np.count_nonzero(drawn.owner == number + 1))


def _thing(placed: Placed, drawn: Rendered, number: int, split: str) -> Thing:
    """Give what language can say about object `number`."""
    rows, columns = np.nonzero(drawn.owner == number + 1)
    area, full = len(rows), max(drawn.full_areas[number], 1)
    large = area >= MIN_AREA_SHARE * drawn.owner.size and area >= MIN_VISIBLE_SHARE * full
    person = placed.category in PEOPLE
    wanted = {"testA": person, "testB": not person}.get(split, True)
    left, right = int(columns.min()), int(columns.max()) + 1
    top, bottom = int(rows.min()), int(rows.max()) + 1
    return Thing(
        category=placed.category,
        colour=placed.colour,
        box=(left, top, right, bottom),
        centre=(int(columns.sum()) // area, int(rows.sum()) // area),
        area=area,
        base=placed.row,
        aloft=placed.aloft,
        named=large and wanted,
        clear=large,
    )


def _litter(placed: Placed) -> Thing:
    """Give a piece of clutter, which "the green one" could mean, as a thing without a name."""
    half = round(placed.pose.scale / 2)
    x, y = placed.column, placed.row - half
    return Thing(
        category="",
        colour=placed.colour,
        box=(x - half, y - half, x + half, y + half),
        centre=(x, y),
        area=4 * half * half,
        base=placed.row,
        aloft=False,
        named=False,
        clear=False,
    )


def _object(
    thing: Thing, drawn: Rendered, number: int, expressions: tuple[str, ...]
) -> SceneObject:
    """Give the visible masks of object `number`."""
    mask = drawn.owner == number + 1
    parts = {
        name: shown
        for k, name in enumerate(drawn.names[number], 1)
        if (shown := mask & (drawn.part == k)).any()
    }
    return SceneObject(
        category=thing.category,
        colour=thing.colour,
        mask=mask,
        parts=parts,
        expressions=expressions,
    )
