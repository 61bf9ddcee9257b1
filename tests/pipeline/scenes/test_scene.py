"""Laws of a generated scene: same everywhere, exact masks, splits as in RefCOCO."""

import hashlib
from functools import cache

import numpy as np
import pytest

from pipeline.scenes.objects import CATEGORIES, PEOPLE
from pipeline.scenes.palette import COLOURS
from pipeline.scenes.scene import MIN_AREA_SHARE, SPLITS, Scene, make_scene

PER_SPLIT = 9
CASES = [(split, index) for split in SPLITS for index in range(PER_SPLIT)]


@cache
def scene_of(split: str, index: int) -> Scene:
    return make_scene(3, split, index)


def digest(scene: Scene) -> str:
    state = hashlib.sha256(scene.image.tobytes())
    for one in scene.objects:
        state.update(one.mask.tobytes())
        state.update(repr((one.category, one.colour, one.expressions)).encode())
        for name, mask in one.parts.items():
            state.update(name.encode() + mask.tobytes())
    return state.hexdigest()


GOLDEN = {
    ("train", 0): "8c9046d2f456a92853fc74ee95dfa9b77ec89d3b0225958450bb0488665f2a25",
    ("train", 1): "43da1eefcaa24838b341a6253279995016cb8f66931ea6776adc2a02dedb39f0",
    ("val", 2): "70199e0ee79fd251620caf6b83e82c728b7ef6b3d2a158cddb681904c8ce4115",
    ("testA", 0): "2a0790ac8adfbf92266351708c3ed61c549b1d353ad060c346c3418106b3c8f9",
    ("testB", 0): "cacaa820ada858940a0ceaa043141318ea72aec6aaf7fac1e4451338e02a9024",
}


@pytest.mark.parametrize(("split", "index"), GOLDEN)
def test_scene_is_the_one_that_was_recorded(split, index):
    """A change here changes every published number: raise `write.FORMAT_VERSION` with it."""
    assert digest(make_scene(0, split, index)) == GOLDEN[split, index]


def test_scene_depends_on_its_arguments_alone():
    again = make_scene(3, "train", 1)
    make_scene(8, "val", 5)
    assert digest(again) == digest(make_scene(3, "train", 1))


def test_scenes_of_other_seeds_splits_and_indices_differ():
    others = [(3, "train", 0), (4, "train", 0), (3, "val", 0), (3, "train", 1)]
    assert len({digest(make_scene(*arguments)) for arguments in others}) == 4


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split must be one of train, val, testA, testB, got 'x'"):
        make_scene(0, "x", 0)


@pytest.mark.parametrize(("split", "index"), CASES)
def test_image_is_a_photograph_of_longest_side_256(split, index):
    image = scene_of(split, index).image
    assert image.dtype == np.uint8
    assert image.shape[2] == 3
    assert max(image.shape[:2]) == 256
    assert min(image.shape[:2]) >= 160
    assert image.std() > 15


def test_image_sizes_vary():
    assert len({scene_of(*case).image.shape for case in CASES}) >= 4


@pytest.mark.parametrize(("split", "index"), CASES)
def test_objects_do_not_share_pixels(split, index):
    scene = scene_of(split, index)
    covered = sum(one.mask.astype(int) for one in scene.objects)
    assert covered.max() == 1


@pytest.mark.parametrize(("split", "index"), CASES)
def test_parts_are_disjoint_and_make_up_their_object(split, index):
    for one in scene_of(split, index).objects:
        covered = sum(mask.astype(int) for mask in one.parts.values())
        np.testing.assert_array_equal(covered, one.mask.astype(int))
        assert all(mask.any() and mask.shape == one.mask.shape for mask in one.parts.values())


@pytest.mark.parametrize(("split", "index"), CASES)
def test_objects_are_known_and_referred_ones_show_enough(split, index):
    scene = scene_of(split, index)
    assert 1 <= len(scene.objects) <= 7
    assert any(one.expressions for one in scene.objects)
    for one in scene.objects:
        assert one.category in CATEGORIES
        assert one.colour in COLOURS
        assert len(one.expressions) in (0, 2, 3)
        assert len(set(one.expressions)) == len(one.expressions)
        if one.expressions:
            assert one.mask.mean() >= MIN_AREA_SHARE


@pytest.mark.parametrize("index", range(PER_SPLIT))
def test_test_a_refers_to_people_and_test_b_to_the_rest(index):
    people = [o.category in PEOPLE for o in scene_of("testA", index).objects if o.expressions]
    others = [o.category in PEOPLE for o in scene_of("testB", index).objects if o.expressions]
    assert all(people)
    assert not any(others)


def test_most_scenes_hold_several_objects_of_one_category():
    scenes = [scene_of(*case) for case in CASES]
    repeated = [len({o.category for o in s.objects}) < len(s.objects) for s in scenes]
    assert sum(repeated) > 0.6 * len(scenes)


def test_objects_are_lit_and_textured_rather_than_flat():
    spreads = [
        scene_of(*case).image[one.mask].astype(float).std(axis=0).mean()
        for case in CASES[:8]
        for one in scene_of(*case).objects
    ]
    assert min(spreads) > 4
