import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from train.fusion import FusionStage, PixelWordAttention, instance_norm


def plain_instance_norm(x):
    mean = x.mean(1, keepdim=True)
    return (x - mean) / ((x - mean).pow(2).mean(1, keepdim=True) + 1e-5).sqrt()


def plain_attention(layer, visual, words, mask):
    """LAVT's equations 1 to 6, one sample and one head at a time."""
    batch, tokens, dim = visual.shape
    width = dim // layer.num_heads
    query = plain_instance_norm(visual @ layer.query.weight.T + layer.query.bias)
    key = words @ layer.key.weight.T + layer.key.bias
    value = words @ layer.value.weight.T + layer.value.bias
    gathered = torch.zeros(batch, tokens, dim)
    for b in range(batch):
        kept = mask[b].nonzero().flatten()
        for head in range(layer.num_heads):
            part = slice(head * width, (head + 1) * width)
            scores = torch.einsum("nc,lc->nl", query[b, :, part], key[b, kept, part]) / dim**0.5
            shares = scores.softmax(1)
            gathered[b, :, part] = torch.einsum("nl,lc->nc", shares, value[b, kept, part])
    language = plain_instance_norm(gathered @ layer.output.weight.T + layer.output.bias)
    gelu = torch.nn.functional.gelu
    seen = gelu(visual @ layer.visual.weight.T + layer.visual.bias)
    return gelu((seen * language) @ layer.joint.weight.T + layer.joint.bias)


def make_inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    visual = torch.randn(3, 10, 8, generator=generator)
    words = torch.randn(3, 5, 6, generator=generator)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]]).bool()
    return visual, words, mask


@pytest.mark.parametrize("num_heads", [1, 2, 4])
def test_fusion_stage_equals_the_equations_written_out(num_heads):
    torch.manual_seed(1)
    stage = FusionStage(8, 6, num_heads, 0.0).eval()
    visual, words, mask = make_inputs()
    fused = plain_attention(stage.attention, visual, words, mask)
    hidden = torch.einsum("bnc,dc->bnd", fused, stage.gate[0].weight).clamp(min=0)
    gate = torch.einsum("bnc,dc->bnd", hidden, stage.gate[2].weight).tanh()
    passed_on, to_decoder = stage(visual, words, mask)
    assert torch.allclose(passed_on, visual + gate * fused, atol=1e-5)
    assert torch.allclose(
        to_decoder, torch.nn.functional.layer_norm(fused, (8,), eps=1e-5), atol=1e-5
    )


def test_masked_words_have_no_influence():
    torch.manual_seed(2)
    attention = PixelWordAttention(8, 6, 2, 0.0)
    visual, words, mask = make_inputs()
    changed = torch.where(mask[..., None], words, 1e6)
    assert torch.equal(attention(visual, words, mask), attention(visual, changed, mask))


def test_order_of_words_does_not_matter_to_the_attention():
    torch.manual_seed(3)
    attention = PixelWordAttention(8, 6, 2, 0.0)
    visual, words, mask = make_inputs()
    order = torch.tensor([4, 2, 0, 1, 3])
    shuffled = attention(visual, words[:, order], mask[:, order])
    assert torch.allclose(attention(visual, words, mask), shuffled, atol=1e-5)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), shift=st.floats(-3, 3), scale=st.floats(0.5, 4))
def test_instance_norm_equals_torchs_and_forgets_shift_and_scale(seed, shift, scale):
    x = torch.randn(2, 30, 4, generator=torch.Generator().manual_seed(seed))
    expected = torch.nn.InstanceNorm1d(4)(x.transpose(1, 2)).transpose(1, 2)
    assert torch.allclose(instance_norm(x), expected, atol=1e-5)
    assert torch.allclose(instance_norm(shift + scale * x), expected, atol=1e-3)


def test_gate_and_attention_get_gradients():
    torch.manual_seed(4)
    stage = FusionStage(8, 6, 2, 0.0)
    passed_on, _ = stage(*make_inputs())
    passed_on.sum().backward()
    for index in (0, 2):
        assert stage.gate[index].weight.grad.abs().sum() > 0
