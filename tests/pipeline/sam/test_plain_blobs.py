"""Plain training scenes are repeatable, and their maps agree with each other."""

import numpy as np

from pipeline.sam.plain_blobs import plain_scene


def test_the_same_arguments_paint_the_same_scene():
    first, again, other = plain_scene(3, 5), plain_scene(3, 5), plain_scene(3, 6)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.region_map, again.region_map)
    assert not np.array_equal(first.image, other.image)


def test_levels_nest_and_objects_stand_before_a_background():
    for index in range(6):
        scene = plain_scene(0, index)
        assert scene.image.shape == (256, 256, 3)
        parts, objects = scene.level_map("part"), scene.level_map("object")
        assert np.array_equal(scene.region_map, parts)
        for part in np.unique(parts):
            assert len(np.unique(objects[parts == part])) == 1
        assert 1 <= len(scene.masks("object")) <= len(scene.masks("part"))
        background = scene.is_background[scene.region_map]
        assert 0.1 < background.mean() < 1
        assert scene.is_background[scene.object_of[scene.region_map[background]]].all()
