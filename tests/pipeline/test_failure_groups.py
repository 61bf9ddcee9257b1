"""Failures of one cause are told as one, and nothing is lost on the way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.failure_groups import ALIKE, folders_to_allow, grouped
from pipeline.readers.base import Failure


def missing(number):
    return Failure(
        item=f"data.jsonl: line {number}",
        file=f"images/{number}.png",
        reason=f"expected an image file, found none that can be read at /my data/images/"
        f"{number}.png; check the image root",
    )


def link(number, place):
    return Failure(item=f"line {number}", file=f"{number}.png", reason="a link", leads_to=place)


def test_few_are_listed_one_by_one():
    told = grouped([missing(number) for number in range(ALIKE)])
    assert [item.item for item in told] == [
        f"data.jsonl: line {number} images/{number}.png" for number in range(ALIKE)
    ]


def test_many_for_the_same_reason_are_the_first_and_a_number():
    others = [
        Failure(item="line 7", file="b.png", reason="expected 5x5, found 6x6"),
        Failure(item="line 8", file="", reason="expected one JSON object"),
    ]
    told = grouped([others[0], *map(missing, range(1200)), others[1]])
    assert len(told) == 3
    assert told[0].item == "data.jsonl: line 0 images/0.png"
    assert told[0].reason.endswith("check the image root (and 1,199 more for the same reason)")
    assert [item.item for item in told[1:]] == ["line 7 b.png", "line 8"]


def test_the_most_frequent_reason_comes_first_and_links_before_all():
    sizes = [Failure(item=f"line {n}", file=f"{n}.png", reason=f"expected {n}x{n}, found {n}x5")
             for n in range(10, 30)]  # fmt: skip
    told = grouped([*map(missing, range(9)), *sizes, link(1, "/data/a.png")])
    assert [item.item.split(" ")[0] for item in told] == ["1", "line", "data.jsonl:"]
    assert told[1].reason == "expected 10x10, found 10x5 (and 19 more for the same reason)"


@given(st.lists(st.builds(Failure, item=st.text(max_size=5), file=st.text(max_size=5),
                          reason=st.text(max_size=30)), max_size=20))  # fmt: skip
def test_every_failure_is_listed_or_counted(failures):
    told = grouped(failures)
    more = [item.reason.rsplit(" (and ", 1) for item in told]
    counted = sum(int(parts[1].split(" ")[0].replace(",", "")) for parts in more if len(parts) > 1
                  and parts[1].endswith(" more for the same reason)"))  # fmt: skip
    assert len(told) + counted == len(failures)


def test_a_reason_of_any_length_is_quickly_compared():
    long = "a" * 10**6 + "'" * 10**5
    assert len(grouped([Failure(item="", file="", reason=long) for _ in range(5)])) == 1


@pytest.mark.parametrize(
    ("places", "folders"),
    [
        (["/hub/blobs/0", "/hub/blobs/1"], ["/hub/blobs"]),
        (["/a/x/1", "/b/y/1"], ["/a/x", "/b/y"]),
        ([f"/repo/.git/annex/objects/{n}/k/k" for n in range(9)], ["/repo/.git/annex/objects"]),
        ([f"/disk{n % 2}/im/{n}/a" for n in range(8)], ["/disk0/im", "/disk1/im"]),
        (["/a/b/1", "/a/1"], ["/a"]),
        (["/a.png"], ["/"]),
        ([f"/{n}/a.png" for n in range(5)], [f"/{n}" for n in range(5)]),
    ],
)
def test_the_folders_to_allow_by_hand(places, folders):
    assert folders_to_allow(places) == folders


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(
    lambda parts: "/" + "/".join(parts) + "/f"), min_size=1, max_size=12))  # fmt: skip
def test_the_folders_hold_every_file_and_none_holds_another(places):
    folders = folders_to_allow(places)
    assert all(any(place.startswith(folder + "/") for folder in folders) for place in places)
    assert not any(one.startswith(two + "/") for one in folders for two in folders if one != two)


def test_a_place_of_odd_letters_is_one_line():
    (told,) = grouped([link(1, "/da\nta/é/a.png")])
    assert "\n" not in told.reason
    assert 'links_into: ["/da\\nta/\\u00e9"]' in told.reason
