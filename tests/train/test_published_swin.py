"""Swin as Microsoft publishes it against transformers' with mapped weights."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.train.published_networks import (
    Sizes,
    pair_index,
    random_state,
    swin_block,
    swin_merge,
    swin_names,
)
from train.networks import build_lavt
from train.published.layouts import LAYOUTS
from train.published.mapping import change, state_of, survey
from train.published.position_tables import index_differs, position_index, resize_table, window_of

torch.set_num_threads(1)

SIZES = Sizes()


@pytest.fixture(scope="module")
def pair():
    """A published Swin's weights, and our network with them."""
    state = random_state(swin_names(SIZES, classifier=True), seed=5)
    network = build_lavt("tiny", SIZES.options | {"vocab_size": 30}).eval()
    found = survey({"model": state}, LAYOUTS["swin"], network.state_dict())
    assert found.problems == []
    filled = {**network.state_dict(), **state_of(found, network.state_dict())}
    network.load_state_dict(filled, strict=True)
    return state, network


@pytest.mark.parametrize("block", [0, 1], ids=["plain", "shifted"])
@pytest.mark.parametrize("size", [(8, 12), (7, 5), (3, 2)], ids=["whole", "padded", "below"])
def test_a_block_equals_the_published_one(pair, block, size):
    state, network = pair
    ours = network.vision.encoder.layers[2].blocks[block]
    x = torch.randn(2, size[0] * size[1], SIZES.dims[2])
    with torch.no_grad():
        found, _ = ours(x, size, always_partition=True)
    shift = SIZES.window // 2 * block
    expected = swin_block(
        state, f"layers.2.blocks.{block}", x, size, SIZES.heads[2], SIZES.window, shift
    )
    assert torch.allclose(found, expected, atol=1e-5)
    if block:
        unshifted = swin_block(state, "layers.2.blocks.1", x, size, SIZES.heads[2], SIZES.window, 0)
        assert not torch.allclose(found, unshifted, atol=1e-3)


@pytest.mark.parametrize("size", [(6, 4), (5, 3)])
def test_patch_merging_equals_the_published_one(pair, size):
    state, network = pair
    x = torch.randn(2, size[0] * size[1], SIZES.dims[1])
    with torch.no_grad():
        found = network.vision.encoder.layers[1].downsample(x, size)
    assert torch.allclose(found, swin_merge(state, "layers.1.downsample", x, size), atol=1e-5)


def test_classifier_norm_and_buffers_are_left_out_with_a_reason(pair):
    state, network = pair
    found = survey(state, LAYOUTS["swin"], network.state_dict())  # the bare dictionary
    assert found.problems == []
    reasons = {name: entry.reason for name, entry in found.ignored}
    assert set(reasons) == {
        name for name in state
        if name.startswith(("norm.", "head.")) or name.endswith(("_index", "attn_mask"))
    }  # fmt: skip
    assert all(reasons.values())
    assert {place.target.split(".")[0] for place in found.placed} == {"vision"}


def test_fused_rows_are_query_key_value_in_this_order():
    weight = torch.arange(12.0).reshape(6, 2)
    query, key, value = change(weight, "split")
    assert torch.equal(query, torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
    assert torch.equal(key, torch.tensor([[4.0, 5.0], [6.0, 7.0]]))
    assert torch.equal(value, torch.tensor([[8.0, 9.0], [10.0, 11.0]]))


@pytest.mark.parametrize("window", [1, 2, 7, 12])
def test_position_index_is_that_of_pairs_one_by_one(window):
    assert torch.equal(position_index(window), pair_index(window))
    assert index_differs(position_index(window)) == 0


def test_position_index_is_the_one_that_transformers_uses(pair):
    _, network = pair
    bias = network.vision.encoder.layers[0].blocks[0].attention.relative_position_bias
    assert torch.equal(position_index(4).flatten(), bias.relative_position_index)


def test_a_position_index_that_an_average_spoilt_is_noted(pair):
    """The released trainer averages this buffer as a float and cuts it off: 47 of 529 rows."""
    state, network = pair
    name = "layers.0.blocks.0.attn.relative_position_index"
    index = state[name].clone()
    index[0, :3] -= 1
    found = survey({"model": state | {name: index}}, LAYOUTS["swin"], network.state_dict())
    assert found.problems == []
    assert len(found.notes) == 1
    assert found.notes[0].startswith("1 position indices of the file are not those of their window")
    assert f"(first {name}: 3 of 256 entries)" in found.notes[0]


@settings(max_examples=25)
@given(old=st.integers(2, 9), new=st.integers(2, 9), heads=st.integers(1, 4))
def test_a_resized_table_is_of_the_new_window_and_keeps_what_is_constant(old, new, heads):
    value = torch.arange(1.0, heads + 1).expand((2 * old - 1) ** 2, heads)
    resized = resize_table(value, (2 * new - 1) ** 2)
    assert window_of(resized) == new
    assert torch.allclose(resized, torch.arange(1.0, heads + 1).expand(resized.shape), atol=1e-5)
    again = torch.randn((2 * old - 1) ** 2, heads)
    assert torch.allclose(resize_table(again, len(again)), again, atol=1e-6)


def test_resizing_keeps_what_is_above_above():
    """A bias that grows with the rows only still does, and is the same along a row."""
    table = torch.arange(7.0)[:, None].expand(7, 7).reshape(49, 1)  # window 4: 7 x 7 differences
    image = resize_table(table, 169).reshape(13, 13)
    assert (image.diff(dim=0) > 0).all()
    assert torch.allclose(image, image[:, :1].expand(13, 13), atol=1e-5)
    assert image[6, 6] == pytest.approx(3.0, abs=1e-5)  # no difference stays no difference


@pytest.mark.parametrize("rows", [0, 4, 16, 50])
def test_what_is_no_table_has_no_window(rows):
    assert window_of(torch.zeros(rows, 3)) is None
    assert window_of(torch.zeros(49)) is None
