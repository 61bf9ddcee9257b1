import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from train.networks import build_lavt
from train.optim import make_optimizer, parameter_groups, poly_lr, set_lr


@pytest.fixture
def network():
    return build_lavt("toy", {"vocab_size": 10})


def test_only_backbone_norms_and_position_tables_escape_decay(network):
    decayed, exempt = parameter_groups(network, 0.1)
    names = {id(p): n for n, p in network.named_parameters()}
    free = {names[id(p)] for p in exempt["params"]}
    kept = {names[id(p)] for p in decayed["params"]}
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.1, 0.0)
    assert free | kept == set(names.values())
    assert not free & kept
    table = "vision.encoder.layers.0.blocks.0.attention.relative_position_bias"
    assert f"{table}.relative_position_bias_table" in free
    assert "fusions.0.norm.weight" in free
    assert "vision.encoder.layers.0.blocks.0.mlp.fc1.bias" in kept
    assert "text.encoder.layer.0.attention.output.LayerNorm.weight" in kept
    assert all(n.startswith(("vision.", "fusions.")) for n in free)


def test_frozen_parameters_are_left_out(network):
    groups = parameter_groups(network, frozen=["text.embeddings."])
    chosen = {id(p) for group in groups for p in group["params"]}
    embeddings = list(network.text.embeddings.parameters())
    assert not any(id(p) in chosen or p.requires_grad for p in embeddings)
    assert len(chosen) + len(embeddings) == len(list(network.parameters()))
    with pytest.raises(ConfigError, match="txet"):
        parameter_groups(network, frozen=["txet."])


def test_rate_by_hand_and_exactly_zero_at_the_end():
    assert poly_lr(0, 10, 2.0) == 2.0
    assert poly_lr(5, 10, 2.0, power=1.0) == 1.0
    assert poly_lr(5, 10, 2.0) == pytest.approx(2 * 0.5**0.9)
    assert poly_lr(10, 10, 2.0) == 0.0
    assert poly_lr(10, 10, 2.0, warmup_steps=4) == 0.0


def test_warm_up_is_linear():
    rates = [poly_lr(s, 1000, 1.0, power=1.0, warmup_steps=4) for s in range(5)]
    assert rates == pytest.approx([0.25, 0.5 * 0.999, 0.75 * 0.998, 0.997, 0.996])


@given(total=st.integers(2, 500), data=st.data())
def test_rate_falls_after_the_warm_up(total, data):
    warmup = data.draw(st.integers(0, total - 1))
    rates = [poly_lr(s, total, 1.0, warmup_steps=warmup) for s in range(warmup, total + 1)]
    assert all(a > b for a, b in itertools.pairwise(rates))
    assert rates[-1] == 0


@pytest.mark.parametrize(
    ("step", "total", "options"),
    [(11, 10, {}), (-1, 10, {}), (0, 0, {}), (0, 10, {"warmup_steps": 10}), (0, 10, {"power": 0})],
)
def test_impossible_schedules_are_refused(step, total, options):
    with pytest.raises(ConfigError):
        poly_lr(step, total, 1.0, **options)


def test_set_lr_reaches_every_group_and_zero_changes_nothing():
    network = torch.nn.Linear(2, 2)
    optimizer = make_optimizer(network, 1.0)
    set_lr(optimizer, 0.0)
    before = network.weight.detach().clone()
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert [g["lr"] for g in optimizer.param_groups] == [0.0, 0.0]
    assert torch.equal(network.weight, before)
