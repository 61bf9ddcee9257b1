"""SAM-HQ and SAM 2 against transformers' own way from pixels and points to masks."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Sam2ImageProcessor,
    Sam2Processor,
    SamHQProcessor,
    SamImageProcessor,
    SamModel,
)

from pipeline.errors import ConfigError, SemiresError
from pipeline.sam.generator import generate_masks
from pipeline.sam.hub_sam2 import load_hub_sam2
from pipeline.sam.hub_sam_hq import load_hub_sam_hq
from pipeline.sam.options import GeneratorOptions
from tests.pipeline.sam.hub_checkpoints import (
    SIDE,
    sam_config,
    tiny_sam2,
    tiny_sam2_video,
    tiny_sam_hq,
)

LOADERS = {"hq": load_hub_sam_hq, "sam2": load_hub_sam2, "video": load_hub_sam2}
SIZES = [(48, 64), (90, 41), (33, 100), (64, 64), (20, 20), (1, 1), (3, 200)]


def _all(iou):
    return torch.ones_like(iou, dtype=torch.bool)


def _image(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def _points(size, count=6):
    return np.random.default_rng(1).random((count, 2)) * [size[1], size[0]]


def _draw_from_attended_pixels(model):
    """Correct transformers' SAM-HQ: give its upscaling what the two-way transformer returns."""
    kept = []

    def keep(_module, _args, output):
        kept[:] = [output[1]]

    def replace(_module, args):
        return (kept[0].squeeze(1).transpose(1, 2).unflatten(2, args[0].shape[2:]),)

    model.mask_decoder.transformer.register_forward_hook(keep)
    model.mask_decoder.upscale_conv1.register_forward_pre_hook(replace)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Saved by transformers, and loaded from there by everything below."""
    root = tmp_path_factory.mktemp("checkpoints")
    makers = {"hq": tiny_sam_hq, "sam2": tiny_sam2, "video": tiny_sam2_video}
    for name, make in makers.items():
        make().save_pretrained(root / name)
    return root


@pytest.fixture(scope="module")
def hq(folders):
    return load_hub_sam_hq(folders / "hq")


@pytest.fixture(scope="module")
def sam2(folders):
    return load_hub_sam2(folders / "sam2")


@pytest.fixture(params=["hq", "sam2"])
def name(request):
    return request.param


@pytest.fixture
def network(request, name):
    return request.getfixturevalue(name)


@pytest.fixture(scope="module")
def processors():
    square = {"height": SIDE, "width": SIDE}
    return {
        "hq": SamHQProcessor(SamImageProcessor(size={"longest_edge": SIDE}, pad_size=square)),
        "sam2": Sam2Processor(Sam2ImageProcessor(size=square)),
    }


@pytest.mark.parametrize("size", SIZES, ids=str)
@torch.no_grad()
def test_sam_hq_equals_transformers_from_pixels_to_masks(hq, processors, size):
    points = _points(size)
    prepared = hq.prepare(_image(size))
    found = hq.decode(hq.encode([prepared])[0], points, size, _all)
    inputs = processors["hq"](
        _image(size),
        input_points=[points[:, None].tolist()],
        return_tensors="pt",
        input_data_format="channels_last",
    )
    expected = _draw_from_attended_pixels(tiny_sam_hq())(
        pixel_values=hq.pixels.normalise([prepared], hq.device), input_points=inputs["input_points"]
    )
    order = found.predicted_iou.argsort(1, descending=True)  # transformers sorts
    logits = found.logits.unflatten(0, (len(points), 3))
    logits = logits.take_along_dim(order[..., None, None], 1)
    torch.testing.assert_close(logits, expected.pred_masks[0], atol=1e-5, rtol=1e-5)
    iou = found.predicted_iou.take_along_dim(order, 1)
    torch.testing.assert_close(iou, expected.iou_scores[0], atol=1e-5, rtol=0)
    [masks] = processors["hq"].post_process_masks(
        [logits], [size], [tuple(prepared.shape[1:])], binarize=False
    )
    drawn = hq.draw(logits.flatten(0, 1), size)
    torch.testing.assert_close(drawn, masks.flatten(0, 1), atol=1e-5, rtol=0)
    assert logits.std() > 0.1


@torch.no_grad()
def test_sam_hq_predicts_iou_as_transformers_does_uncorrected(hq):
    prepared, points = hq.prepare(_image((48, 64))), _points((48, 64))
    found = hq.decode(hq.encode([prepared])[0], points, (48, 64), _all)
    expected = tiny_sam_hq()(
        pixel_values=hq.pixels.normalise([prepared], hq.device),
        input_points=torch.as_tensor(points)[None, :, None],
    ).iou_scores[0]
    sorted_iou = found.predicted_iou.sort(1, descending=True).values
    torch.testing.assert_close(sorted_iou, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_sam_hq_without_its_token_draws_as_sam_with_a_fourth_mask_does(folders, tmp_path):
    """With the HQ network silenced, the HQ token is one more mask token to SAM's own decoder."""
    network = load_hub_sam_hq(folders / "hq")
    decoder = network.model.mask_decoder
    for value in decoder.hq_mask_mlp.proj_out.parameters():
        value.zero_()
    state = network.model.state_dict()
    mask_tokens, hq_token = "mask_decoder.mask_tokens.weight", "mask_decoder.hq_token.weight"
    state[mask_tokens] = torch.cat([state[mask_tokens], state[hq_token]])
    for name in list(state):
        if "hq_mask_mlp" in name:
            new = name.replace("hq_mask_mlp", "output_hypernetworks_mlps.4")
            state[new] = state[name]
    head = "mask_decoder.iou_prediction_head.proj_out."
    for kind in ("weight", "bias"):  # a predicted IoU for the fourth mask too
        state[head + kind] = torch.cat([state[head + kind], state[head + kind][:1]])
    sam = SamModel(sam_config(decoder={"num_multimask_outputs": 4})).eval()
    left = sam.load_state_dict(state, strict=False)
    assert not left.missing_keys

    prepared, points = network.prepare(_image((64, 40))), _points((64, 40))
    found = network.decode(network.encode([prepared])[0], points, (64, 40), _all)
    expected = sam(
        pixel_values=network.pixels.normalise([prepared], network.device),
        input_points=torch.as_tensor(points)[None, :, None],
    )
    logits = found.logits.unflatten(0, (len(points), 3))
    torch.testing.assert_close(logits, expected.pred_masks[0, :, :3], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        found.predicted_iou, expected.iou_scores[0, :, :3], atol=1e-5, rtol=0
    )


