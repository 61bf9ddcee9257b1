import hashlib

import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import ConfigError
from pipeline.sam.models import SAM_MODELS, checkpoint_sha256
from pipeline.sam.tiny import IMAGE_SIZE, WEIGHTS


def test_shipped_weights_load_and_are_small():
    sam = SAM_MODELS["vit_tiny_demo"].build(None)
    assert not sam.training
    assert sam.image_encoder.img_size == IMAGE_SIZE
    assert WEIGHTS.stat().st_size < 8_000_000


def test_fingerprint_is_the_hash_of_the_file(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"abc")
    assert checkpoint_sha256("vit_b", path) == hashlib.sha256(b"abc").hexdigest()
    shipped = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
    assert checkpoint_sha256("vit_tiny_demo", None) == shipped


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_published_models_need_a_checkpoint(name):
    assert SAM_MODELS[name].needs_checkpoint
    with pytest.raises(ConfigError, match=f"{name} needs a checkpoint file"):
        SAM_MODELS[name].build(None)
    with pytest.raises(ConfigError, match="needs a checkpoint file"):
        checkpoint_sha256(name, None)


def test_unknown_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="unknown SAM model 'vit_x', choose from vit_tiny_demo"):
        checkpoint_sha256("vit_x", tmp_path)


def test_missing_file_is_named(tmp_path):
    path = tmp_path / "sam.pth"
    for attempt in (
        lambda: SAM_MODELS["vit_b"].build(path),
        lambda: SAM_MODELS["vit_tiny_demo"].build(path),
        lambda: checkpoint_sha256("vit_b", path),
    ):
        with pytest.raises(ConfigError, match=r"sam\.pth"):
            attempt()


def test_checkpoint_of_another_model_names_the_right_entry(tmp_path):
    path = tmp_path / "sam_vit_h.pth"
    torch.save({"image_encoder.pos_embed": torch.zeros(1, 64, 64, 1280)}, path)
    with pytest.raises(ConfigError, match="not a checkpoint of SAM model vit_b: use model vit_h"):
        SAM_MODELS["vit_b"].build(path)


def test_incomplete_checkpoint_is_refused(tmp_path):
    path = tmp_path / "sam_vit_b.pth"
    torch.save({"image_encoder.pos_embed": torch.zeros(1, 64, 64, 768)}, path)
    with pytest.raises(ConfigError, match=r"lacks \d+ parameters, such as .* of SAM model vit_b"):
        SAM_MODELS["vit_b"].build(path)


def test_file_that_is_no_checkpoint_is_refused(tmp_path):
    path = tmp_path / "sam.pth"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ConfigError, match="cannot read SAM checkpoint"):
        SAM_MODELS["vit_b"].build(path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(ConfigError, match="is not a state dict of tensors"):
        SAM_MODELS["vit_b"].build(path)


def test_tiny_weights_are_loaded_strictly(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ConfigError, match="does not hold the weights of vit_tiny_demo"):
        SAM_MODELS["vit_tiny_demo"].build(path)
    path.write_bytes(b"junk")
    with pytest.raises(ConfigError, match="cannot read the weights of vit_tiny_demo"):
        SAM_MODELS["vit_tiny_demo"].build(path)


@pytest.mark.parametrize(
    "content",
    [
        b"<!DOCTYPE html><html>",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"\x80\x02ccode",
        b"",
    ],
)
def test_a_file_that_is_something_else_gets_no_advice_to_run_it(tmp_path, content):
    path = tmp_path / "sam.pth"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="no file of tensors") as caught:
        SAM_MODELS["vit_b"].build(path)
    assert "weights_only" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("state", "entry"),
    [
        ({"mask_decoder.hf_token.weight": torch.zeros(1, 256)}, "hub_sam_hq"),
        ({"model": {"image_encoder.trunk.pos_embed": torch.zeros(1)}}, "hub_sam2"),
    ],
)
def test_checkpoints_of_other_families_name_their_entry(tmp_path, state, entry):
    path = tmp_path / "sam.pth"
    position = {"image_encoder.pos_embed": torch.zeros(1, 64, 64, 768)}
    torch.save(state if "model" in state else {**position, **state}, path)
    with pytest.raises(ConfigError, match=f"use model {entry} with its folder"):
        SAM_MODELS["vit_b"].build(path)


def test_folders_and_files_are_not_mixed_up(tmp_path):
    with pytest.raises(ConfigError, match="is a folder, expected a file; models hub_sam"):
        checkpoint_sha256("vit_b", tmp_path)
    with pytest.raises(ConfigError, match=r"takes a \.safetensors file"):
        SAM_MODELS["vit_tiny_demo"].build(tmp_path / "sam_vit_b.pth")
