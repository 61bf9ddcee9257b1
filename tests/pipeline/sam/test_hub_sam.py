import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from segment_anything import build_sam_vit_b, build_sam_vit_h, build_sam_vit_l
from transformers import SamConfig, SamImageProcessor, SamModel

from pipeline.errors import ConfigError, SemiresError
from pipeline.sam.hub_sam import load_hub_sam, rename_weight
from tests.pipeline.sam.hub_checkpoints import SIDE, tiny_sam


@pytest.fixture(scope="module")
def hub_sam():
    return tiny_sam()


@pytest.fixture
def folder(hub_sam, tmp_path):
    hub_sam.save_pretrained(tmp_path)
    return tmp_path


# hidden_size, blocks, heads, blocks with global attention, as the published config.json have them
_PUBLISHED = {
    "vit_b": ({}, build_sam_vit_b),
    "vit_l": (
        {
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "global_attn_indexes": [5, 11, 17, 23],
        },
        build_sam_vit_l,
    ),
    "vit_h": (
        {
            "hidden_size": 1280,
            "num_hidden_layers": 32,
            "num_attention_heads": 16,
            "global_attn_indexes": [7, 15, 23, 31],
        },
        build_sam_vit_h,
    ),
}


def _change(folder, section, **values):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config[section].update(values)
    path.write_text(json.dumps(config))


def _ask(sam, pixels, points=None, labels=None, boxes=None, masks=None, multimask=True):
    """Embedding, logits and IoU of segment_anything for one image."""
    embedding = sam.image_encoder(pixels)
    given = None if points is None else (points[0], labels[0])
    sparse, dense = sam.prompt_encoder(
        points=given, boxes=None if boxes is None else boxes[0], masks=masks
    )
    logits, iou = sam.mask_decoder(
        image_embeddings=embedding,
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=multimask,
    )
    return embedding, logits, iou


