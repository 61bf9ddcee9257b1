"""Presets: sourced values that a config may build on, and the table that documents them."""

from pathlib import Path

import pytest

from pipeline.commands import Settings
from pipeline.config import parse_config
from pipeline.errors import ConfigError
from train.config import TrainConfig
from train.presets import PRESETS, preset_section, train_section, with_preset, with_table

ROOT = Path(__file__).parents[2]


def section_of(tmp_path, text):
    path = tmp_path / "stages.yaml"
    path.write_text(f"version: 1\n{text}")
    return train_section(Settings(path, tmp_path, ()))


@pytest.mark.parametrize("name", PRESETS)
def test_every_value_of_a_preset_arrives(name):
    config = parse_config(TrainConfig, with_preset({"preset": name}, "train"), "train")
    for key, (value, source) in PRESETS[name].items():
        found = config
        for part in key.split("."):
            found = getattr(found, part)
        assert found == (tuple(value) if isinstance(value, list) else value), key
        assert source


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_everything_that_decides_a_training(name):
    """Besides files, speed, and what has one sensible value."""
    left_out = {
        "network": {"options", "tokenizer", "init"},
        "burn_in": {"unlabelled_batch", "warmup_steps"},
        "student": {"warmup_steps"},
        "": {"seed", "accumulate", "batch_norm", "attention", "channels_last", "compile", "damaged",
             "tensorboard", "save_every", "keep_checkpoints", "num_threads", "loader_workers",
             "cache_bytes", "device", "wandb"},
    }  # fmt: skip
    config = TrainConfig()
    section = preset_section(name)
    parts = {"": (config, section)}
    parts |= {
        k: (getattr(config, k), section[k]) for k in ("network", "burn_in", "student", "augment")
    }
    for where, (default, given) in parts.items():
        names = set(default.__dataclass_fields__) - left_out.get(where, set())
        assert names <= set(given), where


def test_what_the_config_says_wins_at_every_depth(tmp_path):
    config = section_of(
        tmp_path,
        "train: {preset: paper, ema_decay: 0.5, student: {steps: 7}, augment: {hue: 0.0},"
        " frozen: []}",
    )
    assert (config.ema_decay, config.student.steps, config.augment.hue) == (0.5, 7, 0.0)
    assert config.frozen == ()
    assert config.student.learning_rate == 5e-5
    assert config.student.labelled_batch == 12
    assert config.augment.saturation == 0.25


def test_without_a_preset_nothing_changes(tmp_path):
    assert section_of(tmp_path, "train: {}") == TrainConfig()


@pytest.mark.parametrize("name", ["papre", "3", "[paper]"])
def test_an_unknown_preset_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match=r"train.preset: expected one of paper, released, ours"):
        section_of(tmp_path, f"train: {{preset: {name}}}")


def test_the_paper_and_the_code_differ_where_the_document_says():
    differ = {
        key for key in PRESETS["paper"]
        if PRESETS["paper"][key][0] != PRESETS["released"][key][0]
    }  # fmt: skip
    assert differ == {"ema_decay", "class_weights", "balance", "patience"}


def test_the_document_holds_the_table():
    document = (ROOT / "docs" / "training.md").read_text()
    assert with_table(document) == document
    assert all(f"`{key}`" in document for preset in PRESETS.values() for key in preset)
