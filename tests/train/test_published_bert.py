"""BERT in plain torch against ours, and the forms in which its weights are published."""

import json

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import ConfigError, StoreError
from pipeline.torchvision_ops import ensure_importable
from tests.train.published_networks import Sizes, bert_names, bert_words, random_state
from train.networks import build_lavt
from train.published.layouts import LAYOUTS
from train.published.mapping import state_of, survey
from train.published.reading import read_published

ensure_importable()

from transformers import BertConfig, BertForPreTraining  # noqa: E402

torch.set_num_threads(1)

SIZES = Sizes()
PARTS_OF_LAYER_0 = len([name for name in bert_names(SIZES) if name.startswith("encoder.layer.0.")])


@pytest.fixture(scope="module")
def network():
    return build_lavt("tiny", SIZES.options | {"vocab_size": SIZES.vocabulary}).eval()


@pytest.fixture(scope="module")
def state():
    return random_state(bert_names(SIZES), seed=8)


def filled(network, content):
    own = network.state_dict()
    found = survey(content, LAYOUTS["bert"], own)
    assert found.problems == []
    network.load_state_dict({**own, **state_of(found, own)}, strict=True)
    return found


def test_words_equal_the_published_ones(network, state):
    filled(network, state)
    ids = torch.randint(SIZES.vocabulary, (3, 8))
    mask = (torch.arange(8) < torch.tensor([[8], [5], [2]])).long()
    with torch.no_grad():
        ours = network.text(input_ids=ids, attention_mask=mask).last_hidden_state
    theirs = bert_words(state, ids, mask, SIZES)
    assert torch.allclose(ours[mask == 1], theirs[mask == 1], atol=1e-5)
    assert theirs[mask == 1].std() > 0.5


def test_what_transformers_saves_is_taken(network, tmp_path):
    """A real file of another class of transformers: prefix, pooler and heads of pre-training."""
    torch.manual_seed(0)
    sizes = BertConfig(
        vocab_size=SIZES.vocabulary,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=24,
    )
    saved = BertForPreTraining(sizes).eval()
    saved.save_pretrained(tmp_path)
    read = read_published(str(tmp_path))
    assert read.path.name == "model.safetensors"
    assert read.description["num_attention_heads"] == 4
    found = filled(network, read.content)
    assert {name.split(".")[0] for name, _ in found.ignored} == {"bert", "cls"}
    ids = torch.randint(SIZES.vocabulary, (2, 6))
    with torch.no_grad():
        ours = network.text(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        theirs = saved.bert(input_ids=ids).last_hidden_state
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_the_hubs_old_names_of_norms_are_taken(network, state):
    old = {}
    for name, tensor in state.items():
        if "LayerNorm" in name:
            name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
            name = name.replace("LayerNorm.bias", "LayerNorm.beta")
        old[f"bert.{name}"] = tensor
    found = filled(network, old | {"cls.predictions.bias": torch.zeros(40)})
    scale = network.text.encoder.layer[1].output.LayerNorm.weight
    assert torch.equal(scale, state["encoder.layer.1.output.LayerNorm.weight"])
    assert [name for name, _ in found.ignored] == ["cls.predictions.bias"]


def test_both_names_of_one_norm_are_refused(network, state):
    both = state | {"embeddings.LayerNorm.gamma": state["embeddings.LayerNorm.weight"]}
    found = survey(both, LAYOUTS["bert"], network.state_dict())
    assert [problem.kind for problem in found.problems] == ["twice"]
    assert "text.embeddings.LayerNorm.weight is taken" in found.problems[0].text


def test_layers_beyond_the_networks_are_left_out_and_counted(network, state):
    deeper = random_state(bert_names(SIZES, layers=4), seed=9)
    found = filled(network, deeper)
    assert len(found.ignored) == 2 * PARTS_OF_LAYER_0
    assert {entry.reason for _, entry in found.ignored} == {
        "a layer beyond the network's text_layers"
    }
    fewer = {name: tensor for name, tensor in state.items() if ".layer.1." not in name}
    problems = survey(fewer, LAYOUTS["bert"], network.state_dict()).problems
    assert [problem.kind for problem in problems] == ["missing"] * PARTS_OF_LAYER_0


def hub_copy(cache, state, monkeypatch):
    """Lay a downloaded model out as the hub's client does."""
    folder = cache / "models--someone--small-bert"
    snapshot = folder / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(snapshot.name)
    save_file(state, snapshot / "model.safetensors")
    (snapshot / "config.json").write_text(json.dumps({"num_attention_heads": 4}))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_a_name_on_the_hub_is_read_from_the_copy_without_a_network(tmp_path, state, monkeypatch):
    hub_copy(tmp_path, state, monkeypatch)
    read = read_published("someone/small-bert", from_hub=True)
    assert read.content.keys() == state.keys()
    assert read.description == {"num_attention_heads": 4}
    with pytest.raises(ConfigError, match=r"someone/other.*not to be had from the hub.*downloaded"):
        read_published("someone/other", from_hub=True)


def test_a_bin_in_a_folder_is_read_without_running_it(tmp_path, state):
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert read_published(str(tmp_path)).content.keys() == state.keys()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(StoreError, match=r"config\.json: not readable JSON"):
        read_published(str(tmp_path))


def test_a_folder_without_weights_names_what_it_lacks(tmp_path):
    with pytest.raises(ConfigError, match=r"expected model\.safetensors or pytorch_model\.bin"):
        read_published(str(tmp_path))
