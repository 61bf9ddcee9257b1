import hashlib
import json

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import ConfigError
from pipeline.sam.hub_files import (
    FAMILIES,
    hub_sha256,
    read_config,
    read_weights,
    resolve_hub,
    weight_files,
)


def _write(folder, model_type="sam", **tensors):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    save_file({"weight": torch.ones(2), **tensors}, folder / "model.safetensors")
    return folder


def _write_shards(folder, weight_map):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """The hub's cache without network, and a way to put a repository in."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    def put(name, **kwargs):
        repository = tmp_path / "cache" / f"models--{name.replace('/', '--')}"
        commit = "a" * 40
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(commit)
        return _write(repository / "snapshots" / commit, **kwargs)

    return put


def test_folder_is_taken_as_it_is(tmp_path):
    folder = _write(tmp_path / "sam")
    assert resolve_hub(folder, "hub_sam") == folder
    assert resolve_hub(str(folder), "hub_sam") == folder


def test_hub_id_comes_from_the_cache_without_network(hub_cache):
    snapshot = hub_cache("some/sam2-tiny", model_type="sam2_video")
    assert resolve_hub("some/sam2-tiny", "hub_sam2") == snapshot
    with pytest.raises(ConfigError, match="use model hub_sam2"):
        resolve_hub("some/sam2-tiny", "hub_sam")


@pytest.mark.usefixtures("hub_cache")
def test_hub_id_that_cannot_be_fetched_says_what_to_do():
    with pytest.raises(
        ConfigError,
        match=r"cannot fetch some/other from the hub \(LocalEntryNotFoundError\); check the id, "
        r"or run `hf download some/other` on a machine with network and give the folder",
    ) as caught:
        resolve_hub("some/other", "hub_sam")
    assert "\n" not in str(caught.value)


def test_hub_that_does_not_answer_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match="cannot fetch some/other from the hub"):
        resolve_hub("some/other", "hub_sam")


@pytest.mark.parametrize(
    "name", ["nowhere", "/no/such/folder", "a/b/c", "../x", "a/../b", "", "-a/b"]
)
def test_what_is_neither_folder_nor_id_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"no checkpoint folder|cannot read config\.json"):
        resolve_hub(name, "hub_sam")


def test_file_is_refused(tmp_path):
    folder = _write(tmp_path)
    with pytest.raises(
        ConfigError, match=r"takes a folder with config\.json, or a hub id, got the"
    ):
        resolve_hub(folder / "model.safetensors", "hub_sam")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("model_type", "right"),
    [
        ("sam", "hub_sam"),
        ("sam_hq", "hub_sam_hq"),
        ("sam2", "hub_sam2"),
        ("sam2_video", "hub_sam2"),
    ],
)
def test_checkpoint_of_another_family_names_the_right_entry(tmp_path, family, model_type, right):
    _write(tmp_path, model_type=model_type)
    if family == right:
        assert read_config(tmp_path, family) == {"model_type": model_type}
    else:
        with pytest.raises(ConfigError, match=rf"found '{model_type}'; use model {right}$"):
            read_config(tmp_path, family)


@pytest.mark.parametrize("model_type", ["bert", None, 3])
def test_checkpoint_of_no_family_lists_the_entries(tmp_path, model_type):
    _write(tmp_path, model_type=model_type)
    with pytest.raises(ConfigError, match=r"models are hub_sam, hub_sam_hq, hub_sam2$"):
        read_config(tmp_path, "hub_sam")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[1]", "holds a JSON object, found list"),
        (None, "cannot read .*config.json: No such file"),
    ],
)
def test_config_that_is_no_json_object_is_refused(tmp_path, content, message):
    folder = _write(tmp_path)
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        resolve_hub(folder, "hub_sam")
    assert "\n" not in str(caught.value)


def test_folder_without_weights_is_refused(tmp_path):
    _write(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    for ask in (read_weights, hub_sha256):
        with pytest.raises(ConfigError, match=r"holds no weights: expected model\.safetensors, "):
            ask(tmp_path)


def test_truncated_weights_are_refused(tmp_path):
    path = _write(tmp_path) / "model.safetensors"
    whole = path.read_bytes()
    for length in (0, 4, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(
            ConfigError, match=r"cannot read weights .*; download it again"
        ) as caught:
            read_weights(tmp_path)
        assert "\n" not in str(caught.value)


def test_shards_are_read_as_one(tmp_path):
    _write(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    save_file({"a": torch.zeros(1)}, tmp_path / "model-1-of-2.safetensors")
    save_file({"b": torch.ones(1)}, tmp_path / "model-2-of-2.safetensors")
    where = {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}
    _write_shards(tmp_path, where)
    assert {name: float(x) for name, x in read_weights(tmp_path).items()} == {"a": 0.0, "b": 1.0}
    _write_shards(tmp_path, {**where, "c": "model-2-of-2.safetensors"})
    with pytest.raises(ConfigError, match=r"lacks c, which model\.safetensors\.index\.json lists"):
        read_weights(tmp_path)
    _write_shards(tmp_path, {**where, "b": "model-3-of-2.safetensors"})
    with pytest.raises(ConfigError, match=r"names 'model-3-of-2\.safetensors', which is not in"):
        weight_files(tmp_path)
    _write_shards(tmp_path, {"a": "../sam/model-1-of-2.safetensors"})
    with pytest.raises(ConfigError, match="which is not in the folder"):
        weight_files(tmp_path)
    _write_shards(tmp_path, ["a"])
    with pytest.raises(ConfigError, match="has no weight_map"):
        weight_files(tmp_path)


def test_either_name_of_the_positional_encoding_gives_both(tmp_path):
    names = {
        "shared_image_embedding.positional_embedding",
        "prompt_encoder.shared_embedding.positional_embedding",
    }
    for i, name in enumerate(sorted(names)):
        folder = _write(tmp_path / str(i), **{name: torch.arange(3.0)})
        found = read_weights(folder)
        assert {k for k, x in found.items() if x.tolist() == [0, 1, 2]} == names


def test_sha256_by_hand(tmp_path):
    folder = _write(tmp_path / "a")
    files = ("config.json", "model.safetensors")
    lines = [f"{n}\0{hashlib.sha256((folder / n).read_bytes()).hexdigest()}\n" for n in files]
    assert hub_sha256(folder) == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_sha256_names_what_decides_the_masks(tmp_path):
    found = {hub_sha256(_write(tmp_path / "a"))}
    assert hub_sha256(_write(tmp_path / "b")) in found  # not where it lies
    (tmp_path / "b" / "README.md").write_text("words")
    (tmp_path / "b" / "pytorch_model.bin").write_bytes(b"not read where safetensors are")
    assert hub_sha256(tmp_path / "b") in found
    found.add(hub_sha256(_write(tmp_path / "c", weight=torch.zeros(2))))
    found.add(hub_sha256(_write(tmp_path / "d", model_type="sam2")))
    (tmp_path / "a" / "preprocessor_config.json").write_text("{}")
    found.add(hub_sha256(tmp_path / "a"))
    assert len(found) == 4
