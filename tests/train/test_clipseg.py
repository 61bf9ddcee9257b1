"""CLIPSeg: equal to transformers' own, loads its weights strictly, goes through the whole job."""

import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tokenizers.pre_tokenizers import ByteLevel

from pipeline.errors import ConfigError, StoreError
from pipeline.torchvision_ops import ensure_importable

ensure_importable()

from transformers import (  # noqa: E402
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegTextConfig,
    CLIPSegVisionConfig,
    CLIPTokenizer,
)

from train import clipseg  # noqa: E402
from train.clipseg import CLIPSEG_SIZES, ClipSeg  # noqa: E402
from train.clipseg_weights import main, published_weights  # noqa: E402
from train.loss import supervised_loss  # noqa: E402
from train.networks import build_clipseg, clipseg_config  # noqa: E402
from train.optim import make_optimizer  # noqa: E402
from train.published.starting import start_from  # noqa: E402
from train.text import load_text_encoder  # noqa: E402

torch.set_num_threads(1)
END = 49
SMALL = {
    "image_size": 48, "table_size": 32, "patch_size": 16, "vision_dim": 16, "vision_layers": 4,
    "vision_heads": 2, "extract_layers": (0, 2), "text_dim": 12, "text_layers": 2, "text_heads": 2,
    "text_positions": 9, "vocab_size": 50, "shared_dim": 20, "reduce_dim": 8, "decoder_heads": 2,
    "decoder_hidden": 24, "refined_head": True,
}  # fmt: skip
JOB = {"image_size": 32, "table_size": 32, "vision_dim": 16, "vision_layers": 2, "vision_heads": 2,
       "extract_layers": [0, 1], "text_dim": 16, "text_layers": 1, "text_heads": 2,
       "shared_dim": 16, "reduce_dim": 8, "decoder_heads": 2, "decoder_hidden": 16}  # fmt: skip


def transformers_own(seed=0, refined=True):
    torch.manual_seed(seed)
    config = CLIPSegConfig(
        text_config=CLIPSegTextConfig(
            vocab_size=50, hidden_size=12, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=9, eos_token_id=END,
            bos_token_id=48, pad_token_id=END,
        ),
        vision_config=CLIPSegVisionConfig(
            hidden_size=16, intermediate_size=64, num_hidden_layers=4, num_attention_heads=2,
            image_size=32, patch_size=16,
        ),
        projection_dim=20, extract_layers=(0, 2), reduce_dim=8, decoder_num_attention_heads=2,
        decoder_intermediate_size=24, use_complex_transposed_convolution=refined,
    )  # fmt: skip
    network = CLIPSegForImageSegmentation(config).eval()
    for parameter in network.parameters():  # so that no bias and no norm is a plain 0 or 1
        torch.nn.init.normal_(parameter, std=0.3)
    return network


def draw_inputs(seed=1):
    torch.manual_seed(seed)
    ids = torch.tensor([[48, 3, 7, END, END, END], [48, 9, 1, 2, 30, END], [48, END] + [END] * 4])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6, [1, 1, 0, 0, 0, 0]])
    return torch.randn(3, 3, 48, 48), ids, mask


@pytest.mark.parametrize("refined", [True, False])
def test_logits_equal_transformers_own(refined):
    """Ours with its weights: same mask logits, at a size that its position table is not for."""
    theirs = transformers_own(refined=refined)
    ours = build_clipseg("base", SMALL | {"refined_head": refined}).eval()
    ours.load_state_dict(published_weights(theirs.state_dict(), ours), strict=True)
    images, ids, mask = draw_inputs()
    with torch.inference_mode():
        expected = theirs(input_ids=ids, pixel_values=images, attention_mask=mask).logits
        logits = ours(images, ids, mask)
    assert logits.shape == (3, 2, 48, 48)
    assert expected.std() > 0.1
    assert torch.allclose(logits[:, 1] - logits[:, 0], expected, atol=1e-5)
    probability = logits.softmax(dim=1)[:, 1]
    assert torch.allclose(probability, expected.sigmoid(), atol=1e-5)


