"""Shell: read published files without running anything that is in them.

A `.pth` or `.bin` is a pickle, a little program. It is read by torch's restricted unpickler, which
builds tensors and plain values and calls nothing. The one class allowed besides is
`argparse.Namespace`, a bag of values, in which LAVT keeps its options.
"""

import argparse
import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from pipeline.errors import ConfigError, StoreError
from train.checkpoint import load_weights_file

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""What a BERT's weights are called in a folder or on the hub, the first that is there."""
DESCRIPTION_FILE = "config.json"
"""What describes them."""
ALLOWED = (argparse.Namespace,)
"""Classes that a pickle may name beside tensors and plain values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A published file as it was read."""

    path: Path
    content: Mapping[str, Any]
    """Dictionaries and tensors; tensors of a `.pth` stay on the disk until they are looked at."""
    options: dict[str, Any] | None = None
    """What it was trained with (`args`), if it says so."""
    description: Mapping[str, Any] | None = None
    """The config.json beside it, if there is one."""


def read_published(source: str, *, from_hub: bool = False) -> Published:
    """Read a file, a folder that transformers saved, or a model on the hub.

    Args:
        source: A path; where `from_hub` says so also a name such as `google-bert/bert-base-uncased`
            (a copy that was downloaded before needs no network).
        from_hub: Whether what is no path may be a name on the hub.

    Raises:
        ConfigError: If there is nothing by this name.
        StoreError: If it is damaged, or would run code; nothing of it has been run.
    """
    path, description = Path(source).expanduser(), None
    if path.is_dir():
        path, description = _in_folder(path)
    elif not path.exists():
        if not from_hub:
            raise ConfigError(f"{source}: no such file or folder")
        path, description = _from_hub(source)
    if path.suffix == ".safetensors":
        content: Any = load_weights_file(path)
    else:
        content = read_torch_file(path)
    if not isinstance(content, Mapping):
        raise StoreError(
            f"{path}: expected a dictionary of tensors, found {type(content).__name__}"
        )
    options = content.get("args")
    return Published(
        path=path,
        content=content,
        options=vars(options) if isinstance(options, argparse.Namespace) else None,
        description=None if description is None else _read_description(description),
    )


def read_torch_file(path: Path) -> Any:
    """Read what `torch.save` wrote, tensors and plain values only, onto the CPU.

    Raises:
        StoreError: If it is damaged or no such file, or names anything that is not allowed.
    """
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(ALLOWED)):
            warnings.simplefilter("ignore", UserWarning)  # of a pickle protocol that is not 2
            return torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except Exception as error:  # damaged bytes can end in any exception of the unpickler
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named is not None:
            name = named[1].rstrip(".")[:80]
            raise StoreError(
                f"{path}: refused: it names {name!r}, and to build that is to run "
                f"code; only tensors, plain values and argparse.Namespace are read, nothing was run"
            ) from error
        reason = next(iter(str(error).splitlines()), "")[:120]
        raise StoreError(
            f"{path}: not a readable torch file, truncated perhaps "
            f"({type(error).__name__}{': ' if reason else ''}{reason})"
        ) from error


def _in_folder(folder: Path) -> tuple[Path, Path | None]:
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            described = folder / DESCRIPTION_FILE
            return folder / name, described if described.is_file() else None
    raise ConfigError(f"{folder}: expected {' or '.join(WEIGHT_FILES)} in it, found neither")


def _from_hub(name: str) -> tuple[Path, Path | None]:
    error: Exception | None = None
    for file in WEIGHT_FILES:
        try:
            weights = Path(hf_hub_download(name, file))
            return weights, Path(hf_hub_download(name, DESCRIPTION_FILE))
        except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as found:
            error = found
    raise ConfigError(
        f"{name}: no such file or folder, and not to be had from the hub "
        f"({type(error).__name__}); give the path of a downloaded copy"
    ) from error


def _read_description(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{path}: not readable JSON ({error})") from error
    if not isinstance(document, dict):
        raise StoreError(f"{path}: expected a mapping, found {type(document).__name__}")
    return document
