import numpy as np
import pytest

from pipeline.sam.blobs import blob_scene


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
