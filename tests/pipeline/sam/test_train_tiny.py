import numpy as np
import pytest
import torch

from pipeline.sam.blobs import blob_scene
from pipeline.sam.calibrate_tiny import (
    _FACTORS,
    Measured,
    fit_factor,
    fit_line,
    fold,
    sharpen,
    stability_at,
)
from pipeline.sam.evaluate_tiny import best_iou
from pipeline.sam.tiny import build_vit_tiny_demo, load_vit_tiny_demo
from pipeline.sam.tiny_batches import ScenePool, make_batch
from pipeline.sam.tiny_losses import loss_of, mask_iou
from pipeline.sam.train_tiny import Trainer, TrainOptions, encode, predict


@pytest.fixture
def batch(rng):
    return make_batch(rng, [blob_scene(0, 1)], 2, augment=False)


def test_two_steps_on_one_batch_lower_the_loss(batch):
    trainer = Trainer.create(TrainOptions(encoder_share=0.0, warm_up=1, lr=3e-4))
    losses = [trainer.update(batch) for _ in range(4)]
    assert losses[-1] < losses[0]
    assert trainer.step == 4


def test_stop_and_resume_equals_an_uninterrupted_run(batch, tmp_path):
    options = TrainOptions(encoder_share=0.0)
    straight = Trainer.create(options)
    torch.manual_seed(1)
    straight.update(batch)
    straight.save(tmp_path)
    torch.manual_seed(2)
    expected = straight.update(batch)
    resumed = Trainer.create(options)
    resumed.load(tmp_path / "checkpoint.pt")
    torch.manual_seed(2)
    assert resumed.update(batch) == expected
    for one, other in zip(
        straight.averaged.parameters(), resumed.averaged.parameters(), strict=True
    ):
        assert torch.equal(one, other)


def test_saved_weights_are_the_average(batch, tmp_path):
    trainer = Trainer.create(TrainOptions())
    trainer.update(batch)
    trainer.save(tmp_path)
    loaded = load_vit_tiny_demo(tmp_path / "vit_tiny_demo.safetensors")
    for one, other in zip(loaded.parameters(), trainer.averaged.parameters(), strict=True):
        assert torch.equal(one, other)


def test_encoder_alone_is_trained_first(batch):
    trainer = Trainer.create(TrainOptions(encoder_share=0.5))
    before = trainer.sam.mask_decoder.mask_tokens.weight.detach().clone()
    trainer.update(batch)
    assert torch.equal(trainer.sam.mask_decoder.mask_tokens.weight, before)
    trainer.seconds = 60 * trainer.options.minutes * 0.6
    trainer.update(batch)
    assert not torch.equal(trainer.sam.mask_decoder.mask_tokens.weight, before)


def test_learning_rate_rises_then_falls():
    trainer = Trainer.create(TrainOptions(lr=1.0, warm_up=10, minutes=1.0))
    assert trainer.learning_rate() == pytest.approx(0.1)
    trainer.step = 9
    assert trainer.learning_rate() == pytest.approx(1.0)
    trainer.seconds = 60.0
    assert trainer.learning_rate() == pytest.approx(0.02)


def test_mask_iou_by_hand():
    logits = torch.tensor([[[1.0, 1.0], [-1.0, -1.0]]])
    target = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    assert mask_iou(logits, target).tolist() == pytest.approx([1 / 3])
    assert mask_iou(-torch.ones(1, 2, 2), torch.zeros(1, 2, 2)).tolist() == [0.0]


def test_loss_of_a_perfect_mask_is_nearly_nothing():
    target = torch.zeros(1, 3, 16, 16)
    target[:, :, 4:9, 4:9] = 1
    perfect, wrong = (target - 0.5) * 60, (0.5 - target) * 60
    for balance in (0.0, 1.0):
        assert float(loss_of(perfect, torch.ones(1, 3), target, balance)) < 1e-3
        assert float(loss_of(wrong, torch.zeros(1, 3), target, balance)) > 1


def test_pool_is_a_ring_of_the_newest():
    pool = ScenePool(seed=0, size=2)
    pool.refill(3)
    assert pool.drawn == 3
    assert np.array_equal(pool.scenes[0].image, blob_scene(0, 2).image)
    assert np.array_equal(pool.scenes[1].image, blob_scene(0, 1).image)


def test_calibration_takes_quantiles_to_quantiles(rng):
    predicted = rng.uniform(0.2, 0.6, (500, 3))
    slope, intercept = fit_line(predicted, 2 * predicted - 0.3)
    assert slope == pytest.approx([2, 2, 2])
    assert intercept == pytest.approx([-0.3, -0.3, -0.3])


def test_calibration_is_folded_into_the_head(batch):
    torch.manual_seed(0)
    sam = build_vit_tiny_demo()
    with torch.inference_mode():
        logits, before = predict(sam, batch, encode(sam, batch))
        fold(sam, np.asarray([2.0, 1.0, 0.5]), np.asarray([0.1, 0.0, -0.2]))
        same, after = predict(sam, batch, encode(sam, batch))
    assert torch.equal(logits, same)
    expected = before * torch.tensor([2.0, 1.0, 0.5]) + torch.tensor([0.1, 0.0, -0.2])
    torch.testing.assert_close(after, expected)


def test_sharpening_scales_the_logits_alone(batch):
    torch.manual_seed(0)
    sam = build_vit_tiny_demo()
    with torch.inference_mode():
        before, iou = predict(sam, batch, encode(sam, batch))
        sharpen(sam, 3.0)
        after, same = predict(sam, batch, encode(sam, batch))
    torch.testing.assert_close(after, before * 3)
    assert torch.equal(iou, same)


def test_factor_makes_good_masks_stable():
    ramp = torch.linspace(-5, 5, 1000).reshape(1, 1, 10, 100).expand(1, 3, 10, 100)
    stability = stability_at(ramp, _FACTORS).numpy()
    real = np.asarray([[0.9, 0.1, 0.9]])
    factor = fit_factor(Measured(real, real, stability))
    # (5 - 1/f) / (5 + 1/f) = 0.9 at f = 3.8
    assert factor == pytest.approx(3.8, rel=0.2)
    assert fit_factor(Measured(real, real * 0, stability)) == 1.0


def test_best_iou_by_hand():
    truth = np.asarray([[[1, 1, 0, 0]], [[0, 0, 0, 1]]], np.bool_)
    masks = np.asarray([[[1, 0, 0, 0]], [[1, 1, 1, 0]]], np.bool_)
    assert best_iou(truth, masks).tolist() == pytest.approx([2 / 3, 0])
    assert best_iou(truth, masks[:0]).tolist() == [0, 0]
