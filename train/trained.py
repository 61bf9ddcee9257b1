"""Shell: a finished training on the disk, and the network made of it.

student/
    teacher.safetensors   EMA weights: what predicts, and what the next round starts from
    vocab.txt             the tokenizer, where it was built from the data
    log.csv               losses and learning rate
    student.json          config, inputs, fingerprint, sha256 of the files; written last
    checkpoints/          to resume from
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.columns import file_sha256
from pipeline.config import parse_config
from pipeline.errors import SemiresError, StoreError
from pipeline.json_files import read_checked
from pipeline.local_copies import local_copy
from pipeline.places import Place, is_local
from pipeline.records import read_json
from train.checkpoint import load_weights, load_weights_file
from train.config import NetworkConfig
from train.networks import NETWORKS
from train.text import (
    VOCABULARY_FILE,
    TextEncoder,
    absolute_source,
    load_text_encoder,
    tokenizer_sha256,
)
from train.workspace import DESCRIPTION as DESCRIPTION

WEIGHTS = "teacher.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A finished training."""

    folder: Place
    fingerprint: str
    """Of everything that decided the weights."""
    files: dict[str, str]
    """sha256 of the weights and, where it was built from the data, the vocabulary, by name."""
    network: NetworkConfig
    side: int
    """S, side of the network's square input, pixels."""
    stride_size: tuple[int, int]
    """(h, w) of the logits."""
    plan: dict[str, Any]
    """What the fingerprint is of, as plain values."""

    @property
    def weights_sha256(self) -> str:
        """sha256 of the weights."""
        return self.files[WEIGHTS]


def build_network(config: NetworkConfig, vocab_size: int | None) -> nn.Module:
    """Build a network with random weights from torch's generator.

    Args:
        config: Name, size and options.
        vocab_size: Rows of the word embedding; None keeps the size's own.
    """
    options = dict(config.options)
    if vocab_size is not None:
        options["vocab_size"] = vocab_size
    return NETWORKS[config.name](config.size, options)


def tokenizer_source(config: NetworkConfig, folder: Path) -> Path:
    """Give what `load_text_encoder` reads: the configured tokenizer, else the folder's own.

    A path is absolute: a trained network is used by processes that were started elsewhere.
    """
    if config.tokenizer is None:
        return folder / VOCABULARY_FILE
    return absolute_source(config.tokenizer)


def local_file(trained: Trained, name: str) -> Path:
    """Give a file of a training on this machine, copied here if it is in an object store."""
    return local_copy(trained.folder / name, trained.files[name])


def read_trained(folder: Place, made_by: str) -> Trained:
    """Read what a finished training says of itself.

    Raises:
        StoreError: If it is not finished; names the command to run.
    """
    if not (folder / DESCRIPTION).exists():
        raise StoreError(f"{folder}: no finished training; run '{made_by}'")
    document = read_json(folder / DESCRIPTION)
    try:
        return Trained(
            folder=folder,
            fingerprint=document["fingerprint"],
            files=dict(document["files"]),
            network=parse_config(NetworkConfig, document["network"], str(folder / DESCRIPTION)),
            side=document["side"],
            stride_size=(document["stride_size"][0], document["stride_size"][1]),
            plan=document["plan"],
        )
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise StoreError(f"{folder / DESCRIPTION}: damaged ({error}); run '{made_by}'") from error


def check_files(trained: Trained) -> None:
    """Compare the files of a training with their hashes.

    Raises:
        StoreError: If one is missing or damaged; names it and the command to run.
    """
    for name, expected in trained.files.items():
        path = trained.folder / name
        if not path.exists() or file_sha256(path) != expected:
            made_by = f"train-student --round {trained.plan.get('round')}"
            if "held_out" in trained.plan:
                made_by = f"train-student --fold {trained.plan['held_out']}"
            raise StoreError(f"{path}: missing or damaged (sha256 differs); run '{made_by}'")


def is_finished(folder: Place) -> bool:
    """Tell whether a training is finished, and its description and files are intact."""
    try:
        read_checked(folder / DESCRIPTION)
        check_files(read_trained(folder, ""))
    except SemiresError:
        return False
    return True


def load_trained(trained: Trained, device: str) -> tuple[nn.Module, TextEncoder]:
    """Build a trained network in eval mode, with its tokenizer.

    Raises:
        StoreError: If a file is missing, damaged or of another network, or its tokenizer is not
            the one that it was trained with.
    """
    if is_local(trained.folder):  # what is copied from an object store is checked on the way
        check_files(trained)
    path = trained.folder / WEIGHTS
    text = load_text_encoder(_tokenizer_of(trained), trained.network.max_tokens)
    network = build_network(trained.network, text.vocab_size)
    load_weights(network, load_weights_file(local_file(trained, WEIGHTS)), str(path))
    return network.to(device).eval(), text


def _tokenizer_of(trained: Trained) -> Path:
    """Give what a trained network's tokenizer is loaded from; one from a path is compared first."""
    source, inputs = trained.network.tokenizer, trained.plan.get("inputs")
    if source is None:
        return local_file(trained, VOCABULARY_FILE)
    recorded = inputs.get("tokenizer") if isinstance(inputs, dict) else None
    if recorded is not None and (found := tokenizer_sha256(source)) != recorded:
        raise StoreError(
            f"{trained.folder}: expected the tokenizer that it was trained with at "
            f"{source.absolute()}, found {'none' if found is None else 'another'}; put it back, or "
            "train again"
        )
    return source


@torch.inference_mode()
def predict_margins(
    network: nn.Module,
    images_B3SS: torch.Tensor,
    token_ids_BL: torch.Tensor,
    token_mask_BL: torch.Tensor,
) -> torch.Tensor:
    """Give the logit margin foreground minus background at the network's stride.

    Returns:
        (B, h, w) float32 on the CPU; positive where the softmax's argmax is foreground.
    """
    device = next(network.parameters()).device
    logits_B2hw = network(
        images_B3SS.to(device), token_ids_BL.to(device), token_mask_BL.to(device)
    ).float()
    margin_Bhw: torch.Tensor = (logits_B2hw[:, 1] - logits_B2hw[:, 0]).cpu()
    return margin_Bhw
