"""Prompts, targets and levels of the pictures that the small SAM is trained on."""

import numpy as np
import pytest

from pipeline.sam.tiny_batches import (
    HELD_OUT_SEED,
    LEVELS,
    PADDING,
    draw_prompts,
    make_batch,
    scene_picture,
    training_picture,
)
from pipeline.scenes.scene import make_scene


def test_prompts_lie_in_their_targets():
    rng = np.random.default_rng(0)
    pictures = [training_picture(HELD_OUT_SEED, index) for index in range(3)]
    for augment in (False, True):
        batch = make_batch(rng, pictures, 6, augment)
        assert batch.target.shape == (3, 6, len(LEVELS), 128, 128)
        cells = (batch.point / 2).long()
        for row in range(3):
            for prompt in range(6):
                x, y = cells[row, prompt].tolist()
                assert (batch.target[row, prompt, :, y, x] > 0).all()


@pytest.mark.parametrize("index", [0, 1, 2])
def test_prompts_prefer_things_and_never_fall_on_the_padding(index):
    picture = training_picture(2, index)
    points = draw_prompts(np.random.default_rng(0), picture, 200)
    hit = picture.segments[0][points[:, 1], points[:, 0]]
    assert picture.is_background[hit].mean() < 0.25
    assert not (hit == PADDING).any()


@pytest.mark.parametrize("index", range(4))
def test_levels_of_a_scene_nest_and_give_its_masks_back(index):
    scene = make_scene(5, "train", index)
    picture = scene_picture(scene)
    height, width = scene.image.shape[:2]
    part, whole, group = picture.segments
    assert np.array_equal(picture.image[:height, :width], scene.image)
    assert (picture.segments[:, height:] == PADDING).all()
    assert (picture.segments[:, :, width:] == PADDING).all()
    for fine, coarse in ((part, whole), (whole, group)):
        pairs = np.unique(np.stack([fine.ravel(), coarse.ravel()]), axis=1)
        assert len(np.unique(pairs[0])) == pairs.shape[1]  # a finer segment lies in one coarser
    for thing in scene.objects:
        ids = np.unique(whole[:height, :width][thing.mask])
        assert len(ids) == 1
        assert np.array_equal(whole[:height, :width] == ids[0], thing.mask)
        assert not picture.is_background[part[:height, :width][thing.mask]].any()
