import numpy as np
import pytest
import segment_anything.automatic_mask_generator as amg
import torch

from pipeline.errors import ConfigError, SemiresError
from pipeline.sam.blobs import blob_scene
from pipeline.sam.decoder import decode_tokens, draw_masks
from pipeline.sam.generator import REFERENCE, GeneratorOptions, generate_masks, point_grid
from pipeline.sam.models import SAM_MODELS
from pipeline.sam.packed import boxes_of, count_pixels, greedy_nms, pack_above


def slow_nms(box, score, _, iou_threshold):
    """Plain greedy NMS in torch, one box at a time, as torchvision defines it."""
    area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
    kept = []
    for i in torch.argsort(score, descending=True, stable=True).tolist():
        for j in kept:
            low = torch.maximum(box[i, :2], box[j, :2])
            high = torch.minimum(box[i, 2:], box[j, 2:])
            inter = (high - low).clamp(min=0).prod()
            if float(inter / (area[i] + area[j] - inter)) > iou_threshold:
                break
        else:
            kept.append(i)
    return torch.tensor(kept, dtype=torch.int64)


def reference(sam, image, options, monkeypatch):
    """Masks of segment-anything's own generator."""
    monkeypatch.setattr(amg, "batched_nms", slow_nms)
    return amg.SamAutomaticMaskGenerator(
        sam,
        points_per_side=options.points_per_side,
        points_per_batch=options.points_per_batch,
        pred_iou_thresh=options.pred_iou_thresh,
        stability_score_thresh=options.stability_score_thresh,
        stability_score_offset=options.stability_score_offset,
        box_nms_thresh=options.box_nms_thresh,
    ).generate(image)


def assert_same(masks, expected):
    assert len(masks.masks) == len(expected)
    for row, record in enumerate(expected):
        assert np.array_equal(masks.masks[row], record["segmentation"])
        assert masks.predicted_iou[row] == pytest.approx(record["predicted_iou"], abs=1e-5)
        assert masks.stability_score[row] == pytest.approx(record["stability_score"], abs=1e-6)
        assert masks.area[row] == record["area"]
        x, y, width, height = record["bbox"]
        assert masks.box[row].tolist() == [x, y, x + width + 1, y + height + 1]
        assert masks.point[row].tolist() == pytest.approx(record["point_coords"][0])


def assert_same_up_to_rounding(masks, expected):
    """The fast decoder sums in another order: a logit within rounding of a cut-off may cross it."""
    assert len(masks.masks) == len(expected)
    for row, record in enumerate(expected):
        union = (masks.masks[row] | record["segmentation"]).sum()
        assert (masks.masks[row] ^ record["segmentation"]).sum() <= 0.001 * union
        assert masks.predicted_iou[row] == pytest.approx(record["predicted_iou"], abs=1e-5)
        assert masks.stability_score[row] == pytest.approx(record["stability_score"], abs=1e-3)
        assert masks.point[row].tolist() == pytest.approx(record["point_coords"][0])


def options_of(**changes):
    base = SAM_MODELS["vit_tiny_demo"].options.filled(REFERENCE)
    small = GeneratorOptions(points_per_side=5, points_per_batch=10).filled(base)
    return GeneratorOptions(**changes).filled(small)


@pytest.mark.parametrize("profile", ["reference", "fast"])
@pytest.mark.parametrize(
    ("pred_iou_thresh", "stability_score_thresh", "box_nms_thresh"),
    [(0.5, 0.5, 0.7), (0.7, 0.8, 0.9), (0.3, 0.0, 0.5)],
)
def test_equal_to_segment_anything(
    sam, monkeypatch, profile, pred_iou_thresh, stability_score_thresh, box_nms_thresh
):
    options = options_of(
        profile=profile,
        pred_iou_thresh=pred_iou_thresh,
        stability_score_thresh=stability_score_thresh,
        box_nms_thresh=box_nms_thresh,
    )
    image = blob_scene(5, int(10 * pred_iou_thresh)).image
    expected = reference(sam, image, options, monkeypatch)
    expected = [record for record in expected if record["area"]]
    found = generate_masks(sam, image, options)
    (assert_same if profile == "reference" else assert_same_up_to_rounding)(found, expected)
    assert len(expected) > 2


@pytest.mark.parametrize("size", [(300, 40), (64, 128), (257, 255)])
def test_equal_to_segment_anything_at_odd_sizes(random_sam, monkeypatch, rng, size):
    image = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
    options = options_of(pred_iou_thresh=0.1, stability_score_thresh=0.1, profile="reference")
    expected = reference(random_sam, image, options, monkeypatch)
    assert len(expected) > 0
    assert_same(generate_masks(random_sam, image, options), expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (3, 9)])
