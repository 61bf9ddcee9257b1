"""What words mean, checked by hand on a picture of 100 x 200 pixels."""

import pytest

from pipeline.scenes.resolve import Query, Relation, Thing, matches, strictly

SHAPE = (100, 200)


def thing(category, colour, x, base=80, side=20, aloft=False):
    return Thing(
        category=category,
        colour=colour,
        box=(x - side // 2, base - side, x + side // 2, base),
        centre=(x, base - side // 2),
        area=side * side,
        base=base,
        aloft=aloft,
        named=True,
        clear=True,
    )


THINGS = [
    thing("car", "red", 30, base=60),
    thing("car", "red", 90, base=80, side=30),
    thing("car", "blue", 160, base=95),
    thing("house", "white", 130, base=50, side=40),
    thing("bird", "red", 60, base=20, side=10, aloft=True),
]
CARS = ("car",)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (Query(kinds=CARS), [0, 1, 2]),
        (Query(kinds=CARS, colour="blue"), [2]),
        (Query(colour="red"), [0, 1, 4]),
        (Query(kinds=CARS, size="big"), [1]),
        (Query(kinds=CARS, size="small"), [0, 2]),
        (Query(kinds=("house",), size="big"), []),
        (Query(kinds=CARS, place="left"), [0]),
        (Query(kinds=CARS, place="right"), [2]),
        (Query(kinds=CARS, place="middle"), [1]),
        (Query(kinds=CARS, place="front"), [2]),
        (Query(kinds=CARS, place="back"), [0]),
        (Query(kinds=CARS, place="top"), []),
        (Query(kinds=CARS, place="2 left"), [1]),
        (Query(kinds=CARS, place="3 right"), [0]),
        (Query(kinds=CARS, colour="red", place="right"), [1]),
        (Query(kinds=CARS, relation=Relation(name="right of", category="house")), [2]),
        (Query(kinds=CARS, relation=Relation(name="left of", category="house")), [0, 1]),
        (Query(kinds=CARS, relation=Relation(name="left of", category="tree")), []),
        (Query(kinds=("dog",)), []),
    ],
)
def test_matches_by_hand(query, expected):
    assert matches(query, THINGS, SHAPE) == expected


def test_nearly_as_far_left_counts_as_left():
    pair = [thing("car", "red", 50), thing("car", "red", 60)]
    query = Query(kinds=CARS, place="left")
    assert matches(query, pair, SHAPE) == [0, 1]
    assert not strictly(query, 0, pair, SHAPE)


def test_left_is_not_said_of_what_is_on_the_right_half():
    pair = [thing("car", "red", 150), thing("car", "red", 190)]
    query = Query(kinds=CARS, place="left")
    assert matches(query, pair, SHAPE) == [0]
    assert not strictly(query, 0, pair, SHAPE)


def test_behind_needs_to_be_hidden_behind():
    man, bus = thing("man", "red", 100, base=60), thing("bus", "red", 104, base=75, side=40)
    query = Query(kinds=("man",), relation=Relation(name="behind", category="bus"))
    assert strictly(query, 0, [man, bus], SHAPE)
    aside = thing("man", "red", 30, base=60)
    assert not strictly(query, 0, [aside, bus], SHAPE)


def test_relation_to_either_of_two_landmarks_counts():
    houses = [thing("house", "white", 20), thing("house", "white", 180)]
    query = Query(kinds=CARS, relation=Relation(name="right of", category="house"))
    assert matches(query, [*houses, thing("car", "red", 100)], SHAPE) == [2]
