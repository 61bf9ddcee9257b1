"""Shell: checkpoints as the Hugging Face hub keeps them: found, read strictly, fingerprinted."""

import hashlib
import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from pipeline.errors import ConfigError, SemiresError

FAMILIES: dict[str, tuple[str, ...]] = {
    "hub_sam": ("sam",),
    "hub_sam_hq": ("sam_hq",),
    # SAM 2's own checkpoints on the hub hold the video model, of which the image model is a part.
    "hub_sam2": ("sam2", "sam2_video"),
}
"""Model entry -> each `model_type` of `config.json` that it takes."""

CONFIG = "config.json"
PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLED = "pytorch_model.bin"
_FETCHED = [CONFIG, *PREPROCESSORS, _WHOLE, _INDEX, "model-*-of-*.safetensors"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_POSITIONS = (
    "shared_image_embedding.positional_embedding",
    "prompt_encoder.shared_embedding.positional_embedding",
)


def resolve_hub(checkpoint: str | Path, family: str) -> Path:
    """Give the folder of a checkpoint, fetched from the hub where it is not here.

    Only the configuration and safetensors are fetched, never code; what the hub's own cache holds
    already is used also without a network.

    Args:
        checkpoint: A folder, or a hub id such as `facebook/sam2.1-hiera-tiny`.
        family: A key of `FAMILIES`.

    Returns:
        A folder whose `config.json` is one of the family.

    Raises:
        ConfigError: If there is no such folder, the id cannot be fetched, or the checkpoint is of
            another family.
    """
    folder, name = Path(checkpoint), Path(checkpoint).as_posix()
    if folder.is_file():
        raise ConfigError(
            f"model {family} takes a folder with {CONFIG}, or a hub id, got the file {folder}"
        )
    if not folder.is_dir():
        if not _HUB_ID.fullmatch(name):
            raise ConfigError(
                f"no checkpoint folder {name}; model {family} takes a folder or a hub id"
            )
        folder = _fetch(name)
    read_config(folder, family)
    return folder


def _fetch(name: str) -> Path:
    """Fetch a hub id into the hub's own cache."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_FETCHED))
    except Exception as error:  # the client raises from three libraries, with no common base
        raise ConfigError(
            f"cannot fetch {name} from the hub ({type(error).__name__}); check the id, or run "
            f"`hf download {name}` on a machine with network and give the folder that it prints"
        ) from error


def read_config(folder: Path, family: str) -> dict[str, Any]:
    """Read `config.json` of a checkpoint.

    Args:
        folder: The checkpoint.
        family: A key of `FAMILIES`.

    Raises:
        ConfigError: If the file is missing, is no JSON object, or describes another family; the
            entry that takes it is named.
    """
    config = read_json(folder / CONFIG)
    found = config.get("model_type")
    if found in FAMILIES[family]:
        return config
    right = next((name for name, types in FAMILIES.items() if found in types), None)
    hint = f"use model {right}" if right else f"models are {', '.join(FAMILIES)}"
    raise ConfigError(
        f"{folder} is no checkpoint of model {family}: expected model_type "
        f"{' or '.join(FAMILIES[family])}, found {found!r}; {hint}"
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ConfigError: If the file is missing or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}; a checkpoint folder holds it"
        ) from error
    except (ValueError, RecursionError) as error:  # not JSON, or not UTF-8
        raise ConfigError(f"{path} is not JSON ({error}); download it again") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds a JSON object, found {type(found).__name__}")
    return found


def weight_files(folder: Path) -> list[Path]:
    """List the files that hold the weights, sorted; an index counts as one.

    Raises:
        ConfigError: If there are none, or the index names a file that is missing.
    """
    if (folder / _WHOLE).is_file():
        return [folder / _WHOLE]
    if (folder / _INDEX).is_file():
        shards = sorted(set(_weight_map(folder).values()))
        for shard in shards:
            if "/" in shard or not (folder / shard).is_file():
                raise ConfigError(f"{folder / _INDEX} names {shard!r}, which is not in the folder")
        return [folder / shard for shard in shards] + [folder / _INDEX]
    if (folder / _PICKLED).is_file():
        return [folder / _PICKLED]
    raise ConfigError(f"{folder} holds no weights: expected {_WHOLE}, {_INDEX} or {_PICKLED}")


def _weight_map(folder: Path) -> dict[str, str]:
    """Read which shard holds each tensor."""
    found = read_json(folder / _INDEX).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise ConfigError(f"{folder / _INDEX} has no weight_map of tensors to files")
    return found


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Read every tensor of a checkpoint, without running any code that a file may hold.

    The matrix of the positional encoding goes by two names; a checkpoint with one gets the other.

    Returns:
        Name -> tensor on the CPU, floating ones as float32.

    Raises:
        ConfigError: If a file is missing or damaged.
        SemiresError: If a weight is not finite.
    """
    state: dict[str, torch.Tensor] = {}
    for path in weight_files(folder):
        if path.suffix != ".json":
            state.update(_read_tensors(path))
    if (folder / _INDEX).is_file() and not (folder / _WHOLE).is_file():
        lost = sorted(set(_weight_map(folder)) - set(state))
        if lost:
            raise ConfigError(f"{folder} lacks {_few(lost)}, which {_INDEX} lists")
    for name, value in state.items():
        if value.is_floating_point():
            state[name] = value.to(torch.float32)
            if not bool(torch.isfinite(value).all()):
                raise SemiresError(f"{name} in {folder} is not finite, the checkpoint is damaged")
    for name, other in (_POSITIONS, _POSITIONS[::-1]):
        if name in state:
            state.setdefault(other, state[name])
    return state


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read one file of tensors."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"cannot read weights {path}: {reason}; download it again") from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ConfigError(f"{path} is not a state dict of tensors")
    return state


def check_one_position(state: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Refuse two different matrices where the network has one, as SAM and SAM-HQ do.

    Raises:
        ConfigError: If the two names hold different values.
    """
    one, other = (state.get(name) for name in _POSITIONS)
    if one is not None and other is not None and not torch.equal(one, other):
        raise ConfigError(f"{folder}: {_POSITIONS[0]} and {_POSITIONS[1]} differ, expected one")


def fill_network(network: nn.Module, state: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Put weights into a network that was built without storage; every tensor is accounted for.

    Args:
        network: Built on the `meta` device.
        state: Name -> tensor, exactly those of the network.
        folder: Where they come from, for the message.

    Raises:
        ConfigError: If names are missing or left over, or shapes differ.
    """
    expected = network.state_dict()
    complaints = []
    if missing := sorted(expected.keys() - state.keys()):
        complaints.append(f"missing {_few(missing)}")
    if unexpected := sorted(state.keys() - expected.keys()):
        complaints.append(f"unexpected {_few(unexpected)}")
    differ = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & state.keys())
        if state[name].shape != expected[name].shape
    ]
    if differ:
        complaints.append(f"of another shape {_few(differ)}")
    if complaints:
        raise ConfigError(
            f"the weights in {folder} do not fit its {CONFIG}: {'; '.join(complaints)}"
        )
    network.load_state_dict(dict(state), strict=True, assign=True)


def _few(names: list[str]) -> str:
    """Name up to three, and count the rest."""
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def hub_sha256(folder: Path) -> str:
    """Name a checkpoint by its content, for fingerprints.

    Args:
        folder: As `resolve_hub` gives it.

    Returns:
        SHA-256 over the names and contents of the configuration, what says how images are scaled,
        and the weights; 64 hexadecimal digits. Where the folder lies does not matter.

    Raises:
        ConfigError: If a file is missing or cannot be read.
    """
    extras = [folder / name for name in PREPROCESSORS if (folder / name).is_file()]
    digest = hashlib.sha256()
    for path in sorted([folder / CONFIG, *extras, *weight_files(folder)]):
        try:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error
        digest.update(f"{path.name}\0{content}\n".encode())
    return digest.hexdigest()