def test_every_published_tensor_is_accounted_for():
    state, ours = transformers_own().state_dict(), build_clipseg("base", SMALL)
    with pytest.raises(StoreError, match=r"'decoder\.extra' has no place"):
        published_weights(state | {"decoder.extra": torch.zeros(1)}, ours)
    missing = {k: v for k, v in state.items() if k != "decoder.film_mul.weight"}
    with pytest.raises(StoreError, match=r"1 tensors are missing, first 'decoder\.film_mul"):
        published_weights(missing, ours)
    other = build_clipseg("base", SMALL | {"vocab_size": 60})
    with pytest.raises(StoreError, match=r"token_embedding.*\(50, 12\), expected \(60, 12\)"):
        published_weights(state, other)
    unread = set(state) - {name for name in state if "layers.3." in name}
    assert len(published_weights(state, ours)) == len(ours.state_dict()) < len(unread)


def test_a_saved_model_becomes_what_a_round_starts_from(tmp_path, monkeypatch):
    """A folder as transformers writes it, our file, a network that starts from it."""
    theirs = transformers_own()
    theirs.save_pretrained(tmp_path / "saved")
    monkeypatch.setitem(CLIPSEG_SIZES, "small", clipseg.ClipSegConfig(**SMALL))
    out = tmp_path / "weights" / "clipseg.safetensors"
    arguments = [str(tmp_path / "saved"), str(out), "--size", "small"]
    first = CliRunner().invoke(main, arguments)
    assert first.exit_code == 0, first.output
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 1
    assert "is there already" in again.output
    ours = build_clipseg("small").eval()
    assert start_from(ours, [out]) == ()
    images, ids, mask = draw_inputs()
    with torch.inference_mode():
        expected = theirs(input_ids=ids, pixel_values=images, attention_mask=mask).logits
        assert torch.allclose(ours(images, ids, mask)[:, 1], expected, atol=1e-5)
    other = CliRunner().invoke(main, [*arguments[:1], str(tmp_path / "base"), "--size", "base"])
    assert other.exit_code == 1
    assert "has shape" in other.output
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"image_size": 50}, "image_size is a multiple of patch_size 16, got 50"),
        ({"text_heads": 5}, "5 heads do not divide text_dim 12"),
        ({"extract_layers": (2, 0)}, r"rise from 0 to 3, got \(2, 0\)"),
        ({"extract_layers": (0, 4)}, r"rise from 0 to 3, got \(0, 4\)"),
        ({"patch_size": 8}, "patch_size 16 only, got 8"),
        ({"depths": (1, 2)}, "no such option: depths"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, named):
    with pytest.raises(ConfigError, match=named):
        clipseg_config("base", SMALL | options)


def test_a_frozen_clip_keeps_its_weights_and_the_decoder_learns():
    network = build_clipseg("toy", JOB | {"train_clip": False, "patch_size": 8})
    trained = {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad}
    assert trained == {"decoder"}
    everything = build_clipseg("toy", JOB | {"patch_size": 8})
    assert all(parameter.requires_grad for parameter in everything.parameters())


def test_all_that_is_trained_gets_a_gradient():
    """DistributedDataParallel refuses weights that reach no output."""
    network = build_clipseg("toy", JOB)
    ids = torch.tensor([[2, 5, 3, 0], [2, 3, 0, 0]])
    network(torch.randn(2, 3, 32, 32), ids, (ids > 0).long())[:, 1].square().mean().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None]


