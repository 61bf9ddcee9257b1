"""Sprites by hand."""

import numpy as np
import pytest

from pipeline.scenes.canvas import SAMPLES, Pose, box, rasterise, ring
from pipeline.scenes.objects import CATEGORIES
from pipeline.scenes.palette import COLOURS

STILL = Pose(scale=20.0, mirror=False, lean=0.0)


def draw(shapes, pose=STILL):
    return rasterise(shapes, pose, 1, np.random.default_rng(0))


def test_square_covers_its_pixels_and_stands_on_its_ground():
    sprite = draw([box("wall", (200, 100, 50), (0.0, 0.0, 1.0, 1.0))])
    rows, columns = np.nonzero(sprite.part)
    assert sprite.names == ("wall",)
    assert 400 <= len(rows) <= 441
    assert (columns.min() + sprite.left, rows.max() + sprite.top) in {(0, 0), (0, -1)}
    assert sprite.coverage.max() == SAMPLES * SAMPLES
    colour = sprite.colour[sprite.coverage == SAMPLES * SAMPLES] / SAMPLES**2
    np.testing.assert_allclose(colour.mean(axis=0), (200, 100, 50), atol=12)


def test_later_shapes_hide_earlier_ones():
    lower = box("lower", (200, 0, 0), (0.0, 0.0, 1.0, 1.0))
    upper = box("upper", (0, 0, 200), (0.0, 0.0, 1.0, 0.5))
    sprite = draw([lower, upper])
    counts = np.bincount(sprite.part.ravel(), minlength=3)
    assert counts[1] == pytest.approx(200, abs=25)
    assert counts[2] == pytest.approx(210, abs=25)


def test_ring_has_a_hole():
    sprite = draw([ring("wheel", (0, 0, 0), (0.0, 0.5), 0.5, 0.3)])
    assert sprite.part[-10 - sprite.top, -sprite.left] == 0
    assert np.count_nonzero(sprite.part) == pytest.approx(np.pi * (100 - 36), rel=0.15)


def test_mirrored_sprite_is_on_the_other_side():
    shape = [box("wall", (200, 100, 50), (0.0, 0.0, 1.0, 1.0))]
    mirrored = draw(shape, Pose(scale=20.0, mirror=True, lean=0.0))
    columns = np.nonzero(mirrored.part)[1] + mirrored.left
    assert columns.max() <= 0


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_category_is_about_one_unit_high_and_has_parts(category):
    kind = CATEGORIES[category]
    for seed in range(4):
        rng = np.random.default_rng(seed)
        shapes = kind.build(rng, COLOURS[kind.colours[0]])
        highest = max(y for shape in shapes for _, y in shape.points)
        lowest = min(y for shape in shapes for _, y in shape.points)
        assert (0.4 if category == "bird" else 0.8) < highest - max(lowest, 0) <= 1.1
        assert lowest > -0.1
        assert len({shape.part for shape in shapes}) >= 2
        assert len({shape.colour for shape in shapes}) >= 2


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_category_has_known_colours_and_nouns(category):
    kind = CATEGORIES[category]
    assert set(kind.colours) <= set(COLOURS)
    assert kind.nouns
    assert kind.metres > 0
