import numpy as np
import pytest

from pipeline.sam.blobs import LEVELS, blob_scene
from pipeline.sam.tiny_batches import HELD_OUT_SEED, draw_prompts, make_batch


def test_scene_is_named_by_seed_and_index():
    one, same, other = blob_scene(3, 4), blob_scene(3, 4), blob_scene(3, 5)
    assert np.array_equal(one.image, same.image)
    assert np.array_equal(one.region_map, same.region_map)
    assert not np.array_equal(one.image, other.image)
    assert one.image.shape == (256, 256, 3)
    assert one.image.dtype == np.uint8


@pytest.mark.parametrize("index", range(4))
def test_levels_nest(index):
    scene = blob_scene(1, index)
    regions, objects = scene.masks("region", 1), scene.masks("object", 1)
    assert np.array_equal(regions.any(0), objects.any(0))
    assert regions.sum() == objects.sum()
    assert all(np.any(np.all(region <= objects, axis=(1, 2))) for region in regions)
    assert len(regions) >= len(scene.masks("part", 1)) >= len(objects)


def test_small_segments_are_left_out():
    scene = blob_scene(1, 2)
    assert np.all(scene.masks("region", 200).sum((1, 2)) >= 200)
    assert len(scene.masks("region", 200)) < len(scene.masks("region", 1))


def test_prompts_lie_in_their_targets():
    rng = np.random.default_rng(0)
    scenes = [blob_scene(HELD_OUT_SEED, index) for index in range(3)]
    for augment in (False, True):
        batch = make_batch(rng, scenes, 6, augment)
        assert batch.target.shape == (3, 6, len(LEVELS), 128, 128)
        cells = (batch.point / 2).long()
        for row in range(3):
            for prompt in range(6):
                x, y = cells[row, prompt].tolist()
                assert (batch.target[row, prompt, :, y, x] > 0).all()


def test_prompts_prefer_what_is_visible():
    scene = blob_scene(2, 0)
    points = draw_prompts(np.random.default_rng(0), scene, 200)
    hit = scene.is_background[scene.region_map[points[:, 1], points[:, 0]]]
    assert hit.mean() < 0.25
