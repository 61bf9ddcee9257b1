"""Every expression, read from its words alone, is true of exactly one object."""

import re

import numpy as np
import pytest

from pipeline.scenes.expressions import say
from pipeline.scenes.objects import CATEGORIES, PEOPLE
from pipeline.scenes.palette import COLOURS
from pipeline.scenes.resolve import Query, Relation, matches
from pipeline.scenes.scene import SPLITS, draft_scene, make_scene

# A reader of its own: it knows the words, not how they were chosen.
NOUNS = {noun: (kind,) for kind, one in CATEGORIES.items() for noun in one.nouns}
NOUNS |= {"person": PEOPLE, "one": (), "thing": (), "object": ()}
RELATIONS = {
    r"(?:to the )?left of": "left of",
    r"(?:to the )?right of": "right of",
    r"next to|beside|by": "next to",
    r"in front of": "in front of",
    r"behind": "behind",
}
PLACES = {
    r"left|leftmost|on (?:the )?left": "left",
    r"right|rightmost|on (?:the )?right": "right",
    r"middle|center|in (?:the )?middle": "middle",
    r"top|upper|highest|at the top": "top",
    r"bottom|lower|lowest|at the bottom": "bottom",
    r"closest|nearest|in front|in the foreground": "front",
    r"farthest|farthest away|in the back|in the background": "back",
}
SIZES = {"big": r"big|large|biggest|larger|bigger", "small": r"small|little|smallest|smaller"}
RANKS = {"2": "second|2nd", "3": "third|3rd", "4": "fourth|4th"}


def read(text: str) -> Query:
    """Give the meaning of an expression, from its words."""
    text = text.removeprefix("the ")
    for pattern, name in RELATIONS.items():
        if found := re.fullmatch(rf"(.+?) (?:{pattern}) (?:the )?(.+)", text):
            rest, landmark = read(found[1]), read(found[2])
            (category,) = landmark.kinds
            relation = Relation(name=name, category=category, colour=landmark.colour)
            return Query(
                kinds=rest.kinds,
                colour=rest.colour,
                size=rest.size,
                place=rest.place,
                relation=relation,
            )
    text, place = _read_place(text)
    size = None
    for name, pattern in SIZES.items():
        text, count = re.subn(rf"^(?:{pattern}) ", "", text)
        size = name if count else size
    colours = [word for word in text.split() if word in COLOURS]
    noun = re.sub(rf"\b(in|wearing|shirt|dress|{'|'.join(COLOURS)})\b", "", text).split()
    return Query(
        kinds=NOUNS[" ".join(noun)],
        colour=colours[0] if colours else None,
        size=size,
        place=place,
    )


def _read_place(text: str) -> tuple[str, str | None]:
    for rank, pattern in RANKS.items():
        if found := re.fullmatch(rf"(?:{pattern}) (.+) from (?:the )?(left|right)", text):
            return found[1], f"{rank} {found[2]}"
    for pattern, name in PLACES.items():
        if found := re.fullmatch(rf"(?:{pattern}) (.+)", text):
            return found[1], name
        if found := re.fullmatch(rf"(.+?) (?:{pattern})", text):
            return found[1], name
    return text, None


@pytest.mark.parametrize("split", SPLITS)
def test_expressions_read_back_are_true_of_their_object_alone(split):
    for index in range(15):
        draft = draft_scene(17, split, index)
        shape = draft.drawn.owner.shape
        for number, pairs in enumerate(draft.told):
            for text, query in pairs:
                assert read(text) == query, text
                assert matches(read(text), draft.things + draft.litter, shape) == [number], text


def test_scene_says_what_its_draft_means():
    draft, scene = draft_scene(17, "val", 3), make_scene(17, "val", 3)
    assert [one.expressions for one in scene.objects] == [
        tuple(text for text, _ in pairs) for pairs in draft.told
    ]


def test_expressions_vary_in_form_and_words():
    texts = [
        text
        for index in range(25)
        for pairs in draft_scene(17, "train", index).told
        for text, _ in pairs
    ]
    queries = [read(text) for text in texts]
    assert len({word for text in texts for word in text.split()}) > 75
    assert sum(q.relation is not None for q in queries) > 0.08 * len(queries)
    assert sum(q.place is not None for q in queries) > 0.25 * len(queries)
    assert sum(q.colour is not None for q in queries) > 0.25 * len(queries)
    assert sum(q.size is not None for q in queries) > 0.03 * len(queries)


@pytest.mark.parametrize(
    ("query", "texts"),
    [
        (Query(kinds=("tree",)), {"tree", "the tree"}),
        (Query(kinds=PEOPLE), {"person", "the person"}),
    ],
)
def test_say_by_hand(query, texts):
    rng = np.random.default_rng(0)
    assert {say(rng, query) for _ in range(40)} == texts
