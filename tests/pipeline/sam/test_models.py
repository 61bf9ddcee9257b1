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
