"""A trained network is used with the tokenizer that it was trained with, wherever that is done."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from pipeline.commands import Settings
from pipeline.errors import StoreError
from pipeline.json_files import read_checked, write_checked
from pipeline.manifest import load_manifest
from pipeline.prepare import prepare_data
from pipeline.runner import run_stage
from train import predict
from train.cli import job_config
from train.config import TrainConfig
from train.predict import predict_teacher
from train.student import train_student
from train.text import build_vocabulary, load_text_encoder, save_vocabulary, tokenizer_sha256
from train.trained import load_trained, read_trained
from train.training_folder import student_plan

QUICK = ("train.burn_in.steps=2", "data.scenes={train: 4, val: 1}", "data.labelled.ratio=0.5")


@pytest.fixture(scope="module")
def job(small_config, tmp_path_factory):
    """A prepared run, its config, and two tokenizers beside it: a file and a folder."""
    base = tmp_path_factory.mktemp("tokenizers")
    config = job_config(Settings(small_config, base / "run", QUICK))
    prepare_data(config.data, base / "run")
    sentences = list(load_manifest(base / "run" / "manifest").expression_text)
    file = save_vocabulary(build_vocabulary(sentences), base)
    load_text_encoder(file).tokenizer.save_pretrained(base / "folder")
    return base, config


@pytest.fixture
def fresh(job, tmp_path, monkeypatch):
    """A copy of the job in a folder of its own, which is the working directory."""
    base, config = job
    shutil.copytree(base, tmp_path / "job")
    monkeypatch.chdir(tmp_path / "job")
    return tmp_path / "job", config


def with_tokenizer(config, tokenizer) -> TrainConfig:
    network = replace(config.train.network, tokenizer=Path(tokenizer))
    return replace(config.train, network=network)


def folder_of(base):
    return base / "run" / "round-0" / "student"


# Paths.


@pytest.mark.parametrize("tokenizer", ["vocab.txt", "folder", "./folder/../folder"])
def test_a_relative_path_means_the_same_to_workers_that_started_elsewhere(
    fresh, monkeypatch, tokenizer
):
    base, config = fresh
    train_student(with_tokenizer(config, tokenizer), base / "run", 0)
    trained = read_trained(folder_of(base), "")
    assert trained.network.tokenizer is not None
    assert trained.network.tokenizer.is_absolute()
    assert not (folder_of(base) / "vocab.txt").exists()

    def elsewhere(*arguments, **options):
        predict._load.cache_clear()
        monkeypatch.chdir("/")
        try:
            return run_stage(*arguments, **options)
        finally:
            monkeypatch.chdir(base)

    monkeypatch.setattr(predict, "run_stage", elsewhere)
    assert predict_teacher(config.teacher, base / "run", 1).failures == ()
    teacher = zarr.open_group(base / "run" / "round-1" / "teacher.zarr", mode="r")
    assert np.asarray(teacher["valid"][:]).all()


def test_a_name_on_the_hub_stays_one(fresh, monkeypatch):
    """What is no path here is looked up by name, by whoever looks."""
    base, config = fresh
    plan = student_plan(with_tokenizer(config, "google-bert/bert"), base / "run", 0, None)
    assert "tokenizer" not in plan["inputs"]
    assert plan["config"]["network"]["tokenizer"] == "google-bert/bert"
    (base / "google-bert" / "bert").mkdir(parents=True)
    plan = student_plan(with_tokenizer(config, "google-bert/bert"), base / "run", 0, None)
    assert "tokenizer" in plan["inputs"]


# Contents.


def test_a_file_counts_by_its_content_as_it_did(fresh):
    base, config = fresh
    plan = student_plan(with_tokenizer(config, "vocab.txt"), base / "run", 0, None)
    from pipeline.columns import file_sha256

    assert plan["inputs"]["tokenizer"] == file_sha256(base / "vocab.txt")
    (base / "alone").mkdir()
    shutil.copy(base / "vocab.txt", base / "alone")
    assert tokenizer_sha256(base / "alone") == file_sha256(base / "vocab.txt")


def test_another_folder_under_the_same_name_is_another_training(fresh):
    base, config = fresh
    train = with_tokenizer(config, "folder")
    train_student(train, base / "run", 0)
    assert train_student(train, base / "run", 0).already_done
    change_vocabulary(base / "folder")
    with pytest.raises(StoreError, match=r"trained otherwise \(inputs\.tokenizer: "):
        train_student(train, base / "run", 0)


def test_a_round_does_not_go_on_from_weights_of_another_tokenizer(fresh):
    base, config = fresh
    train = with_tokenizer(config, "folder")
    train_student(train, base / "run", 0)
    # It is looked at before the labels of round 1, which are not there.
    with pytest.raises(StoreError, match="run 'refine-labels --round 1' first"):
        student_plan(train, base / "run", 1, None)
    for other in (with_tokenizer(config, "vocab.txt"), config.train):
        with pytest.raises(
            StoreError, match=r"trained with another tokenizer \(sha256 [0-9a-f]{16}"
        ):
            student_plan(other, base / "run", 1, None)
    change_vocabulary(base / "folder")
    with pytest.raises(StoreError, match="trained with another tokenizer"):
        student_plan(train, base / "run", 1, None)


def change_vocabulary(folder):
    """Swap two words of a tokenizer that transformers saved: sentences get other ids."""
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text())
    vocabulary = document["model"]["vocab"]
    one, two = list(vocabulary)[5:7]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(("tokenizer", "found"), [("folder", "another"), ("vocab.txt", "none")])
def test_a_trained_network_refuses_another_tokenizer(fresh, tokenizer, found):
    base, config = fresh
    train_student(with_tokenizer(config, tokenizer), base / "run", 0)
    trained = read_trained(folder_of(base), "")
    load_trained(trained, "cpu")
    if found == "another":
        change_vocabulary(base / tokenizer)
    else:
        (base / tokenizer).unlink()
    with pytest.raises(StoreError, match=f"trained with at {base / tokenizer}, found {found}"):
        load_trained(trained, "cpu")


def test_what_was_trained_before_folders_were_hashed_stays_what_it_is(fresh):
    base, config = fresh
    train = with_tokenizer(config, "folder")
    train_student(train, base / "run", 0)
    for name in ("plan.json", "student.json"):
        path = folder_of(base) / name
        document = read_checked(path)
        plan = document.get("plan", document)
        del plan["inputs"]["tokenizer"]
        if name == "student.json":
            document["network"]["tokenizer"] = "folder"
        write_checked(path, document)
    assert train_student(train, base / "run", 0).already_done
    load_trained(read_trained(folder_of(base), ""), "cpu")
    other = replace(train, ema_decay=0.5)
    with pytest.raises(
        StoreError, match=r"trained otherwise \(config\.ema_decay: 0\.9, now 0\.5\)"
    ):
        train_student(other, base / "run", 0)
    with pytest.raises(StoreError, match=r"config\.network\.tokenizer: \"folder\", now \"vocab"):
        train_student(with_tokenizer(config, "vocab.txt"), base / "run", 0)
