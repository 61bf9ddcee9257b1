"""Masks with moved edges, near duplicates, and the entry that puts both kinds together."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.sam.evaluate_tiny import best_iou, generated_scenes
from pipeline.sam.models import SAM_MODELS
from pipeline.sam.options import GeneratorOptions
from pipeline.sam.region_merging import small_regions_of
from pipeline.sam.snapping import snap_to_regions, without_duplicates


def unpacked(bits, width):
    return np.unpackbits(bits, axis=2, count=width).view(np.bool_)


@st.composite
def masks_and_regions(draw):
    height, width = draw(st.integers(1, 7)), draw(st.integers(1, 11))
    masks = draw(arrays(np.bool_, (draw(st.integers(0, 20)), height, width)))
    regions = draw(arrays(np.int64, (height, width), elements=st.integers(0, 5)))
    return masks, regions


@given(masks_and_regions())
@settings(max_examples=200)
def test_a_mask_takes_what_it_covers_by_more_than_half(given_):
    masks, regions = given_
    found = unpacked(snap_to_regions(np.packbits(masks, axis=2), regions), masks.shape[2])
    for mask, snapped in zip(masks, found, strict=True):
        taken = [
            r for r in np.unique(regions) if 2 * mask[regions == r].sum() > (regions == r).sum()
        ]
        expected = np.isin(regions, taken) if taken else mask
        assert np.array_equal(snapped, expected)


@given(masks_and_regions(), st.floats(0.1, 1.0))
@settings(max_examples=200)
def test_no_two_masks_kept_are_too_much_alike(given_, max_iou):
    masks, _ = given_
    kept = without_duplicates(np.packbits(masks, axis=2), max_iou).tolist()
    expected = []
    for row, mask in enumerate(masks):
        ious = [(mask & masks[k]).sum() / (mask | masks[k]).sum() for k in expected if mask.any()]
        if mask.any() and all(iou <= max_iou for iou in ious):
            expected.append(row)
    assert kept == expected


def test_small_regions_have_the_size_of_the_image():
    image = np.zeros((1500, 60, 3), np.uint8)  # longer than what is segmented at once
    image[700:] = 200
    regions = small_regions_of(image)
    assert regions.shape == (1500, 60)
    assert regions[0, 0] != regions[-1, 0]


@pytest.fixture(scope="module")
def options():
    return SAM_MODELS["vit_tiny_regions"].options_with(GeneratorOptions(max_candidates=150))


def test_better_than_either_alone(options):
    entries = [SAM_MODELS[n] for n in ("vit_tiny_regions", "vit_tiny_demo", "region_merging")]
    networks = [entry.load(None, "cpu", options) for entry in entries]
    objects, parts = np.zeros((2, 3))
    for scene in generated_scenes(6):
        for row, (entry, network) in enumerate(zip(entries, networks, strict=True)):
            masks = entry.masks_of(network, scene.image, options).masks
            objects[row] += best_iou(scene.objects, masks).mean() / 6
            parts[row] += best_iou(scene.parts, masks).mean() / 6
    assert objects[0] > objects[1:].max() + 0.03
    assert parts[0] > parts[1] + 0.1


def test_masks_are_distinct_capped_and_counted(options):
    entry = SAM_MODELS["vit_tiny_regions"]
    network = entry.load(None, "cpu", options)
    image = next(generated_scenes(1)).image
    every = entry.masks_of(network, image, options)
    few_options = GeneratorOptions(max_candidates=20).filled(options)
    few = entry.masks_of(network, image, few_options)
    assert len(few) == 20
    assert np.array_equal(few.bits, every.bits[:20])
    assert few.num_dropped > every.num_dropped
    kept = without_duplicates(every.bits, 0.9)
    assert len(kept) == len(every)
    assert np.all(every.area > 0)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 7)])
def test_images_with_nothing_to_find(options, size):
    entry = SAM_MODELS["vit_tiny_regions"]
    network = entry.load(None, "cpu", options)
    found = entry.masks_of(network, np.full((*size, 3), 77, np.uint8), options)
    assert found.masks.shape[1:] == size
    assert np.all(found.area > 0)


def test_weights_and_version_name_the_entry():
    names = ("vit_tiny_regions", "vit_tiny_demo", "region_merging")
    assert len({SAM_MODELS[name].sha256(None) for name in names}) == 3
