import dataclasses

import pytest
import torch

from pipeline.errors import ConfigError
from train.lavt import LAVT_SIZES, Lavt, LavtConfig
from train.loss import supervised_loss
from train.networks import NETWORKS, build_lavt, lavt_config, upsample
from train.optim import make_optimizer

torch.set_num_threads(1)  # OpenMP threads that wait by spinning starve each other on a busy machine

SMALL = {"image_size": 32, "embed_dim": 16, "decoder_channels": 16, "vocab_size": 30}


def make_batch(size, batch=2, length=6, vocab=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, 3, size, size, generator=generator)
    ids = torch.randint(5, vocab, (batch, length), generator=generator)
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[0, length // 2 :] = 0
    return images, ids, mask


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_lavt("toy", SMALL).eval()


def test_logits_have_two_classes_at_stride_four(network):
    assert network(*make_batch(32)).shape == (2, 2, 8, 8)


def test_batch_of_two_equals_two_batches_of_one(network):
    images, ids, mask = make_batch(32)
    with torch.no_grad():
        together = network(images, ids, mask)
        for row in range(2):
            one = slice(row, row + 1)
            alone = network(images[one], ids[one], mask[one])
            assert torch.allclose(together[one], alone, atol=1e-4)


def test_padding_tokens_have_no_influence(network):
    images, ids, mask = make_batch(32)
    other = torch.where(mask == 1, ids, 7)
    with torch.no_grad():
        assert torch.allclose(network(images, ids, mask), network(images, other, mask), atol=1e-5)


def test_other_words_give_other_logits(network):
    images, ids, mask = make_batch(32)
    with torch.no_grad():
        assert not torch.allclose(network(images, ids, mask), network(images, ids - 1, mask))


def test_images_need_not_be_the_configured_size(network):
    assert network(*make_batch(40)).shape == (2, 2, 10, 10)


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    model = build_lavt("toy", SMALL)
    model(*make_batch(32)).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_coordinates_tell_left_from_right():
    torch.manual_seed(0)
    blank = torch.zeros(1, 3, 32, 32)
    _, ids, mask = make_batch(32, batch=1)
    with_xy = build_lavt("toy", SMALL).eval()
    logits = with_xy(blank, ids, mask)
    assert not torch.allclose(logits[..., 2], logits[..., 5], atol=1e-4)


def test_toy_has_about_three_million_parameters():
    count = sum(p.numel() for p in build_lavt("toy", {"vocab_size": 300}).parameters())
    assert 2_000_000 < count < 3_200_000


@pytest.mark.parametrize("size", sorted(LAVT_SIZES))
def test_sizes_build_without_storage(size):
    with torch.device("meta"):
        model = Lavt(LAVT_SIZES[size])
    assert model.decoder.head.out_channels == 2


def test_base_has_the_parameters_of_swin_b_and_bert_base():
    with torch.device("meta"):
        model = Lavt(LAVT_SIZES["base"])
    text = sum(p.numel() for p in model.text.parameters())
    assert text == 108_891_648  # bert-base-uncased without its pooler
    vision = sum(p.numel() for p in model.vision.parameters())
    assert 86_000_000 < vision < 88_000_000


def test_toy_overfits_two_samples():
    torch.manual_seed(0)
    model = build_lavt("toy", SMALL | {"image_size": 64})
    images = torch.randn(1, 3, 64, 64).expand(2, -1, -1, -1)
    _, ids, mask = make_batch(64, length=5)
    label = torch.zeros(2, 64, 64, dtype=torch.int64)
    label[0, 8:32, 8:32] = 1  # the same image: only the sentence tells the two apart
    label[1, 36:60, 30:60] = 1
    optimizer = make_optimizer(model, 2e-3)
    for _ in range(50):
        loss = supervised_loss(model(images, ids, mask), label, dice=1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = upsample(model.eval()(images, ids, mask), (64, 64)).argmax(1) == 1
    truth = label == 1
    assert ((found & truth).sum((1, 2)) / (found | truth).sum((1, 2)) > 0.8).all()


def test_same_seed_gives_the_same_network():
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        states.append(build_lavt("toy", SMALL).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_upsample_keeps_the_corners():
    logits = torch.arange(8.0).reshape(1, 2, 2, 2)
    large = upsample(logits, (5, 5))
    assert torch.equal(large[:, :, ::4, ::4], logits)
    assert large[0, 0, 2, 2] == 1.5


def test_options_replace_values_and_lists_become_tuples():
    config = lavt_config("toy", {"depths": [1, 1, 1, 1]})
    assert config == dataclasses.replace(LAVT_SIZES["toy"], depths=(1, 1, 1, 1))
    assert "lavt" in NETWORKS


@pytest.mark.parametrize(
    ("size", "options", "named"),
    [
        ("huge", {}, "huge"),
        ("toy", {"widht": 3}, "widht"),
        ("toy", {"depths": [1, 1]}, "depths"),
        ("toy", {"num_heads": [3, 4, 4, 8]}, "divide"),
        ("toy", {"image_size": 130}, "image_size"),
        ("toy", {"text_heads": 3}, "text_heads"),
    ],
)
def test_bad_configs_are_refused(size, options, named):
    with pytest.raises(ConfigError, match=named):
        lavt_config(size, options)


def test_paper_size_is_the_default():
    assert LavtConfig() == LAVT_SIZES["base"]
