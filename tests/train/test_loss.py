import math

import pytest
import torch

from pipeline.errors import ConfigError
from train.loss import dice_loss, supervised_loss, total_loss, unsupervised_loss

LOG2 = math.log(2)


def logits_of(prob):
    """Logits at the label's own size whose softmax gives this foreground probability."""
    return torch.stack([torch.log(1 - prob), torch.log(prob)], dim=1)


def test_supervised_by_hand_with_class_weights_and_ignored_pixels():
    prob = torch.tensor([[[0.5, 0.25], [0.75, 0.9]]])
    label = torch.tensor([[[0, 1], [1, 255]]])
    expected = (0.9 * LOG2 + 1.1 * math.log(4) + 1.1 * math.log(4 / 3)) / (0.9 + 1.1 + 1.1)
    assert supervised_loss(logits_of(prob), label).item() == pytest.approx(expected, abs=1e-6)
    plain = (LOG2 + math.log(4) + math.log(4 / 3)) / 3
    loss = supervised_loss(logits_of(prob), label, class_weights=None)
    assert loss.item() == pytest.approx(plain, abs=1e-6)


def test_supervised_equals_torchs_weighted_mean():
    torch.manual_seed(0)
    logits, label = torch.randn(3, 2, 5, 5), torch.randint(0, 2, (3, 5, 5))
    weights = torch.tensor([0.9, 1.1])
    expected = torch.nn.functional.cross_entropy(logits, label, weight=weights)
    assert torch.allclose(supervised_loss(logits, label), expected)


def test_logits_are_upsampled_to_the_label():
    torch.manual_seed(0)
    logits, label = torch.randn(2, 2, 3, 3), torch.randint(0, 2, (2, 9, 9))
    large = torch.nn.functional.interpolate(logits, (9, 9), mode="bilinear", align_corners=True)
    assert torch.allclose(supervised_loss(logits, label), supervised_loss(large, label))


def test_dice_by_hand():
    prob = torch.tensor([[[0.5, 0.25], [0.75, 0.9]]])
    label = torch.tensor([[[0, 1], [1, 255]]])
    assert dice_loss(logits_of(prob), label).item() == pytest.approx(1 - 3 / 4.5)
    both = supervised_loss(logits_of(prob), label, dice=2.0)
    alone = supervised_loss(logits_of(prob), label)
    assert (both - alone).item() == pytest.approx(2 * (1 - 3 / 4.5), abs=1e-6)


@pytest.mark.parametrize("dice", [0.0, 1.0])
def test_nothing_but_ignored_pixels_gives_zero_with_a_gradient(dice):
    logits = torch.randn(1, 2, 2, 2, requires_grad=True)
    label = torch.full((1, 2, 2), 255)
    loss = supervised_loss(logits, label, dice=dice)
    weak = unsupervised_loss(logits, label, torch.ones(1, 2, 2), torch.tensor([True]), dice=dice)
    (loss + weak).backward()
    assert (loss.item(), weak.item()) == (0, 0)
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def make_two():
    """A refined sample of cross-entropy log 2, another of log 4 with half of it ignored."""
    prob = torch.stack([torch.full((2, 2), 0.5), torch.full((2, 2), 0.25)])
    label = torch.tensor([[[1, 1], [1, 1]], [[1, 1], [255, 255]]])
    weight = torch.stack([torch.full((2, 2), 1.0), torch.full((2, 2), 0.5)])
    return logits_of(prob), label, weight


def test_per_sample_gives_every_sample_the_same_say():
    logits, label, weight = make_two()
    loss = unsupervised_loss(logits, label, weight, torch.tensor([True, False]))
    assert loss.item() == pytest.approx((LOG2 + 0.5 * 2 * LOG2) / 2, abs=1e-6)


def test_branch_averages_the_two_kinds_whatever_their_counts():
    logits, label, weight = make_two()
    rows = torch.tensor([0, 0, 0, 1])
    refined = torch.tensor([True, True, True, False])
    loss = unsupervised_loss(logits[rows], label[rows], weight[rows] * 2, refined, balance="branch")
    assert loss.item() == pytest.approx((2 * LOG2 + 2 * LOG2) / 2, abs=1e-6)
    per_sample = unsupervised_loss(logits[rows] * 2, label[rows], weight[rows], refined)
    branch = unsupervised_loss(
        logits[rows] * 2, label[rows], weight[rows], refined, balance="branch"
    )
    assert per_sample.item() != pytest.approx(branch.item(), abs=1e-3)


@pytest.mark.parametrize("only", [True, False])
def test_branch_with_one_kind_only_is_that_kinds_mean(only):
    logits, label, weight = make_two()
    loss = unsupervised_loss(logits, label, weight, torch.tensor([only] * 2), balance="branch")
    expected = (4 * LOG2 + 2 * 0.5 * 2 * LOG2) / 6
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_class_weights_concern_refined_samples_only():
    prob = torch.full((1, 1, 2), 0.25)
    label, weight = torch.tensor([[[0, 1]]]), torch.ones(1, 1, 2)
    background, foreground = math.log(4 / 3), math.log(4)

    def loss(refined):
        return unsupervised_loss(
            logits_of(prob), label, weight, torch.tensor([refined]), class_weights=(0.9, 1.1)
        ).item()

    assert loss(True) == pytest.approx((0.9 * background + 1.1 * foreground) / 2, abs=1e-6)
    assert loss(False) == pytest.approx((background + foreground) / 2, abs=1e-6)


def test_weight_one_on_refined_samples_is_the_supervised_loss():
    torch.manual_seed(0)
    logits, label = torch.randn(2, 2, 4, 4), torch.randint(0, 2, (2, 4, 4))
    ones, refined = torch.ones(2, 4, 4), torch.ones(2).bool()
    loss = unsupervised_loss(logits, label, ones, refined, balance="branch")
    assert torch.allclose(loss, supervised_loss(logits, label, class_weights=None))


def test_an_empty_batch_costs_nothing():
    empty = torch.zeros(0, 2, 4, 4)
    label, refined = torch.zeros(0, 4, 4, dtype=torch.int64), torch.zeros(0).bool()
    for balance in ("per_sample", "branch"):
        loss = unsupervised_loss(empty, label, torch.zeros(0, 4, 4), refined, balance=balance)
        assert loss.item() == 0


def test_unknown_balance_is_refused():
    logits, label, weight = make_two()
    with pytest.raises(ConfigError, match="half"):
        unsupervised_loss(logits, label, weight, torch.tensor([True, False]), balance="half")


def test_total_is_the_weighted_sum():
    total = total_loss(torch.tensor(2.0), torch.tensor(3.0), lambda_sup=10, lambda_unsup=0.5)
    assert total.item() == 21.5