def test_tiny_images_give_columns_of_their_size(sam, size):
    image = np.full((*size, 3), 90, np.uint8)
    masks = generate_masks(sam, image, options_of(pred_iou_thresh=0.0, stability_score_thresh=0.0))
    assert masks.masks.shape[1:] == size
    assert np.all(masks.masks.any((1, 2)))
    assert np.all(masks.box[:, 2:] <= [size[1], size[0]])


def test_no_mask_is_a_result(random_sam):
    image = np.zeros((50, 70, 3), np.uint8)
    masks = generate_masks(random_sam, image, options_of(pred_iou_thresh=1.0))
    assert masks.masks.shape == (0, 50, 70)
    assert masks.box.shape == (0, 4)
    assert masks.point.shape == (0, 2)
    assert (masks.box.dtype, masks.area.dtype) == (np.int32, np.int32)
    assert masks.num_dropped == 0


def test_cap_keeps_the_best_and_counts_the_rest(sam):
    image = blob_scene(5, 3).image
    every = generate_masks(sam, image, options_of())
    assert len(every.masks) > 3
    few = generate_masks(sam, image, options_of(max_candidates=3))
    assert np.array_equal(few.masks, every.masks[:3])
    assert few.num_dropped == len(every.masks) - 3
    assert np.all(np.diff(every.predicted_iou) <= 0)


def test_batch_size_does_not_change_the_masks(sam):
    image = blob_scene(5, 4).image
    one = generate_masks(sam, image, options_of(points_per_batch=25))
    other = generate_masks(sam, image, options_of(points_per_batch=5))
    assert np.array_equal(one.masks, other.masks)


def test_fast_decoder_equals_segment_anythings(random_sam):
    torch.manual_seed(3)
    embedding = random_sam.image_encoder(torch.randn(1, 3, 256, 256))
    points = (torch.rand(5, 1, 2) * 256, torch.ones(5, 1))
    sparse, dense = random_sam.prompt_encoder(points=points, boxes=None, masks=None)
    pe = random_sam.prompt_encoder.get_dense_pe()
    logits, iou = random_sam.mask_decoder(embedding, pe, sparse, dense, multimask_output=True)
    our_iou, rows, pixels = decode_tokens(random_sam, embedding, sparse)
    torch.testing.assert_close(our_iou, iou, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        draw_masks(random_sam, embedding, rows, pixels), logits, atol=1e-4, rtol=1e-4
    )
    assert logits.std() > 0.01


@pytest.mark.parametrize("module", ["image_encoder", "mask_decoder"])
def test_broken_weights_are_named(random_sam, module):
    part = getattr(random_sam, module)
    weight = next(part.parameters())
    saved = weight.detach().clone()
    try:
        weight.data.fill_(float("nan"))
        with pytest.raises(SemiresError, match="not finite, the checkpoint is damaged"):
            generate_masks(random_sam, np.zeros((20, 20, 3), np.uint8), options_of())
    finally:
        weight.data.copy_(saved)


def test_image_of_another_kind_is_refused(random_sam):
    with pytest.raises(ValueError, match=r"expected an image \(H, W, 3\) of uint8"):
        generate_masks(random_sam, np.zeros((20, 20), np.uint8), options_of())


def test_grid_by_hand():
    grid = point_grid(2, height=4, width=8)
    assert grid.tolist() == [[2, 1], [6, 1], [2, 3], [6, 3]]
    assert grid.dtype == np.float64


def test_packed_masks_by_hand():
    logits = torch.full((2, 3, 11), -1.0)
    logits[0, 1, 2:10] = 1.0
    logits[1, 0, 10] = 0.5
    bits = pack_above(logits, 0.0)
    assert count_pixels(bits).tolist() == [8, 1]
    assert boxes_of(bits, 11).tolist() == [[2, 1, 10, 2], [10, 0, 11, 1]]


def test_nms_equals_the_slow_one(rng):
    low = rng.integers(0, 30, (80, 2))
    box = np.concatenate([low, low + rng.integers(0, 20, (80, 2))], 1).astype(np.float32)
    score = rng.integers(0, 10, 80).astype(np.float32)
    for thresh in (0.3, 0.5, 0.8):
        slow = slow_nms(torch.from_numpy(box), torch.from_numpy(score), None, thresh)
        assert greedy_nms(box, score, thresh).tolist() == slow.tolist()
    assert greedy_nms(box[:0], score[:0], 0.5).tolist() == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("points_per_side", 0),
        ("pred_iou_thresh", 1.5),
        ("stability_score_offset", 0.0),
        ("max_candidates", 0),
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
