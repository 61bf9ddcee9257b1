import numpy as np
import pytest
import torch

from pipeline.sam.calibrate_tiny import (
    _FACTORS,
    Measured,
    fit_factor,
    sharpen,
    stability_at,
)
from pipeline.sam.evaluate_tiny import best_iou
from pipeline.sam.tiny import CENTRES, DETAIL, build_vit_tiny_demo, load_vit_tiny_demo
from pipeline.sam.tiny_batches import PicturePool, make_batch, training_picture
from pipeline.sam.tiny_losses import centre_loss, loss_of, mask_iou
from pipeline.sam.train_tiny import Trainer, TrainOptions, encode, predict


@pytest.fixture
def batch(rng):
    return make_batch(rng, [training_picture(0, 1), training_picture(0, 4)], 2, augment=False)


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
    trainer.step = trainer.options.steps * 6 // 10
    trainer.update(batch)
    assert not torch.equal(trainer.sam.mask_decoder.mask_tokens.weight, before)


def test_the_iou_head_of_the_average_is_trained_last(batch):
    trainer = Trainer.create(TrainOptions(steps=10, head_share=0.5))
    trainer.step = 5
    before = {name: value.clone() for name, value in trainer.averaged.state_dict().items()}
    trainer.update(batch)
    moved = {
        name
        for name, value in trainer.averaged.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert moved
    assert all(name.startswith("mask_decoder.iou_prediction_head") for name in moved)


def test_learning_rate_rises_then_falls():
    trainer = Trainer.create(TrainOptions(lr=1.0, warm_up=10, steps=1000))
    assert trainer.learning_rate() == pytest.approx(0.1)
    trainer.step = 9
    assert trainer.learning_rate() == pytest.approx(1.0, abs=1e-3)
    trainer.step = 1000
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
    pool = PicturePool(seed=0, size=2)
    pool.refill(3)
    assert pool.drawn == 3
    assert np.array_equal(pool.pictures[0].image, training_picture(0, 2).image)
    assert np.array_equal(pool.pictures[1].image, training_picture(0, 1).image)


def test_centres_by_hand(batch):
    """A model that knows every middle has no loss; one that points at itself has some."""
    sam = build_vit_tiny_demo()
    told = torch.zeros(len(batch.segment), 3, 3, 128, 128)
    y, x = torch.meshgrid(*[(torch.arange(64) + 0.5) / 32 - 1] * 2, indexing="ij")
    for row, levels in enumerate(batch.segment):
        for level, segment in enumerate(levels):
            for name in segment.unique():
                inside = segment == name
                wide = inside.repeat_interleave(2, 0).repeat_interleave(2, 1)
                told[row, level, 0][wide] = x[inside].mean()
                told[row, level, 1][wide] = y[inside].mean()

    def embedding(middles):
        detail = torch.zeros(len(middles), DETAIL, 128, 128)
        detail[:, CENTRES] = middles.flatten(1, 2)
        folded = torch.nn.functional.pixel_unshuffle(detail, 4)
        plain = torch.zeros(len(middles), sam.mask_decoder.transformer_dim, 32, 32)
        return torch.cat([plain, folded], 1)

    assert float(centre_loss(sam, embedding(told), batch)) < 2e-3
    assert float(centre_loss(sam, embedding(torch.zeros_like(told)), batch)) > 0.1


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
