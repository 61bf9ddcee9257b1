"""What a referring expression means: which objects of a scene it is true of.

A query is read generously: an object that is nearly the leftmost counts as the left one, so an
expression is only used when no other object comes near to it. `strictly` asks the opposite of
the object that is meant: it must be a good example.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

Shape = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """What language can say about one object; pixels, x to the right, y down."""

    category: str
    colour: str
    box: tuple[int, int, int, int]
    """Visible pixels: (left, top, right, bottom), half-open."""
    centre: tuple[int, int]
    """Mean (x, y) of the visible pixels."""
    area: int
    """Visible pixels."""
    base: int
    """Row of the ground it stands on."""
    aloft: bool
    """Whether it flies or swims."""
    named: bool
    """Whether it may be referred to."""
    clear: bool
    """Whether it shows enough to serve as a landmark."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """Where an object is with regard to a landmark."""

    name: str
    """A key of `RELATIONS`."""
    category: str
    """The landmark's category."""
    colour: str | None = None
    """The landmark's colour; None if it is not said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A meaning: everything that is said must hold."""

    kinds: tuple[str, ...] = ()
    """Categories; empty for any ("the red one")."""
    colour: str | None = None
    size: str | None = None
    """big or small, among the objects of those kinds and that colour; None if not said."""
    place: str | None = None
    """A key of `PLACES`, or "2 left" for the second from the left; None if not said."""
    relation: Relation | None = None


def matches(query: Query, things: Sequence[Thing], shape: Shape) -> list[int]:
    """Give the positions of the things that the query is true of, read generously.

    Args:
        query: The meaning.
        things: Everything that is seen in the picture.
        shape: (H, W) of the picture, in pixels.
    """
    return _select(query, things, shape, strict=False)


def strictly(query: Query, number: int, things: Sequence[Thing], shape: Shape) -> bool:
    """Tell whether thing `number` is a good example of the query and no other comes near."""
    relation = query.relation
    if relation is not None and not _is_related(number, things, relation, shape, strict=True):
        return False  # most relations end here, at the price of one comparison
    if matches(query, things, shape) != [number]:
        return False
    return _select(query, things, shape, strict=True) == [number]


def _select(query: Query, things: Sequence[Thing], shape: Shape, *, strict: bool) -> list[int]:
    group = [
        k
        for k, thing in enumerate(things)
        if (not query.kinds or thing.category in query.kinds)
        and query.colour in (None, thing.colour)
    ]
    chosen = group
    alike = [things[k] for k in group]
    if query.size is not None:
        chosen = [k for k in chosen if _has_size(things[k], alike, query.size)]
    if query.place is not None:
        chosen = [k for k in chosen if _has_place(things[k], alike, query.place, shape, strict)]
    if query.relation is not None:
        chosen = [k for k in chosen if _is_related(k, things, query.relation, shape, strict=strict)]
    return chosen


def _has_size(thing: Thing, alike: list[Thing], size: str) -> bool:
    """Tell whether the thing is within 3:2 of the largest or smallest of its like."""
    if len(alike) < 2:
        return False
    if size == "big":
        return 3 * thing.area >= 2 * max(other.area for other in alike)
    return 2 * thing.area <= 3 * min(other.area for other in alike)


def _first(values: list[int], value: int, slack: int) -> bool:
    return value <= min(values) + slack


def _left(thing: Thing, alike: list[Thing], shape: Shape, strict: bool) -> bool:
    x, width = thing.centre[0], shape[1]
    if len(alike) == 1:
        return 100 * x < (38 if strict else 50) * width
    return _first([t.centre[0] for t in alike], x, 0 if strict else width // 14) and (
        not strict or 100 * x < 60 * width
    )


def _right(thing: Thing, alike: list[Thing], shape: Shape, strict: bool) -> bool:
    x, width = thing.centre[0], shape[1]
    if len(alike) == 1:
        return 100 * x > (62 if strict else 50) * width
    return _first([-t.centre[0] for t in alike], -x, 0 if strict else width // 14) and (
        not strict or 100 * x > 40 * width
    )


def _middle(thing: Thing, alike: list[Thing], shape: Shape, strict: bool) -> bool:
    x, width = thing.centre[0], shape[1]
    inside = (40 if strict else 34) * width <= 100 * x <= (60 if strict else 66) * width
    outer = [t.centre[0] for t in alike]
    return inside and (len(alike) == 1 or min(outer) < x < max(outer) or not strict)


