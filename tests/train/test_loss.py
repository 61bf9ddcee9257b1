import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from train.loss import (
    Totals,
    batch_totals,
    dice_loss,
    supervised_loss,
    total_loss,
    unsupervised_loss,
)

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


@pytest.mark.parametrize("balance", ["per_sample", "branch"])
@pytest.mark.parametrize("dice", [0.0, 1.5])
@given(data=st.data())
def test_shares_of_parts_add_up_to_the_loss_of_the_whole(balance, dice, data):
    """However samples are dealt to parts, and whatever is refined, ignored or labelled."""
    torch.manual_seed(data.draw(st.integers(0, 999)))
    count, num_labelled = data.draw(st.tuples(st.integers(1, 7), st.integers(0, 7)))
    num_labelled = min(num_labelled, count)
    logits = torch.randn(count, 2, 3, 3, dtype=torch.float64)
    label = torch.randint(0, 3, (count, 6, 6)).where(torch.rand(count, 6, 6) < 0.8, 2)
    label[label == 2] = 255
    weight, refined = torch.rand(count, 6, 6), torch.rand(count) < 0.5
    options = {"class_weights": (0.9, 1.1), "dice": dice}

    def losses(rows, totals=None):
        few = [row for row in rows if row < num_labelled]
        many = [row for row in rows if row >= num_labelled]
        return torch.stack([
            supervised_loss(logits[few], label[few], totals=totals, **options),
            unsupervised_loss(logits[many], label[many], weight[many], refined[many],
                              balance=balance, totals=totals, **options),
        ])  # fmt: skip

    parts = data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    rows_of = [[row for row in range(count) if parts[row] == part] for part in range(3)]
    each = [
        batch_totals(label[rows], refined[rows], sum(row < num_labelled for row in rows))
        for rows in rows_of
    ]
    totals = Totals(*(sum(column) for column in zip(*each, strict=True)))
    shares = sum(losses(rows, totals) for rows in rows_of)
    assert torch.allclose(shares, losses(range(count)), rtol=1e-4, atol=1e-6)


def test_samples_that_cannot_be_read_are_not_counted():
    label, refined = torch.full((3, 2, 2), 255), torch.tensor([True, True, False])
    label[0] = 1
    valid = torch.tensor([True, False, False])
    totals = batch_totals(label, refined, 2, class_weights=(1.0, 2.0), valid_B=valid)
    assert totals == Totals(8.0, 1.0, 0.0, 0.0, 0.0)
