"""Say what an object is so that nothing else in the picture fits."""

from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.scenes.chance import chance, pick
from pipeline.scenes.objects import CATEGORIES, PEOPLE
from pipeline.scenes.resolve import PLACES, RELATIONS, Query, Relation, Shape, Thing, strictly

_COLOURED: dict[str, tuple[str, ...]] = {
    "man": ("{n} in {c}", "{n} in {c} shirt", "{n} wearing {c}", "{c} shirt {n}"),
    "woman": ("{n} in {c}", "{n} in {c} dress", "{n} wearing {c}", "{c} dress {n}"),
    "person": ("{n} in {c}", "{n} wearing {c}"),
}
_SIZED: dict[str, tuple[str, ...]] = {
    "big": ("big", "large", "biggest", "larger", "bigger"),
    "small": ("small", "little", "smallest", "smaller"),
}
_PLACED: dict[str, tuple[str, ...]] = {
    "left": ("left {p}", "{p} on the left", "{p} on left", "{p} left", "leftmost {p}"),
    "right": ("right {p}", "{p} on the right", "{p} on right", "{p} right", "rightmost {p}"),
    "middle": ("middle {p}", "{p} in the middle", "center {p}", "{p} in middle"),
    "top": ("top {p}", "upper {p}", "highest {p}", "{p} at the top"),
    "bottom": ("bottom {p}", "lower {p}", "lowest {p}", "{p} at the bottom"),
    "front": ("closest {p}", "{p} in front", "nearest {p}", "{p} in the foreground"),
    "back": ("farthest {p}", "{p} in the back", "{p} in the background", "{p} farthest away"),
}
_ORDINALS = {"2": ("second", "2nd"), "3": ("third", "3rd"), "4": ("fourth", "4th")}
_RELATED: dict[str, tuple[str, ...]] = {
    "left of": ("{p} left of the {l}", "{p} to the left of the {l}", "{p} left of {l}"),
    "right of": ("{p} right of the {l}", "{p} to the right of the {l}", "{p} right of {l}"),
    "next to": ("{p} next to the {l}", "{p} beside the {l}", "{p} by the {l}"),
    "in front of": ("{p} in front of the {l}", "{p} in front of {l}"),
    "behind": ("{p} behind the {l}", "{p} behind {l}"),
}
# How often a form is tried before the others: position, category and colour decide mostly, and
# redundant detail is said now and then. Of relations there are many, so each is light.
_WEIGHTS: dict[str, int] = {
    "bare": 6,
    "c": 8,
    "p": 8,
    "cp": 4,
    "s": 6,
    "sc": 3,
    "r": 1,
    "cr": 1,
    "scr": 1,
    "one": 3,
}


def describe(
    rng: np.random.Generator, things: Sequence[Thing], shape: Shape
) -> tuple[tuple[tuple[str, Query], ...], ...]:
    """Give each thing 2 or 3 expressions with their meanings, or none if none may be given.

    Args:
        rng: Chooses forms and words.
        things: Everything that is seen.
        shape: (H, W) of the picture, in pixels.
    """
    return tuple(
        _describe_one(rng, number, things, shape) if thing.named else ()
        for number, thing in enumerate(things)
    )


def _describe_one(
    rng: np.random.Generator, number: int, things: Sequence[Thing], shape: Shape
) -> tuple[tuple[str, Query], ...]:
    scored: list[tuple[int, str, Query]] = []
    for form, query in _queries(things[number], things):
        if strictly(query, number, things, shape):
            # The largest of several draws, so that a heavier form comes first more often.
            score = max(int(draw) for draw in rng.integers(0, 1 << 30, _WEIGHTS[form]))
            scored.append((score, form, query))
    scored.sort(key=lambda entry: -entry[0])
    wanted = int(rng.integers(2, 4))
    forms: set[str] = set()
    meanings: set[Query] = set()
    said: dict[str, Query] = {}
    for fresh in range(3):  # another form, else another meaning, else other words
        for _, form, query in scored:
            stale = (form in forms, query in meanings, False)[fresh]
            if len(said) < wanted and not stale:
                said.setdefault(say(rng, query), query)
                forms.add(form)
                meanings.add(query)
    return tuple(said.items()) if len(said) >= 2 else ()


def _queries(thing: Thing, things: Sequence[Thing]) -> Iterator[tuple[str, Query]]:
    """Give what might be said of the thing, with the name of the form."""
    kinds, colour = (thing.category,), thing.colour
    names = [kinds, PEOPLE] if thing.category in PEOPLE else [kinds]
    places = [*PLACES, *(f"{rank} {side}" for rank in "234" for side in ("left", "right"))]
    for kind in names:
        yield "bare", Query(kinds=kind)
        yield "c", Query(kinds=kind, colour=colour)
        for place in places:
            yield "p", Query(kinds=kind, place=place)
    for place in ("left", "right", "middle", "top", "bottom", "front", "back"):
        yield "cp", Query(kinds=kinds, colour=colour, place=place)
    for size in ("big", "small"):
        yield "s", Query(kinds=kinds, size=size)
        yield "sc", Query(kinds=kinds, size=size, colour=colour)
    if thing.category not in PEOPLE:
        yield "one", Query(colour=colour)
        for place in ("left", "right"):
            yield "one", Query(colour=colour, place=place)
    for relation in _relations(thing, things):
        yield "r", Query(kinds=kinds, relation=relation)
        yield "cr", Query(kinds=kinds, colour=colour, relation=relation)
        for size in ("big", "small"):
            yield "scr", Query(kinds=kinds, size=size, colour=colour, relation=relation)


def _relations(thing: Thing, things: Sequence[Thing]) -> Iterator[Relation]:
    """Give relations to landmarks that are clear and the only ones of their description."""
    for other in things:
        alike = [t for t in things if t.category == other.category]
        if other is thing or not other.clear or other.category == thing.category:
            continue
        if len(alike) == 1:
            for name in RELATIONS:
                yield Relation(name=name, category=other.category)
        if [t.colour for t in alike].count(other.colour) == 1:
            for name in RELATIONS:
                yield Relation(name=name, category=other.category, colour=other.colour)


def say(rng: np.random.Generator, query: Query) -> str:
    """Put a meaning into words."""
    phrase = _noun_phrase(rng, query.kinds, query.colour)
    if query.size is not None:
        phrase = f"{pick(rng, _SIZED[query.size])} {phrase}"
    if query.place in _PLACED:
        phrase = pick(rng, _PLACED[query.place]).format(p=phrase)
    elif query.place is not None:
        rank, side = query.place.split()
        ordinal = pick(rng, _ORDINALS[rank])
        phrase = pick(rng, ("{o} {p} from the {s}", "{o} {p} from {s}")).format(
            o=ordinal, p=phrase, s=side
        )
    if query.relation is not None:
        landmark = _noun_phrase(rng, (query.relation.category,), query.relation.colour)
        phrase = pick(rng, _RELATED[query.relation.name]).format(p=phrase, l=landmark)
    return f"the {phrase}" if chance(rng, 0.25) else phrase


def _noun_phrase(rng: np.random.Generator, kinds: tuple[str, ...], colour: str | None) -> str:
    if not kinds:
        return f"{colour} {pick(rng, ('one', 'one', 'thing', 'object'))}"
    if len(kinds) > 1:
        key, noun = "person", "person"
    else:
        key = kinds[0]
        nouns = CATEGORIES[key].nouns
        noun = nouns[0] if chance(rng, 0.6) else pick(rng, nouns)
    if colour is None:
        return noun
    return pick(rng, _COLOURED.get(key, ("{c} {n}",))).format(c=colour, n=noun)