def _top(thing: Thing, alike: list[Thing], shape: Shape, strict: bool) -> bool:
    if len(alike) < 2 or not all(t.aloft for t in alike):
        return False
    return _first([t.centre[1] for t in alike], thing.centre[1], 0 if strict else shape[0] // 14)


def _bottom(thing: Thing, alike: list[Thing], shape: Shape, strict: bool) -> bool:
    if len(alike) < 2 or not all(t.aloft for t in alike):
        return False
    return _first([-t.centre[1] for t in alike], -thing.centre[1], 0 if strict else shape[0] // 14)


def _front(thing: Thing, alike: list[Thing], shape: Shape, strict: bool) -> bool:
    if len(alike) < 2 or any(t.aloft for t in alike):
        return False
    return _first([-t.base for t in alike], -thing.base, 0 if strict else shape[0] // 16)


def _back(thing: Thing, alike: list[Thing], shape: Shape, strict: bool) -> bool:
    if len(alike) < 2 or any(t.aloft for t in alike):
        return False
    return _first([t.base for t in alike], thing.base, 0 if strict else shape[0] // 16)


PLACES: dict[str, Callable[[Thing, list[Thing], Shape, bool], bool]] = {
    "left": _left,
    "right": _right,
    "middle": _middle,
    "top": _top,
    "bottom": _bottom,
    "front": _front,
    "back": _back,
}


def _has_place(thing: Thing, alike: list[Thing], place: str, shape: Shape, strict: bool) -> bool:
    if place in PLACES:
        return PLACES[place](thing, alike, shape, strict)
    rank, side = place.split()
    columns = sorted(t.centre[0] for t in alike)
    if side == "right":
        columns.reverse()
    gaps = [abs(b - a) for a, b in pairwise(columns)]
    if len(columns) < 3 or min(gaps) < shape[1] // 18:
        return False
    return columns.index(thing.centre[0]) == int(rank) - 1


def _is_related(
    number: int, things: Sequence[Thing], relation: Relation, shape: Shape, *, strict: bool
) -> bool:
    """Tell whether the relation holds to any thing that fits the landmark's description."""
    return any(
        RELATIONS[relation.name](things[number], other, shape, strict)
        for k, other in enumerate(things)
        if k != number
        and other.category == relation.category
        and relation.colour in (None, other.colour)
    )


def _left_of(a: Thing, b: Thing, shape: Shape, strict: bool) -> bool:
    step = b.centre[0] - a.centre[0]
    if not strict:
        return step > 0
    apart = abs(a.centre[1] - b.centre[1])
    return a.box[2] <= b.centre[0] and 12 * shape[1] < 100 * step and apart < shape[0] // 3


def _right_of(a: Thing, b: Thing, shape: Shape, strict: bool) -> bool:
    step = a.centre[0] - b.centre[0]
    if not strict:
        return step > 0
    apart = abs(a.centre[1] - b.centre[1])
    return a.box[0] >= b.centre[0] and 12 * shape[1] < 100 * step and apart < shape[0] // 3


def _next_to(a: Thing, b: Thing, shape: Shape, strict: bool) -> bool:
    gap = max(a.box[0] - b.box[2], b.box[0] - a.box[2])
    fall = abs(a.base - b.base)
    if a.aloft or b.aloft:
        return False
    if not strict:
        return 100 * gap < 18 * shape[1]
    near = 100 * gap < 6 * shape[1] and 100 * fall < 14 * shape[0]
    return near and abs(a.centre[0] - b.centre[0]) > shape[1] // 14


def _in_front(a: Thing, b: Thing, shape: Shape, strict: bool) -> bool:
    shared = min(a.box[2], b.box[2]) - max(a.box[0], b.box[0])
    if a.aloft or b.aloft:
        return False
    if not strict:
        return a.base > b.base and shared > -shape[1] // 20
    narrow = min(a.box[2] - a.box[0], b.box[2] - b.box[0])
    return a.base > b.base + shape[0] // 24 and 10 * shared > 4 * narrow and a.box[1] < b.box[3]


def _behind(a: Thing, b: Thing, shape: Shape, strict: bool) -> bool:
    return _in_front(b, a, shape, strict)


RELATIONS: dict[str, Callable[[Thing, Thing, Shape, bool], bool]] = {
    "left of": _left_of,
    "right of": _right_of,
    "next to": _next_to,
    "in front of": _in_front,
    "behind": _behind,
}
