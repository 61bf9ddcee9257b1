"""Every entry of NETWORKS answers what the trainer asks, in the same way."""

import pytest
import torch

from pipeline.errors import ConfigError
from train.config import NetworkConfig
from train.networks import NETWORKS

torch.set_num_threads(1)
SMALL = {
    "lavt": {"image_size": 32, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 1),
             "fusion_heads": (1, 1), "decoder_channels": 8, "text_dim": 8, "text_heads": 1,
             "vocab_size": 30, "drop_path_rate": 0.0},
    "clipseg": {"image_size": 32, "table_size": 32, "vision_dim": 16, "text_dim": 16,
                "decoder_hidden": 16, "vocab_size": 30},
}  # fmt: skip


@pytest.fixture(params=list(NETWORKS))
def built(request):
    torch.manual_seed(0)
    entry = NETWORKS[request.param]
    return entry, entry("toy", SMALL[request.param]).eval()


def draw_batch():
    torch.manual_seed(1)
    ids = torch.tensor([[2, 7, 9, 3], [2, 8, 3, 0], [2, 7, 9, 3]])
    return torch.randn(3, 3, 32, 32), ids, (ids > 0).long()


def test_every_network_has_small_options():
    assert set(SMALL) == set(NETWORKS)


def test_a_network_maps_images_and_words_to_two_classes(built):
    _, network = built
    images, ids, mask = draw_batch()
    logits = network(images, ids, mask)
    assert logits.shape[:2] == (3, 2)
    assert network.config.image_size == 32
    assert logits.isfinite().all()


def test_padding_changes_nothing(built):
    _, network = built
    images, ids, mask = draw_batch()
    with torch.inference_mode():
        whole = network(images, ids, mask)
        garbage = torch.where(mask > 0, ids, 11)
        assert torch.allclose(network(images, garbage, mask), whole, atol=1e-5)


def test_the_three_parts_give_the_logits_of_the_whole(built):
    """Words once per sentence, images once per image, put together per expression."""
    entry, network = built
    images, ids, mask = draw_batch()
    images[2] = images[0]
    rows = [0, 1, 0]
    with torch.inference_mode():
        whole = network(images, ids, mask)
        words = entry.encode_words(network, ids[:2], mask[:2])
        features = entry.encode_images(network, images[:2])
        parts = entry.decode(
            network, tuple(part[rows] for part in features), words[rows], mask[rows]
        )
    assert torch.allclose(parts, whole, atol=1e-5)


def test_only_where_words_come_late_images_are_shared():
    assert {name: entry.shares_images for name, entry in NETWORKS.items()} == {
        "lavt": False,
        "clipseg": True,
    }


@pytest.mark.parametrize("name", list(NETWORKS))
def test_the_longest_sentence_is_asked_of_the_entry(name):
    assert NETWORKS[name].longest_sentence("toy", {"text_positions": 12}) == 12
    NetworkConfig(name=name, options={"text_positions": 12}, max_tokens=12)
    with pytest.raises(ValueError, match=r"max_tokens: expected 3 to 12 \(text_positions\)"):
        NetworkConfig(name=name, options={"text_positions": 12}, max_tokens=13)
    with pytest.raises(ConfigError, match=f"size: unknown 'huge'; known for {name} are toy, "):
        NetworkConfig(name=name, size="huge")
    with pytest.raises(ConfigError, match=f"{name}: no such option: window"):
        NetworkConfig(name=name, options={"window": 3})


def test_an_unknown_network_names_the_known_ones():
    with pytest.raises(ValueError, match="unknown 'unet'; known are lavt, clipseg"):
        NetworkConfig(name="unet")
