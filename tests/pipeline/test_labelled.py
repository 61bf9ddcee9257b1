"""The labelled images are those of the released rule, and nothing leaks."""

import random
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.columns import StringColumn
from pipeline.data_config import DataConfig
from pipeline.errors import ConfigError, ManifestError
from pipeline.labelled import (
    annotated_images,
    check_leaks,
    choose_labelled,
    leaking_images,
    match_labelled,
)
from pipeline.readers import READERS
from tests.pipeline.small_data import RELEASED, needs_released

REFCOCO_TRAIN_IMAGES = 16_994
IDS = ["a", "b", "c"]


def released_rule(ids, ratio):
    """The rule as released, in other words: slow, and on the global generator."""
    random.seed(0)
    drawn = random.sample(ids, int(ratio * len(ids)))
    return [name in drawn for name in ids]


@given(st.integers(1, 400), st.floats(0.01, 1))
def test_the_draw_equals_the_released_rule(count, ratio):
    ids = [str(3 * number) for number in range(count)]
    if int(ratio * count) == 0:
        with pytest.raises(ConfigError):
            choose_labelled(ids, ratio)
    else:
        assert choose_labelled(ids, ratio).tolist() == released_rule(ids, ratio)


@pytest.mark.parametrize(
    ("images", "counts"),
    [
        (16_994, [16, 84, 169, 339, 849, 1699]),  # RefCOCO
        (16_992, [16, 84, 169, 339, 849, 1699]),  # RefCOCO+
        (21_899, [21, 109, 218, 437, 1094, 2189]),  # RefCOCOg umd
    ],
)
def test_the_papers_ratios_give_its_counts(images, counts):
    ids = [str(number) for number in range(images)]
    found = [
        int(choose_labelled(ids, ratio).sum()) for ratio in (0.001, 0.005, 0.01, 0.02, 0.05, 0.1)
    ]
    assert found == counts


@needs_released
def test_the_draw_is_that_of_the_released_split(tmp_path):
    # RefCOCO's refs stand by falling image id, nearly evenly over COCO's ids, and the released
    # file keeps their order. So the drawn positions must run with the released ids: the largest
    # distance is 0.004 of the range for seed 0, and 0.09 or more for other draws.
    config = DataConfig(reader="semires-split", annotations=RELEASED, images=tmp_path)
    records = READERS["semires-split"](config, tmp_path, 1).items
    released = list(dict.fromkeys(int(item.image_id) for item in records if item.split == "train"))
    share = 1 - np.array(released) / 581_921  # the highest image id of COCO train2014
    names = [str(number) for number in range(REFCOCO_TRAIN_IMAGES)]

    def distance(seed):
        drawn = np.flatnonzero(choose_labelled(names, 0.01, seed)) / REFCOCO_TRAIN_IMAGES
        return np.abs(drawn - share).max()

    assert len(released) == 169
    assert distance(0) < 0.006
    assert min(distance(seed) for seed in range(1, 20)) > 0.03


def test_the_global_generator_is_left_alone():
    random.seed(5)
    state = random.getstate()
    choose_labelled([str(number) for number in range(100)], 0.5)
    assert random.getstate() == state


def test_a_ratio_of_no_image_names_the_smallest():
    ids = [str(number) for number in range(30)]
    with pytest.raises(ConfigError, match=r"0\.01 of 30 .* smallest ratio here is 0\.033334"):
        choose_labelled(ids, 0.01)
    assert choose_labelled(ids, 0.033334).sum() == 1


@pytest.mark.parametrize("ratio", [0.1, 1.0])
def test_a_ratio_of_nothing_says_that_masks_are_missing(ratio):
    with pytest.raises(ConfigError, match=r"data\.labelled\.ratio: .* found none; give some"):
        choose_labelled([], ratio)


def test_annotated_images_by_hand():
    # Image 0: all masks. 1: one of two is missing. 2: val. 3: no object.
    found = annotated_images(
        np.array([0, 0, 1, 1, 2], np.int32),
        np.array([0, 0, 0, 0, 1], np.uint8),
        np.array([True, True, True, False, True]),
        4,
    )
    assert found.tolist() == [True, False, False, False]


def test_an_id_that_stands_twice_is_refused():
    with pytest.raises(ManifestError, match="found 1 again"):
        choose_labelled(["a", "a"], 0.5)


@given(st.lists(st.text("ab", max_size=3), max_size=20))
def test_ids_that_stand_twice_are_counted_in_lists_and_columns(ids):
    expected = len(ids) - len(set(ids))
    for names in (ids, StringColumn.from_strings(ids)):
        if not expected and ids:
            assert choose_labelled(names, 1.0).tolist() == [True] * len(ids)
        elif ids:
            with pytest.raises(ManifestError, match=f"found {expected} again"):
                choose_labelled(names, 1.0)


class Alike(str):
    """Text whose hash is that of all others."""

    __slots__ = ()

    def __hash__(self):
        return 1


def test_ids_of_the_same_hash_are_not_taken_for_the_same():
    leaks(image_ids=[Alike(name) for name in IDS])
    with pytest.raises(ManifestError, match="found 1 again"):
        choose_labelled([Alike("a"), Alike("b"), Alike("a")], 1.0)


def test_one_long_id_does_not_make_all_ids_long():
    names = [*map(str, range(200)), "x" * 100_000]
    labelled = [False] * len(names)
    rows = range(len(names))
    tracemalloc.start()
    try:
        leaks(image_ids=names, labelled=labelled, images=rows, splits=[0] * len(names))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 5 << 20


def test_listed_ids_are_matched():
    column = StringColumn.from_strings(IDS)
    assert match_labelled(column, ["c", "a"]).tolist() == [True, False, True]
    assert match_labelled(IDS, ["c", "a", "a"]).tolist() == [True, False, True]
    with pytest.raises(ManifestError, match=r"found 2 that are not \(x, y\)"):
        match_labelled(IDS, ["a", "y", "x"])


def leaks(image_ids=IDS, labelled=(True, False, False), images=(0, 1, 2), splits=(0, 0, 1)):
    check_leaks(
        image_ids=image_ids,
        image_labelled=np.array(labelled),
        object_image=np.array(images, np.int32),
        object_split=np.array(splits, np.uint8),
    )


def test_clean_data_passes():
    leaks()
    leaks(images=(0, 1, 2, 2), splits=(0, 0, 1, 2))  # val and testA may share


def test_an_image_of_train_and_val_is_named():
    with pytest.raises(ManifestError, match=r"found 1 in both \(b\); set data.drop_leaking"):
        leaks(images=(0, 1, 1, 2), splits=(0, 0, 1, 1))


def test_an_image_that_stands_twice_is_named():
    with pytest.raises(ManifestError, match=r"found 1 twice \(a\)"):
        leaks(image_ids=["a", "b", "a"])


def test_a_labelled_image_of_val_is_named():
    with pytest.raises(ManifestError, match=r"found 1 elsewhere \(c\)"):
        leaks(labelled=(True, False, True))


def test_many_leaks_are_counted_and_a_few_named():
    count = 40
    with pytest.raises(ManifestError, match=r"found 40 in both \(0, 1, 2, 3, 4, \.\.\.\)"):
        leaks(
            image_ids=[str(number) for number in range(count)],
            labelled=[False] * count,
            images=np.repeat(np.arange(count), 2),
            splits=[0, 1] * count,
        )


def test_leaking_images_by_hand():
    found = leaking_images(np.array([0, 0, 1, 2], np.int32), np.array([0, 4, 0, 1], np.uint8), 3)
    assert found.tolist() == [True, False, False]
