import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import ConfigError
from train.augment import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    AugmentConfig,
    draw_flip,
    flip_columns,
    normalize,
    resize_image,
    resize_mask,
    shift_hue,
    strong_pixels,
    strong_view,
    swap_sides,
    weak_pixels,
    weak_view,
)

STILL = AugmentConfig(blur_probability=0, jitter_probability=0)
ALWAYS = AugmentConfig(blur_probability=1, jitter_probability=1, flip_probability=1)


def draw_image(seed=0, height=40, width=60):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_normalize_by_hand():
    image = np.full((1, 1, 3), 255, np.uint8)
    expected = [(1 - m) / s for m, s in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)]
    assert normalize(image)[:, 0, 0] == pytest.approx(expected, rel=1e-5)
    assert normalize(image).dtype == np.float32


def test_views_are_normalised_exactly_once():
    image = draw_image()
    expected = normalize(resize_image(image, 16))
    for view in (weak_view, strong_view):
        assert np.array_equal(view(image, 16, np.random.default_rng(0), STILL), expected)


def test_same_generator_same_view_and_the_input_is_left_alone():
    image = draw_image()
    copy = image.copy()
    for view in (weak_view, strong_view):
        one, two = (view(image, 16, np.random.default_rng(7), ALWAYS) for _ in range(2))
        assert np.array_equal(one, two)
        assert not np.array_equal(one, view(image, 16, np.random.default_rng(7), STILL))
        assert (one.shape, one.dtype) == ((3, 16, 16), np.float32)
    assert np.array_equal(image, copy)


def test_colours_keep_within_the_strengths():
    gray = np.full((8, 8, 3), 100, np.uint8)
    config = dataclasses.replace(ALWAYS, blur_probability=0)
    for seed in range(20):
        changed = strong_pixels(gray, np.random.default_rng(seed), config)
        assert 74 <= changed.min() <= changed.max() <= 126  # only brightness moves a flat gray


def test_hue_turns_red_into_green_and_back():
    red = Image.new("RGB", (1, 1), (255, 0, 0))
    green = shift_hue(red, 1 / 3)
    assert green.getpixel((0, 0))[1] > 250
    assert np.abs(np.subtract(shift_hue(green, -1 / 3).getpixel((0, 0)), (255, 0, 0))).max() <= 6
    assert shift_hue(red, 1.0).getpixel((0, 0)) == (255, 0, 0)


def test_blur_keeps_a_flat_image():
    flat = np.full((20, 20, 3), 9, np.uint8)
    config = dataclasses.replace(STILL, blur_probability=1)
    assert np.array_equal(weak_pixels(flat, 20, np.random.default_rng(0), config), flat)


def test_image_is_antialiased_and_a_mask_gets_no_new_value():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    small = resize_image(stripes, 8)[2:-2, 2:-2]
    assert 90 <= small.min() <= small.max() <= 110
    mask = np.random.default_rng(0).choice(np.array([0, 1, 255], np.uint8), (33, 47))
    assert set(np.unique(resize_mask(mask, 16))) <= {0, 1, 255}
    assert resize_mask(np.array([[0, 1], [1, 0]], np.uint8), 4)[0].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("sentence", "swapped"),
    [
        ("left cat", "right cat"),
        ("second from the right", "second from the left"),
        ("Leftmost, not rightmost", "Rightmost, not leftmost"),
        ("LEFT of the bright kite", "RIGHT of the bright kite"),
        ("right-hand side, cleft", "left-hand side, cleft"),
    ],
)
def test_flip_swaps_the_sides(sentence, swapped):
    assert swap_sides(sentence) == swapped


@given(st.text(alphabet="leftrigh mos-LR", max_size=30))
def test_swapping_sides_twice_gives_the_sentence_back(sentence):
    once = swap_sides(sentence)
    if not any(word in sentence.lower() for word in ("leftright", "rightleft")):
        assert swap_sides(once).lower() == sentence.lower()


def test_flip_is_off_by_default_and_an_involution():
    rng = np.random.default_rng(0)
    assert not any(draw_flip(rng, AugmentConfig()) for _ in range(50))
    assert draw_flip(rng, ALWAYS)
    image = draw_image()
    assert np.array_equal(flip_columns(flip_columns(image)), image)
    assert np.array_equal(flip_columns(image[..., 0]), image[:, ::-1, 0])


@pytest.mark.parametrize(
    "values", [{"blur_probability": 1.5}, {"hue": 0.6}, {"blur_radius": -1}, {"contrast": -0.1}]
)
def test_bad_values_are_refused(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        AugmentConfig(**values)