@torch.no_grad()
def test_sam_hq_without_global_attention_uses_late_features_alone(tmp_path):
    model = tiny_sam_hq({"global_attn_indexes": []})
    model.save_pretrained(tmp_path)
    network = load_hub_sam_hq(tmp_path)
    prepared, points = network.prepare(_image((64, 64))), _points((64, 64), 1)
    found = network.decode(network.encode([prepared])[0], points, (64, 64), _all)
    expected = _draw_from_attended_pixels(model)(
        pixel_values=network.pixels.normalise([prepared], network.device),
        input_points=torch.as_tensor(points)[None, :, None],
    ).pred_masks[0, 0]
    order = found.predicted_iou[0].argsort(descending=True)
    torch.testing.assert_close(found.logits[order], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", SIZES, ids=str)
@torch.no_grad()
def test_sam2_equals_transformers_from_pixels_to_masks(sam2, processors, size):
    points = _points(size)
    prepared = sam2.prepare(_image(size))
    assert prepared.shape == (3, SIDE, SIDE)
    found = sam2.decode(sam2.encode([prepared])[0], points, size, _all)
    inputs = processors["sam2"](
        _image(size),
        input_points=[points[:, None].tolist()],
        return_tensors="pt",
        input_data_format="channels_last",
    )
    expected = tiny_sam2_loaded(sam2)(
        pixel_values=sam2.pixels.normalise([prepared], sam2.device),
        input_points=inputs["input_points"],
    )
    logits = found.logits.unflatten(0, (len(points), 3))
    torch.testing.assert_close(logits, expected.pred_masks[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.predicted_iou, expected.iou_scores[0], atol=1e-5, rtol=0)
    [masks] = processors["sam2"].post_process_masks([logits], [size], binarize=False)
    drawn = sam2.draw(logits.flatten(0, 1), size)
    torch.testing.assert_close(drawn, masks.flatten(0, 1), atol=1e-5, rtol=0)
    assert logits.std() > 0.1


def tiny_sam2_loaded(sam2):
    """A fresh Sam2Model of the same weights; its positional encoding is random when made."""
    model = tiny_sam2()
    model.load_state_dict(sam2.model.state_dict())
    return model


@torch.no_grad()
def test_image_part_of_a_video_checkpoint_equals_transformers(folders):
    from transformers import Sam2Model

    network = load_hub_sam2(folders / "video")
    expected, info = Sam2Model.from_pretrained(folders / "video", output_loading_info=True)
    assert not info["missing_keys"]
    prepared, points = network.prepare(_image((40, 70))), _points((40, 70))
    found = network.decode(network.encode([prepared])[0], points, (40, 70), _all)
    scale = torch.tensor([SIDE / 70, SIDE / 40])
    masks = expected.eval()(
        pixel_values=network.pixels.normalise([prepared], network.device),
        input_points=torch.as_tensor(points).float()[None, :, None] * scale,
    ).pred_masks[0]
    torch.testing.assert_close(
        found.logits.unflatten(0, (len(points), 3)), masks, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixels_are_those_of_the_processor(network, processors, name, size):
    """But for Pillow's rounding, one step of 255, which torchvision does differently."""
    found = network.pixels.normalise([network.prepare(_image(size))], network.device)
    expected = processors[name](
        _image(size), return_tensors="pt", input_data_format="channels_last"
    )["pixel_values"]
    assert found.shape == expected.shape == (1, 3, SIDE, SIDE)
    apart = (found - expected).abs()
    assert apart.max() < 1.01 / min(network.pixels.std)
    assert apart.mean() < 0.3 / min(network.pixels.std)


def test_encoding_at_once_equals_encoding_one_by_one(network):
    prepared = [network.prepare(_image(size, seed)) for seed, size in enumerate(SIZES[:4])]
    together = network.encode(prepared)
    assert len(together) == 4
    for one, expected in zip(prepared, together, strict=True):
        [alone] = network.encode([one])
        for part, other in zip(alone, expected, strict=True):
            assert part.shape[0] == 1
            torch.testing.assert_close(part, other, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together[0][0], together[1][0], atol=1e-2)


def test_points_of_a_batch_do_not_see_each_other(network):
    size = (48, 64)
    points = _points(size)
    [embedding] = network.encode([network.prepare(_image(size))])
    together = network.decode(embedding, points, size, _all)
    for row, point in enumerate(points):
        alone = network.decode(embedding, point[None], size, _all)
        torch.testing.assert_close(
            alone.logits, together.logits[3 * row : 3 * row + 3], atol=1e-5, rtol=1e-5
        )


def test_wanted_masks_alone_are_given(network):
    size = (48, 64)
    points = _points(size)
    [embedding] = network.encode([network.prepare(_image(size))])
    everything = network.decode(embedding, points, size, _all)
    assert everything.wanted.tolist() == [[k, m] for k in range(6) for m in range(3)]
    passes = torch.zeros(6, 3, dtype=torch.bool)
    passes[1, 2] = passes[4, 0] = passes[4, 2] = True
    some = network.decode(embedding, points, size, lambda _iou: passes)
    assert some.wanted.tolist() == [[1, 2], [4, 0], [4, 2]]
    torch.testing.assert_close(some.logits, everything.logits[[5, 12, 14]], atol=1e-5, rtol=1e-5)
    assert torch.equal(some.predicted_iou, everything.predicted_iou)
    none = network.decode(embedding, points, size, lambda iou: iou > iou.max())
    assert none.logits.shape == (0, *everything.logits.shape[1:])
    assert none.wanted.shape == (0, 2)
    assert network.draw(none.logits, size).shape == (0, *size)


def test_select_is_asked_about_every_predicted_iou(network):
    size, asked = (48, 64), []
    [embedding] = network.encode([network.prepare(_image(size))])

    def select(iou):
        asked.append(iou)
        return iou > iou.median()

    found = network.decode(embedding, _points(size), size, select)
    assert [tuple(iou.shape) for iou in asked] == [(6, 3)]
    assert len(found.logits) == int((asked[0] > asked[0].median()).sum()) == 9


def test_bfloat16_gives_nearly_the_same_in_float32(folders, network, name):
    half = LOADERS[name](folders / name, half=True)
    size = (48, 64)
    prepared = [network.prepare(_image(size))]
    exact = network.decode(network.encode(prepared)[0], _points(size), size, _all)
    found = half.decode(half.encode(prepared)[0], _points(size), size, _all)
    assert found.logits.dtype == found.predicted_iou.dtype == torch.float32
    assert not torch.equal(found.logits, exact.logits)
    apart = (found.logits - exact.logits).abs().mean() / exact.logits.std()
    assert apart < 0.15


def test_embedding_that_is_not_finite_is_refused(folders, name):
    fresh = LOADERS[name](folders / name)
    with torch.no_grad():
        next(fresh.model.vision_encoder.parameters())[:] = 1e38
    prepared = fresh.prepare(_image((48, 64)))
    with pytest.raises(
        SemiresError, match="image embedding is not finite, the checkpoint is damaged"
    ):
        fresh.encode([prepared])


def test_mask_generator_runs_on_it(network):
    image = _image((40, 56))
    options = GeneratorOptions(points_per_side=3, pred_iou_thresh=0.0, stability_score_thresh=0.0)
    masks = generate_masks(network, image, options)
    assert masks.masks.shape[1:] == (40, 56)
    assert len(masks) > 0


@pytest.mark.parametrize("name", LOADERS)
def test_incomplete_weights_are_refused_not_made_up(folders, tmp_path, name):
    load = LOADERS[name]
    state = load_file(folders / name / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folders / name / "config.json").read_bytes())
    lost = "mask_decoder.iou_token.weight"
    save_file({k: v for k, v in state.items() if k != lost}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=rf"do not fit its config\.json: missing {lost}$"):
        load(tmp_path)
    save_file({**state, "surplus": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"unexpected surplus$"):
        load(tmp_path)
    save_file({**state, lost: torch.zeros(1, 3)}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"iou_token\.weight \(1, 3\) instead of \(1, 32\)$"):
        load(tmp_path)
    save_file({**state, lost: state[lost] * torch.inf}, tmp_path / "model.safetensors")
    with pytest.raises(SemiresError, match="is not finite, the checkpoint is damaged"):
        load(tmp_path)


def test_networks_have_no_weight_without_storage(network):
    values = [*network.model.parameters(), *network.model.buffers()]
    assert {value.device.type for value in values} == {"cpu"}
    assert {value.dtype for value in values} == {torch.float32}
    assert not any(module.training for module in network.model.modules())


def test_transformers_is_not_imported_before_a_checkpoint_is_loaded():
    code = (
        "import sys, pipeline.sam.hub_sam, pipeline.sam.hub_sam2, pipeline.sam.hub_sam_hq\n"
        "sys.exit('transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
