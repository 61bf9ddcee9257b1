"""Our generator against segment-anything's own, on the same weights, images and options."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.meta_generator import meta_masks, plain_nms
from benchmarks.pictures import generated, photographs
from benchmarks.sam_equality import OPTION_SETS, compare
from pipeline.errors import ConfigError, SemiresError
from pipeline.sam.attention import IN_ORDER, REASSOCIATED
from pipeline.sam.blobs import blob_scene
from pipeline.sam.decoder import decode_tokens, draw_masks, draw_masks_in_order
from pipeline.sam.difference import compare_masks
from pipeline.sam.generator import (
    REFERENCE,
    GeneratorOptions,
    _pack_above,
    _pack_on_device,
    generate_masks,
    masks_of_views,
    point_grid,
    prepare_views,
)
from pipeline.sam.models import SAM_MODELS
from pipeline.sam.networks import SegmentAnything
from pipeline.sam.packed import boxes_of, count_pixels, greedy_nms
from tests.pipeline.small_data import PHOTOS, needs_photos


def options_of(**changes):
    base = SAM_MODELS["vit_tiny_demo"].options.filled(REFERENCE)
    small = GeneratorOptions(points_per_side=5, points_per_batch=10).filled(base)
    return replace(small, **changes)


def with_points(name, changes):
    options = replace(OPTION_SETS[name], **changes)
    return options if options.point_grids else replace(options, points_per_side=5)


def assert_equal_to_the_original(sam, images, **changes):
    """Every image under one set of options; rounding may move single pixels and no mask."""
    masks, identical = 0, {"reference": 0, "fast": 0}
    for number, image in enumerate(images):
        name = list(OPTION_SETS)[number % len(OPTION_SETS)]
        differences = compare(sam, image, with_points(name, changes))
        masks += differences["reference"].num_expected
        for profile, difference in differences.items():
            assert difference.num_found == difference.num_expected, (name, profile)
            assert difference.matched_iou > 0.9999, (name, profile)
            identical[profile] += difference.identical
    print(f"identical masks of {masks}: {identical}")  # noqa: T201 - the report
    assert masks > 20
    assert min(identical.values()) >= 0.95 * masks


@pytest.mark.parametrize("count", [7, pytest.param(14, marks=pytest.mark.slow)])
def test_generated_images_under_all_options(sam, count):
    assert_equal_to_the_original(sam, generated(count))


def test_segment_anythings_own_classes_under_all_options(original_sam):
    # Random weights scatter each mask over the image; by their boxes all but one would go.
    together = {"box_nms_thresh": 1.0, "crop_nms_thresh": 1.0}
    assert_equal_to_the_original(original_sam, generated(7), **together)


@needs_photos
def test_photographs_under_all_options(sam):
    assert_equal_to_the_original(sam, photographs(PHOTOS / "images", 14))


@pytest.mark.parametrize("size", [(300, 40), (64, 128), (257, 255)])
def test_scores_boxes_and_points_equal_the_originals(random_sam, rng, size):
    image = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
    options = options_of(pred_iou_thresh=0.1, stability_score_thresh=0.1)
    expected = meta_masks(random_sam, image, options)
    found = generate_masks(SegmentAnything(random_sam), image, options)
    assert len(expected) > 0
    assert np.array_equal(found.bits, expected.bits)
    assert found.predicted_iou == pytest.approx(expected.predicted_iou, abs=1e-5)
    assert found.stability_score == pytest.approx(expected.stability_score, abs=1e-6)
    assert np.array_equal(found.point, expected.point)
    assert np.array_equal(found.box, expected.box)
    assert np.array_equal(found.area, expected.area)


def test_crops_without_a_mask_are_a_result(random_sam):
    image = np.zeros((50, 70, 3), np.uint8)
    options = options_of(pred_iou_thresh=1.0, crop_n_layers=1)
    assert len(generate_masks(SegmentAnything(random_sam), image, options)) == 0


def test_crops_of_a_tiny_image(sam):
    image = np.full((2, 3, 3), 90, np.uint8)
    options = options_of(pred_iou_thresh=0.0, stability_score_thresh=0.0, crop_n_layers=2)
    assert generate_masks(SegmentAnything(sam), image, options).masks.shape[1:] == (2, 3)


def test_images_encoded_together_give_what_each_gives_alone(sam):
    network = SegmentAnything(sam)
    images = [blob_scene(5, index).image[:, : 256 - 40 * index] for index in range(3)]
    options = options_of(images_per_batch=2, crop_n_layers=1)
    views = [prepare_views(network, image, options) for image in images]
    for image, found in zip(images, masks_of_views(network, views, options), strict=True):
        alone = generate_masks(network, image, options)
        assert np.array_equal(found.bits, alone.bits)
        assert found.predicted_iou == pytest.approx(alone.predicted_iou, abs=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler's own making
def test_a_compiled_encoder_finds_the_same(sam):
    image = blob_scene(5, 3).image
    eager = generate_masks(SegmentAnything(sam, "fast"), image, options_of())
    network = SegmentAnything(sam, "fast", compile_encoder=True)
    compiled = generate_masks(network, image, options_of())
    difference = compare_masks(eager, compiled)
    assert difference.num_expected == difference.num_found > 3
    assert difference.matched_iou > 0.999


def test_half_precision_finds_nearly_the_same(sam):
    image = blob_scene(5, 3).image
    exact = generate_masks(SegmentAnything(sam), image, options_of())
    half = generate_masks(SegmentAnything(sam, "fast", half=True), image, options_of())
    difference = compare_masks(exact, half)
    assert 0.5 < difference.matched_iou < 1.0
    assert half.predicted_iou.dtype == np.float32


@pytest.mark.parametrize("name", ["crop_n_layers", "min_mask_region_area"])
def test_no_crops_and_no_small_regions_by_default(name):
    assert getattr(REFERENCE, name) == 0


def test_grids_must_fit_the_layers(sam):
    options = options_of(points_per_side=None, point_grids=(((0.5, 0.5),),), crop_n_layers=1)
    with pytest.raises(ConfigError, match="a grid per crop layer, 2, got 1"):
        generate_masks(SegmentAnything(sam), np.zeros((9, 9, 3), np.uint8), options)


@pytest.mark.parametrize(
    ("grids", "message"),
    [
        ((), "at least one point"),
        (((),), "at least one point"),
        ((((0.5, 2.0),),), "in \\[0, 1\\]"),
    ],
)
def test_unusable_grids_are_refused(grids, message):
    with pytest.raises(ConfigError, match=message):
        GeneratorOptions(point_grids=grids)


def test_a_grid_beside_points_per_side_is_refused():
    with pytest.raises(ConfigError, match="got both"):
        GeneratorOptions(point_grids=(((0.5, 0.5),),), points_per_side=3)


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (3, 9)])
def test_tiny_images_give_columns_of_their_size(sam, size):
    image = np.full((*size, 3), 90, np.uint8)
    options = options_of(pred_iou_thresh=0.0, stability_score_thresh=0.0)
    masks = generate_masks(SegmentAnything(sam), image, options)
    assert len(masks) > 0
    assert masks.masks.shape[1:] == size
    assert np.array_equal(masks.area, masks.masks.sum((1, 2)))
    assert np.all(masks.box[:, 2:] <= [size[1], size[0]])


def test_no_mask_is_a_result(random_sam):
    image = np.zeros((50, 70, 3), np.uint8)
    masks = generate_masks(SegmentAnything(random_sam), image, options_of(pred_iou_thresh=1.0))
    assert masks.masks.shape == (0, 50, 70)
    assert masks.box.shape == (0, 4)
    assert masks.point.shape == (0, 2)
    assert (masks.box.dtype, masks.area.dtype) == (np.int32, np.int32)
    assert masks.num_dropped == 0


def test_cap_keeps_the_best_and_counts_the_rest(sam):
    image = blob_scene(5, 3).image
    every = generate_masks(SegmentAnything(sam), image, options_of())
    assert len(every.masks) > 3
    few = generate_masks(SegmentAnything(sam), image, options_of(max_candidates=3))
    assert np.array_equal(few.masks, every.masks[:3])
    assert few.num_dropped == len(every.masks) - 3
    assert np.all(np.diff(every.predicted_iou) <= 0)


def test_batch_size_does_not_change_the_masks(sam):
    image = blob_scene(5, 4).image
    one = generate_masks(SegmentAnything(sam), image, options_of(points_per_batch=25))
    other = generate_masks(SegmentAnything(sam), image, options_of(points_per_batch=5))
    assert np.array_equal(one.masks, other.masks)


@pytest.mark.parametrize(
    ("attention", "draw"), [(IN_ORDER, draw_masks_in_order), (REASSOCIATED, draw_masks)]
)
@pytest.mark.parametrize("kind", ["small", "original"])
def test_decoder_equals_segment_anythings(random_sam, original_sam, attention, draw, kind):
    torch.manual_seed(3)
    sam = random_sam if kind == "small" else original_sam
    side = sam.image_encoder.img_size
    embedding = sam.image_encoder(torch.randn(1, 3, side, side))
    points = (torch.rand(5, 1, 2) * side, torch.ones(5, 1))
    sparse, dense = sam.prompt_encoder(points=points, boxes=None, masks=None)
    pe = sam.prompt_encoder.get_dense_pe()
    logits, iou = sam.mask_decoder(embedding, pe, sparse, dense, multimask_output=True)
    our_iou, rows, pixels = decode_tokens(sam, embedding, sparse, attention)
    torch.testing.assert_close(our_iou, iou, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(draw(sam, embedding, rows, pixels), logits, atol=1e-4, rtol=1e-4)
    assert logits.std() > 0.01


@pytest.mark.parametrize("module", ["image_encoder", "mask_decoder"])
def test_broken_weights_are_named(random_sam, module):
    part = getattr(random_sam, module)
    weight = next(part.parameters())
    saved = weight.detach().clone()
    try:
        weight.data.fill_(float("nan"))
        with pytest.raises(SemiresError, match="not finite, the checkpoint is damaged"):
            generate_masks(
                SegmentAnything(random_sam), np.zeros((20, 20, 3), np.uint8), options_of()
            )
    finally:
        weight.data.copy_(saved)


def test_image_of_another_kind_is_refused(random_sam):
    with pytest.raises(ValueError, match=r"expected an image \(H, W, 3\) of uint8"):
        generate_masks(SegmentAnything(random_sam), np.zeros((20, 20), np.uint8), options_of())


def test_grid_by_hand():
    grid = point_grid(2, height=4, width=8)
    assert grid.tolist() == [[2, 1], [6, 1], [2, 3], [6, 3]]
    assert grid.dtype == np.float64


def test_packed_masks_by_hand():
    logits = torch.full((2, 3, 11), -1.0)
    logits[0, 1, 2:10] = 1.0
    logits[1, 0, 10] = 0.5
    bits = _pack_above(logits, 0.0)
    assert count_pixels(bits).tolist() == [8, 1]
    assert boxes_of(bits, 11).tolist() == [[2, 1, 10, 2], [10, 0, 11, 1]]
    assert boxes_of(np.zeros((1, 3, 2), np.uint8), 11).tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("width", [1, 8, 13])
def test_packing_on_a_device_equals_numpys(rng, width):
    above = rng.random((3, 4, width)) < 0.5
    packed = _pack_on_device(torch.from_numpy(above))
    assert packed.dtype == torch.uint8
    assert np.array_equal(packed.numpy(), np.packbits(above, axis=-1))


def test_nms_equals_the_slow_one(rng):
    low = rng.integers(0, 30, (80, 2))
    box = np.concatenate([low, low + rng.integers(0, 20, (80, 2))], 1).astype(np.float32)
    score = rng.integers(0, 10, 80).astype(np.float32)
    for thresh in (0.3, 0.5, 0.8):
        slow = plain_nms(torch.from_numpy(box), torch.from_numpy(score), None, thresh)
        assert greedy_nms(box, score, thresh).tolist() == slow.tolist()
    assert greedy_nms(box[:0], score[:0], 0.5).tolist() == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("points_per_side", 0),
        ("pred_iou_thresh", 1.5),
        ("stability_score_offset", 0.0),
        ("max_candidates", 0),
        ("crop_n_layers", -1),
        ("crop_overlap_ratio", 1.0),
        ("crop_n_points_downscale_factor", 0),
        ("min_mask_region_area", -1),
        ("images_per_batch", 0),
        ("profile", "quick"),
    ],
)
def test_options_outside_their_range_are_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        GeneratorOptions(**{field: value})


def test_none_takes_the_default():
    filled = GeneratorOptions(points_per_side=5).filled(REFERENCE)
    assert filled.points_per_side == 5
    assert filled.pred_iou_thresh == 0.88
    assert filled.max_candidates is None
