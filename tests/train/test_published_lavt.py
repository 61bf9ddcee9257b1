"""LAVT's published arithmetic in plain torch against ours, weights carried over by the map."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from tests.train.published_networks import (
    Sizes,
    bert_names,
    bert_words,
    decoder,
    decoder_names,
    fusion_names,
    fusion_stage,
    lavt_logits,
    model_names,
    random_state,
)
from train.fusion import FusionStage
from train.lavt import LAVT_SIZES, Decoder, Lavt
from train.networks import build_lavt
from train.published.lavt import DECODER_RULES, FUSION_RULES
from train.published.layouts import LAYOUTS, Layout, Section
from train.published.mapping import state_of, survey

torch.set_num_threads(1)

SIZES = Sizes()
STANDARD = {
    "tiny": Sizes(96, (2, 2, 6, 2), (3, 6, 12, 24), 7),
    "small": Sizes(96, (2, 2, 18, 2), (3, 6, 12, 24), 7),
    "base": Sizes(128, (2, 2, 18, 2), (4, 8, 16, 32), 12),
    "large": Sizes(192, (2, 2, 18, 2), (6, 12, 24, 48), 12),
}


def carried_over(network, part, rules, state):
    """Fill a piece of the network through rules alone."""
    holder = nn.ModuleDict({part: network})
    layout = Layout(
        title="a piece",
        sections=(Section(keys=("model",), rules=rules, ignored=()),),
        fills=(part,),
    )
    found = survey({"model": state}, layout, holder.state_dict())
    assert found.problems == []
    assert found.ignored == []
    holder.load_state_dict(state_of(found, holder.state_dict()), strict=True)
    return network


def in_double(state):
    """Give weights in float64, where what is left of a difference is no rounding."""
    return {n: value.double() if value.is_floating_point() else value for n, value in state.items()}


@pytest.mark.parametrize("heads", [1, 4])
def test_a_fusion_stage_equals_the_published_one(heads):
    state = in_double(random_state(fusion_names(0, 16, 12), seed=heads))
    stages = carried_over(
        nn.ModuleList([FusionStage(16, 12, heads, 0.0)]).double(), "fusions", FUSION_RULES, state
    )
    torch.manual_seed(heads)
    visual = torch.randn(3, 30, 16, dtype=torch.float64)
    words = torch.randn(3, 7, 12, dtype=torch.float64)
    mask = torch.arange(7) < torch.tensor([[7], [3], [2]])  # never fewer: [CLS] and [SEP]
    ours = stages[0](visual, words, mask)
    theirs = fusion_stage(state, 0, visual, words, mask, heads)
    for mine, published in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, published, atol=1e-8)
    assert not torch.allclose(ours[0], visual, atol=1e-2)  # the gate lets something in


@pytest.mark.parametrize("training", [False, True])
def test_the_decoder_equals_the_published_one(training):
    dims = (8, 16, 32, 64)
    state = in_double(random_state(decoder_names(dims), seed=3))
    ours = carried_over(Decoder(dims, 32).double(), "decoder", DECODER_RULES, state).train(training)
    sides = ((13, 12), (7, 6), (4, 3), (2, 2))
    torch.manual_seed(3)
    features = [
        torch.randn(2, dim, *side, dtype=torch.float64)
        for dim, side in zip(dims, sides, strict=True)
    ]
    logits = ours(features)
    assert logits.shape == (2, 2, 13, 12)
    assert torch.allclose(logits, decoder(state, features, training=training), atol=1e-8)


def test_the_whole_network_equals_the_published_one():
    """Padding to windows, odd sizes at the merges and a map below one window are all in it."""
    torch.manual_seed(0)
    network = build_lavt("tiny", SIZES.options | {"vocab_size": SIZES.vocabulary}).double().eval()
    model, bert = random_state(model_names(SIZES), 1), random_state(bert_names(SIZES), 2)
    found = survey({"model": model, "bert_model": bert}, LAYOUTS["lavt"], network.state_dict())
    assert found.problems == []
    network.load_state_dict(state_of(found, network.state_dict()), strict=True)
    images = torch.randn(2, 3, 56, 56, dtype=torch.float64)
    ids = torch.randint(SIZES.vocabulary, (2, 9))
    mask = (torch.arange(9) < torch.tensor([[9], [4]])).long()
    with torch.no_grad():
        ours = network(images, ids, mask)
        model, bert = ({k: v.double() for k, v in state.items()} for state in (model, bert))
        words = bert_words(bert, ids, mask, SIZES)
        theirs = lavt_logits(model, words, images, mask, SIZES)
    assert ours.shape == (2, 2, 14, 14)
    assert theirs.std() > 0.05
    assert torch.allclose(ours, theirs, atol=1e-8)


@pytest.mark.parametrize("size", STANDARD)
def test_every_published_tensor_of_a_standard_size_has_a_place(size):
    sizes = Sizes(
        *(getattr(STANDARD[size], name) for name in ("embed_dim", "depths", "heads", "window")),
        fusion_heads=(1, 1, 1, 1), text_dim=768, text_layers=12, text_heads=12,
        vocabulary=30522, positions=512,
    )  # fmt: skip
    model = {name: torch.empty(shape, device="meta") for name, shape in model_names(sizes).items()}
    bert = {name: torch.empty(shape, device="meta") for name, shape in bert_names(sizes).items()}
    for name in model:
        if name.endswith("num_batches_tracked"):
            model[name] = torch.empty((), dtype=torch.int64, device="meta")
    with torch.device("meta"):
        network = Lavt(LAVT_SIZES[size])
    found = survey({"model": model, "bert_model": bert}, LAYOUTS["lavt"], network.state_dict())
    assert found.problems == []
    assert {place.target for place in found.placed} == set(network.state_dict())
    blocks = sum(sizes.depths)
    assert len(found.ignored) == blocks + 2  # a position index each, and the last stage's gate
    assert len(found.placed) == len(model) + len(bert) - (blocks + 2) + 4 * blocks  # qkv in three


def test_what_a_test_draws_is_the_same_after_any_other():
    """See conftest; comparisons of rounded numbers failed for some draws."""
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(0)))
    assert random.random() == random.Random(0).random()
    assert np.random.random() == np.random.RandomState(0).random()  # noqa: NPY002


def test_stochastic_depth_drops_both_branches_as_published():
    network = build_lavt("tiny", SIZES.options | {"drop_path_rate": 0.999999}).train()
    block = network.vision.encoder.layers[3].blocks[0]  # the last: at the full rate
    torch.manual_seed(0)
    x = torch.randn(4, 16, SIZES.dims[3])
    out, _ = block(x, (4, 4), always_partition=True)
    assert torch.equal(out, x)