_POINTS = SIDE * torch.rand(1, 5, 2, 2, generator=torch.Generator().manual_seed(1))
_LABELS = torch.tensor([[[1, 1], [1, 0], [0, 0], [1, -1], [0, 1]]])
_BOXES = torch.tensor(
    [[[3.0, 4, 40, 50], [10, 20, 30, 33], [0, 0, 64, 64], [7, 7, 8, 8], [1, 2, 3, 4]]]
)
_MASKS = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize(
    "prompts",
    [
        {"points": _POINTS, "labels": _LABELS},
        {"points": _POINTS[:, :, :1], "labels": _LABELS[:, :, :1]},
        {"boxes": _BOXES},
        {"points": _POINTS, "labels": _LABELS, "boxes": _BOXES},
        {"masks": _MASKS},
        {"points": _POINTS, "labels": _LABELS, "masks": _MASKS},
    ],
    ids=lambda prompts: "+".join(prompts),
)
@torch.no_grad()
def test_converted_sam_equals_transformers(folder, hub_sam, prompts, multimask):
    sam = load_hub_sam(folder)
    pixels = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    embedding, logits, iou = _ask(sam, pixels, **prompts, multimask=multimask)
    expected = hub_sam(
        pixel_values=pixels,
        multimask_output=multimask,
        **{f"input_{name}": value for name, value in prompts.items()},
    )
    torch.testing.assert_close(embedding, hub_sam.get_image_embeddings(pixels), atol=1e-5, rtol=0)
    torch.testing.assert_close(logits, expected.pred_masks[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(iou, expected.iou_scores[0], atol=1e-5, rtol=0)
    assert logits.std() > 0.1  # the weights do something


@pytest.mark.parametrize(
    "vision",
    [
        {"use_abs_pos": False},
        {"use_rel_pos": False},
        {"qkv_bias": False},
        {"window_size": 4, "global_attn_indexes": []},
        {"mlp_dim": 27, "layer_norm_eps": 0.1},
    ],
    ids=str,
)
@torch.no_grad()
def test_every_switch_of_the_encoder_is_followed(tmp_path, vision):
    hub_sam = tiny_sam(vision=vision)
    hub_sam.save_pretrained(tmp_path)
    pixels = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    found = load_hub_sam(tmp_path).image_encoder(pixels)
    torch.testing.assert_close(found, hub_sam.get_image_embeddings(pixels), atol=1e-5, rtol=0)


@torch.no_grad()
def test_every_size_of_the_decoder_is_followed(tmp_path):
    decoder = {
        "num_hidden_layers": 3,
        "num_multimask_outputs": 4,
        "iou_head_depth": 2,
        "num_attention_heads": 4,
        "layer_norm_eps": 0.05,
    }
    hub_sam = tiny_sam(decoder=decoder)
    hub_sam.save_pretrained(tmp_path)
    pixels = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    _, logits, iou = _ask(load_hub_sam(tmp_path), pixels, _POINTS, _LABELS)
    expected = hub_sam(pixel_values=pixels, input_points=_POINTS, input_labels=_LABELS)
    assert logits.shape[1] == 4
    torch.testing.assert_close(logits, expected.pred_masks[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(iou, expected.iou_scores[0], atol=1e-5, rtol=0)


def test_images_are_normalised_as_the_checkpoint_says(folder):
    processor = SamImageProcessor(
        size={"longest_edge": SIDE},
        pad_size={"height": SIDE, "width": SIDE},
        image_mean=[0.1, 0.2, 0.3],
        image_std=[0.5, 0.4, 0.3],
    )
    processor.save_pretrained(folder)
    image = np.random.default_rng(0).integers(0, 256, (40, SIDE, 3), np.uint8)
    sam = load_hub_sam(folder)
    found = sam.preprocess(torch.from_numpy(image).permute(2, 0, 1)[None].float())
    expected = processor(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_shards_and_half_precision_give_the_same_network(folder, hub_sam, tmp_path):
    sharded = tmp_path / "sharded"
    hub_sam.save_pretrained(sharded, max_shard_size="20KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 1
    expected = load_hub_sam(folder).state_dict()
    found = load_hub_sam(sharded).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    path = folder / "model.safetensors"
    save_file({name: x.half() for name, x in load_file(path).items()}, path)
    rounded = load_hub_sam(folder).state_dict()
    for name, value in expected.items():
        assert rounded[name].dtype == torch.float32
        assert torch.equal(rounded[name], value.half().float())


def test_pickled_weights_load_without_running_code(folder):
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    assert not load_hub_sam(folder).training
    torch.save({**state, "extra": _Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"cannot read weights .*pytorch_model\.bin"):
        load_hub_sam(folder)


class _Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('code of the file was run')",)


def test_missing_extra_and_misshapen_weights_are_named(folder):
    path = folder / "model.safetensors"
    state = load_file(path)
    state["mask_decoder.surplus"] = torch.zeros(2)
    del state["vision_encoder.neck.conv2.weight"]
    state["mask_decoder.iou_token.weight"] = torch.zeros(1, 31)
    save_file(state, path)
    with pytest.raises(ConfigError) as caught:
        load_hub_sam(folder)
    message = str(caught.value)
    assert "missing image_encoder.neck.2.weight;" in message
    assert "unexpected mask_decoder.surplus;" in message
    assert "mask_decoder.iou_token.weight (1, 31) instead of (1, 32)" in message
    assert "\n" not in message


def test_weights_of_another_depth_are_refused(folder):
    _change(folder, "vision_config", num_hidden_layers=4)
    with pytest.raises(ConfigError, match=r"do not fit its config\.json: missing .* and 11 more"):
        load_hub_sam(folder)


def test_weights_that_are_not_finite_are_refused(folder):
    path = folder / "model.safetensors"
    state = load_file(path)
    state["mask_decoder.iou_token.weight"][0, 3] = torch.nan
    save_file(state, path)
    with pytest.raises(
        SemiresError, match=r"mask_decoder\.iou_token\.weight in .* is not finite, the checkpoint"
    ):
        load_hub_sam(folder)


def test_two_positional_encodings_are_refused(folder):
    path = folder / "model.safetensors"
    state = load_file(path)
    one, other = (
        "shared_image_embedding.positional_embedding",
        "prompt_encoder.shared_embedding.positional_embedding",
    )
    [name] = {one, other} & state.keys()
    state[one] = state[other] = state[name]
    save_file({name: x.clone() for name, x in state.items()}, path)
    assert load_hub_sam(folder) is not None
    save_file({**state, other: state[one] + 1}, path)
    with pytest.raises(ConfigError, match="differ, expected one"):
        load_hub_sam(folder)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("vision_config", {"hidden_act": "relu"}, "expected vision_config.hidden_act 'gelu'"),
        ("vision_config", {"num_channels": 4}, "expected vision_config.num_channels 3, found 4"),
        ("prompt_encoder_config", {"image_size": 32}, "prompt_encoder_config.image_size 64"),
        ("vision_config", {"num_hidden_layers": "three"}, "is not a SAM's"),
        ("vision_config", {"patch_size": 0}, "is not a SAM's"),
        ("mask_decoder_config", {"num_attention_heads": 7}, "is not a SAM's"),
    ],
)
def test_config_that_makes_no_sam_is_refused(folder, section, values, message):
    _change(folder, section, **values)
    with pytest.raises(ConfigError, match=message) as caught:
        load_hub_sam(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(_PUBLISHED))
def test_published_sizes_are_those_of_segment_anything(name):
    """Names and shapes of a SamModel of each published size, against Meta's own builders."""
    vision, build = _PUBLISHED[name]
    with torch.device("meta"):
        hub = SamModel(SamConfig(vision_config=vision)).state_dict()
        expected = build().state_dict()
    found = {rename_weight(name, iou_head_depth=3): x.shape for name, x in hub.items()}
    assert found == {name: x.shape for name, x in expected.items()}


def test_names_are_one_to_one(hub_sam):
    renamed = [rename_weight(name, iou_head_depth=4) for name in hub_sam.state_dict()]
    assert len(set(renamed)) == len(renamed) - 1  # the positional encoding has two names
    assert rename_weight("mask_decoder.iou_prediction_head.proj_out.bias", 4) == (
        "mask_decoder.iou_prediction_head.layers.3.bias"
    )
    assert rename_weight("mask_decoder.output_hypernetworks_mlps.2.layers.0.weight", 4) == (
        "mask_decoder.output_hypernetworks_mlps.2.layers.1.weight"
    )
