"""Shell: the folder of one training: what decides it, whether it is done, what it leaves."""

import dataclasses
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors

from pipeline.columns import file_sha256
from pipeline.config import fingerprint, to_plain
from pipeline.errors import ConfigError, StoreError
from pipeline.folds import Fold
from pipeline.json_files import read_checked, write_checked
from pipeline.manifest import Manifest, load_manifest
from pipeline.paths import RunPaths
from pipeline.places import Place
from pipeline.records import (
    FailedItem,
    atomic_write,
    content_fingerprint,
    replacing,
    stored_plan,
    write_json,
)
from pipeline.runner import Replace
from train.checkpoint import latest
from train.config import PhaseConfig, TrainConfig
from train.step import Parts
from train.text import (
    VOCABULARY_FILE,
    build_vocabulary,
    load_text_encoder,
    save_vocabulary,
    tokenizer_sha256,
)
from train.trained import WEIGHTS, Trained, is_finished, read_trained, tokenizer_source
from train.training_changes import changes, refuse_changed
from train.workspace import DESCRIPTION, PLAN, drop, fetch, publish, workspace

ALGORITHM_VERSION = 1
"""Raised whenever the same config and inputs would give other weights."""

RUNNING = (
    "loader_workers", "cache_bytes", "save_every", "keep_checkpoints", "device", "tensorboard",
    "wandb",
)  # fmt: skip
"""Fields of `TrainConfig` that do not change the result (`device` changes its last bits only)."""
LOOKING = ("evaluate_every", "evaluate_expressions", "evaluate_by")
"""Fields that change it only where `patience` or `final: best` makes use of the looks."""
ADDED = (
    "frozen", "accumulate", "batch_norm", "precision", "attention", "channels_last", "compile",
    "patience", "final", "damaged", *LOOKING,
)  # fmt: skip
"""Fields younger than the first trainings: left out of a plan where they have their default, so
that what was trained before them stays what it is."""


def phase_of(config: TrainConfig, number: int) -> PhaseConfig:
    """Give the phase of a round: burn-in for round 0."""
    return config.student if number else config.burn_in


def student_plan(
    config: TrainConfig,
    run_dir: Place,
    number: int,
    limit: int | None,
    failures: tuple[FailedItem, ...] = (),
    fold: Fold | None = None,
) -> dict[str, Any]:
    """List everything that decides a round's weights, as plain values.

    `failures` are labelled images that cannot be read; a repaired image changes the plan. `fold`
    is the part of the labelled images that is held out, in a burn-in for calibration.

    Raises:
        StoreError: If labels or the previous round are missing, or that had another tokenizer.
    """
    paths = RunPaths(run_dir)
    inputs: dict[str, str] = {"manifest": load_manifest(paths.manifest).fingerprint}
    tokenizer = config.network.tokenizer
    if tokenizer is not None and (content := tokenizer_sha256(tokenizer)) is not None:
        inputs["tokenizer"] = content
    if number:
        previous = read_whole(paths.student(number - 1), f"train-student --round {number - 1}")
        _refuse_other_tokenizer(previous, inputs.get("tokenizer"))
        labels = stored_plan(paths.labels(number), f"refine-labels --round {number}")
        _refuse_other_labels(paths, labels, number, inputs["manifest"], previous.fingerprint)
        inputs["labels"] = content_fingerprint(labels)
        inputs["previous_student"] = previous.fingerprint
    if number == 0 and config.network.init:
        inputs |= {f"init_{at}": _hash_of_init(p) for at, p in enumerate(config.network.init)}
    settings = _deciding(config)
    del settings["student" if number == 0 else "burn_in"]
    return {
        "algorithm_version": ALGORITHM_VERSION,
        **({} if fold is None else {"held_out": str(fold)}),
        "round": number,
        "limit": limit,
        "left_out": [failure.item for failure in failures],
        "config": settings,
        "inputs": inputs,
    }


def _deciding(config: TrainConfig) -> dict[str, Any]:
    """Give the settings that decide the weights, as plain values."""
    settings: dict[str, Any] = to_plain(config)
    del settings["network"]["init"]  # its files count by their content, and in round 0 only
    left_out = {*RUNNING}
    if config.patience is None and config.final == "last":
        left_out |= {*LOOKING}
    for field in dataclasses.fields(config):
        default = to_plain(field.default)
        if field.name in left_out or (field.name in ADDED and settings[field.name] == default):
            del settings[field.name]
    return settings


def _hash_of_init(path: Path) -> str:
    if not path.is_file():
        raise ConfigError(
            f"train.network.init: expected a file of import-weights, found none at {path}"
        )
    return file_sha256(path)


def _refuse_other_tokenizer(previous: Trained, tokenizer: str | None) -> None:
    """Refuse to go on from weights that know other ids of words; a name on the hub is believed.

    Raises:
        StoreError: Names the training.
    """
    inputs = previous.plan.get("inputs")
    before = inputs.get("tokenizer") if isinstance(inputs, dict) else None
    if before is not None and tokenizer != before:
        raise StoreError(
            f"{previous.folder}: trained with another tokenizer (sha256 {before[:16]}, now "
            f"{'none' if tokenizer is None else tokenizer[:16]}); go back to it in "
            "train.network.tokenizer, or train every round anew"
        )


