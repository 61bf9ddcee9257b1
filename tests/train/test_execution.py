"""However a network is run, it trains the same but for rounding, and resumes."""

import csv
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.commands import Settings
from pipeline.errors import ConfigError
from train import loop
from train.config import TrainConfig
from train.execution import running
from train.networks import build_lavt
from train.student import train_student

STEPS = 5
WAYS = {
    "bfloat16": ({"precision": "bfloat16"}, 2e-2),
    "eager": ({"attention": "eager"}, 1e-4),
    "channels_last": ({"channels_last": True}, 1e-4),
    "traced": ({"compile": "aot_eager"}, 1e-4),
    "all": ({"precision": "bfloat16", "channels_last": True, "compile": "aot_eager"}, 2e-2),
}


@pytest.fixture
def config(small_config, tmp_path):
    found = Settings(small_config, tmp_path, ()).section("train", TrainConfig)
    phase = replace(found.burn_in, steps=STEPS, learning_rate=1e-4)
    return replace(found, burn_in=phase, save_every=2, dice=1.0)


@pytest.fixture
def run_dir(finished_run, tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    for name in ("manifest", "scenes"):
        shutil.copytree(finished_run[0] / name, path / name)
    return path


def curve(run_dir):
    with (run_dir / "round-0" / "student" / "log.csv").open() as handle:
        return np.array([float(row["loss"]) for row in csv.DictReader(handle)])


@pytest.mark.parametrize(
    "way",
    [pytest.param(way, marks=pytest.mark.slow) if way == "all" else way for way in WAYS],
)
def test_every_way_of_running_gives_the_same_curve_and_resumes(run_dir, config, monkeypatch, way):
    train_student(config, run_dir, 0)
    plain = curve(run_dir)
    options, tolerance = WAYS[way]
    changed = replace(config, **options)
    train_student(changed, run_dir, 0, replace="differing")
    whole = curve(run_dir)
    assert len(whole) == STEPS
    assert whole == pytest.approx(plain, rel=tolerance)
    if tolerance > 1e-3:
        assert not np.array_equal(whole, plain)  # it did run otherwise
    left = (run_dir / "round-0/student/teacher.safetensors").read_bytes()

    class KilledError(Exception):
        pass

    real = loop.train_step

    def step_or_die(*arguments):
        if arguments[4] == 3:
            raise KilledError
        return real(*arguments)

    monkeypatch.setattr(loop, "train_step", step_or_die)
    with pytest.raises(KilledError):
        train_student(changed, run_dir, 0, replace="always")
    monkeypatch.setattr(loop, "train_step", real)
    assert train_student(changed, run_dir, 0).resumed_at == 2
    assert np.array_equal(curve(run_dir), whole)
    assert (run_dir / "round-0/student/teacher.safetensors").read_bytes() == left


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch's own code generator uses what torch deprecates
def test_generated_code_gives_the_same_curve(run_dir, config):
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    train_student(config, run_dir, 0)
    plain = curve(run_dir)
    train_student(replace(config, compile="inductor"), run_dir, 0, replace="differing")
    assert curve(run_dir) == pytest.approx(plain, rel=1e-3)


def test_micro_batches_add_up_to_the_batch_without_batch_statistics(run_dir, config):
    """Two micro-batches of two are one of four, weights too, when batch norm is frozen."""
    frozen = replace(config, batch_norm="frozen", labelled_view="strong", class_weights=(0.5, 2.0))
    train_student(frozen, run_dir, 0)
    whole = curve(run_dir)
    train_student(replace(frozen, accumulate=2), run_dir, 0, replace="differing")
    assert curve(run_dir) == pytest.approx(whole, rel=1e-5)
    train_student(replace(config, accumulate=2), run_dir, 0, replace="differing")
    assert curve(run_dir) != pytest.approx(whole, rel=1e-5)  # with statistics of two images


def test_frozen_batch_norm_keeps_its_statistics(run_dir, config):
    from safetensors.torch import load_file

    train_student(replace(config, batch_norm="frozen"), run_dir, 0)
    weights = load_file(run_dir / "round-0/student/teacher.safetensors")
    means = [tensor for name, tensor in weights.items() if name.endswith("running_mean")]
    assert means
    assert not any(mean.any() for mean in means)


def test_eager_attention_is_another_kernel_of_the_same_arithmetic():
    torch.manual_seed(0)
    network = build_lavt("toy", {"vocab_size": 20, "image_size": 64}).eval()
    images, ids = torch.randn(2, 3, 64, 64), torch.randint(20, (2, 6))
    mask = torch.ones_like(ids)
    config = TrainConfig(attention="eager")
    with torch.no_grad():
        fused = network(images, ids, mask)
        network.vision.set_attn_implementation("eager")
        network.text.set_attn_implementation("eager")
        with running(config, "cpu"):
            assert torch.backends.cuda.math_sdp_enabled()
            parts = network(images, ids, mask)
    assert torch.allclose(fused, parts, atol=1e-4)


def test_too_small_a_batch_is_refused(run_dir, config):
    with pytest.raises(ConfigError, match="expected at least 5 samples per step"):
        train_student(replace(config, accumulate=5), run_dir, 0)