def test_two_sentences_of_one_image_are_told_apart():
    torch.manual_seed(0)
    network = build_clipseg("toy", JOB)
    image = torch.randn(1, 3, 32, 32).expand(2, -1, -1, -1)
    ids = torch.tensor([[2, 7, 3], [2, 9, 3]])
    label = torch.zeros(2, 32, 32, dtype=torch.long)
    label[0, :16], label[1, 16:] = 1, 1
    optimizer = make_optimizer(network, 1e-2)
    for _ in range(60):
        loss = supervised_loss(network(image, ids, torch.ones_like(ids)), label, class_weights=None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


def test_the_published_size_has_the_published_shapes():
    with torch.device("meta"):
        network = ClipSeg(CLIPSEG_SIZES["base"])
    shapes = {name: tuple(p.shape) for name, p in network.named_parameters()}
    assert shapes["vision.embeddings.position_embedding.weight"] == (197, 768)
    assert shapes["text.embeddings.token_embedding.weight"] == (49408, 512)
    assert shapes["decoder.transposed_convolution.4.weight"] == (32, 1, 4, 4)
    decoder = sum(p.numel() for n, p in network.named_parameters() if n.startswith("decoder."))
    assert decoder == 1_127_009  # the paper names 1.1 million trained parameters


@pytest.fixture(scope="module")
def clip_tokenizer(tmp_path_factory):
    """CLIP's own tokenizer, with a vocabulary of bytes and three merges, as a folder."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "le", "ft</w>", "left</w>",
              "<|startoftext|>", "<|endoftext|>"]  # fmt: skip
    folder = tmp_path_factory.mktemp("clip")
    merges = [("l", "e"), ("f", "t</w>"), ("le", "ft</w>")]
    vocabulary = {token: row for row, token in enumerate(tokens)}
    CLIPTokenizer(vocab=vocabulary, merges=merges).save_pretrained(folder)
    return folder


def test_clips_tokenizer_ends_every_sentence_where_the_mask_does(clip_tokenizer):
    text = load_text_encoder(clip_tokenizer, 8)
    ids, mask = text.encode(["left", "the left one that runs away", ""])
    end = text.vocab_size - 1
    assert [row[count - 1] for row, count in zip(ids, mask.sum(1), strict=True)] == [end] * 3
    assert ids[0][:3].tolist() == [end - 1, end - 2, end]  # "left" is one piece
    assert mask.sum(1).tolist() == [3, 8, 2]


def prepared(finished_run, small_config, run_dir, *overrides):
    """Copy data and candidates of the finished run; give the job for another network."""
    from pipeline.commands import Settings
    from train.cli import job_config

    rounds = shutil.ignore_patterns("round-*", "summary.json")
    shutil.copytree(finished_run[0], run_dir, dirs_exist_ok=True, ignore=rounds)
    network = {"name": "clipseg", "size": "toy", "options": JOB}
    chosen = (f"train.network={json.dumps(network)}", "rounds.rounds=1", *overrides)
    return job_config(Settings(small_config, run_dir, chosen))


def test_the_whole_job_runs_with_clipseg(finished_run, small_config, tmp_path):
    """The same verbs, stores and losses; and resuming it does nothing."""
    import zarr

    from train.rounds import run_rounds
    from train.trained import load_trained, read_trained

    job = prepared(finished_run, small_config, tmp_path)
    summary = run_rounds(job, tmp_path, say=lambda _: None)
    assert not summary.failures
    figures = summary.rows[1]["metrics"]["val"]
    assert figures["sentences"] > 10
    trained = read_trained(tmp_path / "round-1" / "student", "")
    assert (trained.network.name, trained.side, trained.stride_size) == ("clipseg", 32, (32, 32))
    network, text = load_trained(trained, "cpu")
    assert isinstance(network, ClipSeg)
    assert text.vocab_size == network.config.vocab_size
    teacher = zarr.open_group(tmp_path / "round-1" / "teacher.zarr", mode="r")
    assert teacher["logit"].shape[1:] == (32, 32)
    assert np.asarray(teacher["valid"][:]).all()
    plan = json.loads((tmp_path / "round-1" / "teacher.stage" / "plan.json").read_text())["plan"]
    assert plan["encode_once"] is True
    again = run_rounds(job, tmp_path, say=lambda _: None)
    assert again.rows == summary.rows


def test_clips_own_tokenizer_goes_through_training_and_evaluation(
    finished_run, small_config, tmp_path, clip_tokenizer
):
    from train.evaluate import evaluate_student
    from train.student import train_student

    overrides = (f"train.network.tokenizer={clip_tokenizer}", "train.network.max_tokens=24")
    job = prepared(finished_run, small_config, tmp_path, *overrides)
    assert train_student(job.train, tmp_path, 0).steps == 12
    assert evaluate_student(job.evaluate, tmp_path, 0, "val")["sentences"] > 10
    assert not (tmp_path / "round-0" / "student" / "vocab.txt").exists()


def test_weights_of_another_architecture_are_refused(finished_run, small_config, tmp_path):
    from train.checkpoint import load_weights, load_weights_file

    path = finished_run[0] / "round-0" / "student" / "teacher.safetensors"
    with pytest.raises(StoreError, match=r"teacher\.safetensors"):
        load_weights(build_clipseg("toy", JOB), load_weights_file(path), str(path))