def _refuse_other_labels(
    paths: RunPaths, labels: dict[str, Any], number: int, manifest: str, previous: str
) -> None:
    """Refuse labels of another data set, round or teacher: their rows mean something else.

    Raises:
        StoreError: Names what differs and the command to run.
    """
    where, plan = paths.labels(number), labels["plan"]
    made = {"data set": plan["inputs"]["manifest"], "round": plan["stage"]}
    wanted = {"data set": manifest, "round": f"refine-{number}"}
    teacher = paths.teacher(number)
    if teacher.exists():
        predictions = stored_plan(teacher, f"predict-teacher --round {number}")
        made |= {"teacher": plan["inputs"]["teacher"]}
        wanted |= {"teacher": content_fingerprint(predictions)}
        made |= {"student before it": predictions["plan"]["inputs"]["student"]}
        wanted |= {"student before it": previous}
    for what, expected in wanted.items():
        if made[what] != expected:
            raise StoreError(
                f"{where}: labels of another {what} (fingerprint {made[what][:16]}, expected "
                f"{expected[:16]}); run 'predict-teacher --round {number} --force' and "
                f"'refine-labels --round {number} --force'"
            )


def read_whole(folder: Place, made_by: str) -> Trained:
    """Read what a finished training says of itself, its own hash compared.

    Raises:
        StoreError: If it is not finished, or its description is damaged; names the command to run.
    """
    trained = read_trained(folder, made_by)
    try:
        read_checked(folder / DESCRIPTION)
    except StoreError as error:
        raise StoreError(
            f"{folder / DESCRIPTION}: expected what the training wrote, found another (its own "
            f"hash differs); run '{made_by} --force'"
        ) from error
    return trained


def is_done(folder: Place, plan: dict[str, Any], replace: Replace) -> bool:
    """Tell whether this training is finished and intact.

    Raises:
        StoreError: If another is in the way and may not be replaced.
    """
    if not (folder / PLAN).exists() or replace == "always":
        return False
    if replace == "never":
        refuse_changed(folder, plan)
    return not changes(folder, plan) and is_finished(folder)


@contextmanager
def begun(folder: Place, plan: dict[str, Any]) -> Iterator[None]:
    """Go on with an unfinished training of this plan, or put away what is there and start.

    Its workspace is there in the block; what it holds in the end is sent to `folder`.
    """
    path = folder / PLAN
    unfinished = path.exists() and not (folder / DESCRIPTION).exists()
    try:
        if unfinished and not changes(folder, plan):
            fetch(folder)
            yield
        else:
            worth_keeping = workspace(folder) / "checkpoints"
            with replacing((folder,), lambda: latest(worth_keeping) is not None):
                write_json(path, plan)
                fetch(folder)
                yield
        publish(folder)
    finally:
        drop(folder)


def folder_of(run_dir: Place, number: int, fold: Fold | None) -> Place:
    """Give the folder of a round's training, or of a fold's burn-in."""
    paths = RunPaths(run_dir)
    return paths.student(number) if fold is None else paths.fold_student(fold)


def prepare_tokenizer(
    config: TrainConfig, run_dir: Place, number: int, fold: Fold | None = None
) -> tuple[int, Path]:
    """Put the round's vocabulary into the workspace; later rounds keep that of round 0."""
    folder = workspace(folder_of(run_dir, number, fold))
    source = tokenizer_source(config.network, folder)
    if config.network.tokenizer is None and not source.exists():
        if number:
            previous = RunPaths(run_dir).student(number - 1) / VOCABULARY_FILE
            atomic_write(source, previous.read_bytes())
        else:
            manifest = load_manifest(RunPaths(run_dir).manifest)
            save_vocabulary(build_vocabulary(_train_sentences(manifest)), folder)
    return load_text_encoder(source, config.network.max_tokens).vocab_size, source


def _train_sentences(manifest: Manifest) -> list[str]:
    return [manifest.expression_text[row] for row in manifest.expressions_of("train")]


def finish(
    parts: Parts,
    folder: Path,
    plan: dict[str, Any],
    config: TrainConfig,
    side: int,
    facts: dict[str, Any],
) -> None:
    """Write the teacher's weights and, last, the description that makes them count.

    Args:
        parts: With the teacher that the training leaves.
        folder: The training's workspace; its checkpoints go.
        plan: What decided the weights.
        config: For the network's description.
        side: S, pixels.
        facts: More to be described: what the looks at the validation split came to.
    """
    weights = {name: t.cpu().contiguous() for name, t in parts.teacher.state_dict().items()}
    atomic_write(folder / WEIGHTS, save_tensors(weights))
    with torch.inference_mode():
        ids = torch.zeros((1, config.network.max_tokens), dtype=torch.int64, device=parts.device)
        blank = torch.zeros((1, 3, side, side), device=parts.device)
        shape = parts.teacher(blank, ids, torch.ones_like(ids)).shape
    network = to_plain(config.network) | {"tokenizer": None}
    del network["init"]
    if config.network.tokenizer is not None:
        network["tokenizer"] = str(tokenizer_source(config.network, folder))
    document = {
        "fingerprint": fingerprint(plan),
        "plan": plan,
        "network": network,
        "side": side,
        "stride_size": [int(shape[2]), int(shape[3])],
        "files": {
            name: file_sha256(folder / name)
            for name in (WEIGHTS, VOCABULARY_FILE)
            if (folder / name).exists()
        },
        "parameters": sum(p.numel() for p in parts.teacher.parameters()),
        "torch": torch.__version__,
        **facts,
    }
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    write_checked(folder / DESCRIPTION, document)
