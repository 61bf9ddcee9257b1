"""Choose what stands in a scene and where, so that things overlap but stay recognisable."""

from dataclasses import dataclass

import numpy as np

from pipeline.scenes.canvas import Pose, Shape
from pipeline.scenes.chance import between, chance, pick
from pipeline.scenes.ground import View
from pipeline.scenes.objects import CATEGORIES
from pipeline.scenes.palette import COLOURS, vary
from pipeline.scenes.worlds import Slot, World

_MAX_OVERLAP = 0.32
_TRIES = 24
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """An object with its place in the picture."""

    category: str
    """A key of `objects.CATEGORIES`; empty for clutter, which is never referred to."""
    colour: str
    shapes: tuple[Shape, ...]
    pose: Pose
    column: int
    """Where it stands, in pixels from the left."""
    row: int
    """Where it stands, in pixels from the top."""
    depth: float
    """0 at the horizon, 1 at the bottom edge."""
    aloft: bool
    """Whether it flies or swims and casts no shadow."""


def choose_slots(rng: np.random.Generator, world: World, focus: tuple[str, ...]) -> list[Slot]:
    """Draw 3 to 7 slots, in most scenes several of one category.

    Args:
        rng: Draws.
        world: What there is to choose from.
        focus: Categories one of which must be repeated; empty for any.
    """
    weights = [slot.weight for slot in world.slots]
    bag = [slot for slot, weight in zip(world.slots, weights, strict=True) for _ in range(weight)]
    repeated = [slot for slot in bag if slot.category in focus] or bag
    first = pick(rng, repeated)
    alike = [slot for slot in world.slots if slot.category == first.category]
    copies = pick(rng, (1, 2, 2, 3, 3, 4))
    chosen = [pick(rng, alike) for _ in range(copies)]
    total = int(rng.integers(max(copies + 1, 4), 8))
    while len(chosen) < total:
        slot = pick(rng, bag)
        many = sum(other.category == slot.category for other in chosen)
        if many < 2 or chance(rng, 0.2):
            chosen.append(slot)
    return chosen


def place_all(
    rng: np.random.Generator, view: View, world: World, slots: list[Slot]
) -> list[Placed]:
    """Place the slots' objects, dropping those that find no room, and clutter; back to front."""
    placed: list[Placed] = _scatter(rng, view, world)
    boxes: list[Box] = []
    for slot in sorted(slots, key=_height, reverse=True):  # the large ones find room first
        category = CATEGORIES[slot.category]
        name = pick(rng, category.colours)
        shapes = tuple(category.build(rng, vary(rng, COLOURS[name])))
        lean = 0.06 if slot.aloft else 0.018
        turn = (chance(rng, 0.5), between(rng, -lean, lean), between(rng, 0.85, 1.18) * slot.size)
        for _ in range(_TRIES):
            candidate = _propose(rng, view, slot, name, shapes, turn)
            box = _box(candidate)
            if _fits(view, box, boxes):
                placed.append(candidate)
                boxes.append(box)
                break
    return sorted(placed, key=lambda one: (not one.aloft, one.depth))


def _height(slot: Slot) -> float:
    return CATEGORIES[slot.category].metres * slot.size


def _scatter(rng: np.random.Generator, view: View, world: World) -> list[Placed]:
    """Place up to four pieces of clutter anywhere."""
    placed = []
    for _ in range(int(rng.integers(5))):
        litter = pick(rng, world.clutter)
        depth = between(rng, *world.litter)
        scale = view.scale(depth) * litter.metres * between(rng, 0.8, 1.3)
        pose = Pose(scale=scale, mirror=chance(rng, 0.5), lean=between(rng, -0.02, 0.02))
        piece = Placed(
            category="",
            colour=litter.colour,
            shapes=tuple(litter.build(rng)),
            pose=pose,
            column=int(rng.integers(view.width)),
            row=view.row(depth),
            depth=depth,
            aloft=False,
        )
        placed.append(piece)
    return placed


def _propose(
    rng: np.random.Generator,
    view: View,
    slot: Slot,
    colour: str,
    shapes: tuple[Shape, ...],
    turn: tuple[bool, float, float],
) -> Placed:
    """Give the slot's object at a random place that suits it."""
    mirror, lean, size = turn
    metres = CATEGORIES[slot.category].metres * size
    if slot.aloft:
        depth = between(rng, 0.32, 0.8)
        row = round(view.horizon * (1 - between(rng, slot.near, slot.far)))
        row += round(view.scale(depth) * metres / 2)
    else:
        depth = between(rng, slot.near, slot.far)
        row = view.row(depth)
    pose = Pose(scale=view.scale(depth) * metres, mirror=mirror, lean=lean)
    return Placed(
        category=slot.category,
        colour=colour,
        shapes=shapes,
        pose=pose,
        column=int(rng.integers(view.width)),
        row=row,
        depth=depth,
        aloft=slot.aloft,
    )


def _box(placed: Placed) -> Box:
    """Give (left, top, right, bottom) in pixels, the slight rotation left out."""
    sign = -1 if placed.pose.mirror else 1
    xs = [sign * x for shape in placed.shapes for x, _ in shape.points]
    ys = [y for shape in placed.shapes for _, y in shape.points]
    scale = placed.pose.scale
    return (
        placed.column + min(xs) * scale,
        placed.row - max(ys) * scale,
        placed.column + max(xs) * scale,
        placed.row - min(ys) * scale,
    )


def _area(box: Box) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def _overlap(a: Box, b: Box) -> float:
    shared = (max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    return _area(shared) / max(min(_area(a), _area(b)), 1.0)


def _fits(view: View, box: Box, boxes: list[Box]) -> bool:
    """Tell whether most of the box is in the picture and little of it meets the others."""
    inside = (max(box[0], 0.0), max(box[1], 0.0), min(box[2], view.width), min(box[3], view.height))
    if _area(inside) < 0.78 * _area(box):
        return False
    return all(_overlap(box, other) <= _MAX_OVERLAP for other in boxes)
