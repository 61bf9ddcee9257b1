"""Checkpoints: a folder each, complete or not there, checked by content when read.

step-00000400/
    student.safetensors  teacher.safetensors ...   weights by name
    state.pt             optimizer, generators: tensors and plain values
    checkpoint.json      config, step, round, sha256 of the files above
    done                 sha256 of checkpoint.json, written last
"""

import json
import pickle
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.columns import file_sha256
from pipeline.errors import StoreError
from pipeline.found_values import shown, why
from pipeline.json_files import sync_folder

FORMAT = 1
"""Version of the folder's layout, in `checkpoint.json`."""
_ABOUT, _STATE, _DONE = "checkpoint.json", "state.pt", "done"
_FILE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FOLDER = re.compile(r"step-(\d{8,})")
Weights = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """All that a training needs to go on."""

    step: int
    """Updates done."""
    weights: Mapping[str, Mapping[str, torch.Tensor]]
    """State dicts by the name of the network, such as student and teacher."""
    state: Mapping[str, Any]
    """Tensors, numbers, strings, lists and dicts: what `torch.load(weights_only=True)` takes."""
    about: Mapping[str, Any]
    """JSON values to be read without torch: config, round, metrics."""


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _write_files(folder: Path, checkpoint: Checkpoint) -> None:
    """Write everything but the marker, and wait until it is on disk."""
    for name, tensors in checkpoint.weights.items():
        plain = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        save_file(plain, folder / f"{name}.safetensors")
    torch.save(dict(checkpoint.state), folder / _STATE)
    files = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
    about = {"format": FORMAT, "step": checkpoint.step, "files": files}
    _write_json(folder / _ABOUT, {**about, "about": dict(checkpoint.about)})
    for path in folder.iterdir():
        sync_folder(path)
    sync_folder(folder)


def save_checkpoint(
    root: Path, checkpoint: Checkpoint, *, keep: int | None = None, best: int | None = None
) -> Path:
    """Write a checkpoint so that a crash at any moment leaves it complete or unfound.

    Everything goes to a new temporary folder, is synced, and renamed; the marker comes last. One
    process per `root` saves at a time. The same checkpoint gives the same bytes: safetensors sorts
    its tensors, and torch.save stores no time and names the archive after the file (for the state
    it takes equal values of equal types in the same order; strings shared or not do not matter
    to a reader, yet they can alter the pickle by a few bytes).

    Args:
        root: Folder of all checkpoints; made if missing.
        checkpoint: What to write; one of the same step is replaced.
        keep: Complete checkpoints to leave, the newest ones, at least 1; None leaves all.
        best: Step of one that is left besides, however old.

    Returns:
        The folder written.

    Raises:
        StoreError: If `keep` is below 1.
    """
    if keep is not None and keep < 1:
        raise StoreError(f"checkpoints to keep are at least 1, got {keep}")
    root.mkdir(parents=True, exist_ok=True)
    for leftover in root.glob(".new-*"):
        shutil.rmtree(leftover)
    folder = folder_at(root, checkpoint.step)
    new = root / f".new-{folder.name}"
    new.mkdir()
    _write_files(new, checkpoint)
    if folder.exists():
        (folder / _DONE).unlink(missing_ok=True)  # first, so that half of it is never believed
        shutil.rmtree(folder)
    new.rename(folder)
    sync_folder(root)
    marker = folder / f".{_DONE}"
    marker.write_text(file_sha256(folder / _ABOUT) + "\n", encoding="utf-8")
    sync_folder(marker)
    marker.rename(folder / _DONE)
    sync_folder(folder)
    if keep is not None:
        _drop_old(root, folder, keep, None if best is None else folder_at(root, best))
    return folder


def folder_at(root: Path, step: int) -> Path:
    """Give the folder of a step's checkpoint."""
    return root / f"step-{step:08d}"


def _folders(root: Path) -> list[Path]:
    """List the checkpoints' folders, the newest step first, complete or not."""
    found = [(int(match[1]), path) for path in root.glob("step-*")
             if (match := _FOLDER.fullmatch(path.name))]  # fmt: skip
    return [path for _, path in sorted(found, reverse=True)]


def _drop_old(root: Path, newest: Path, keep: int, best: Path | None) -> None:
    """Delete complete checkpoints older than `newest` beyond `keep`, and incomplete older ones."""
    older = [path for path in _folders(root) if path.name < newest.name]
    complete = [path for path in older if (path / _DONE).exists()]
    for path in set(older) - set(complete[: keep - 1]) - {best}:
        (path / _DONE).unlink(missing_ok=True)
        shutil.rmtree(path)


def verify_checkpoint(folder: Path) -> dict[str, Any]:
    """Check a checkpoint's marker and the hash of every file.

    Args:
        folder: As `save_checkpoint` returned it.

    Returns:
        The contents of `checkpoint.json`: format, step, files, about.

    Raises:
        StoreError: If it is incomplete, damaged, or of another format; the message names the file.
    """
    try:
        expected = (folder / _DONE).read_text(encoding="utf-8", errors="replace").strip()
        found = file_sha256(folder / _ABOUT)
    except OSError as error:
        raise StoreError(
            f"{folder}: not a complete checkpoint, {error.filename} is missing"
        ) from error
    if found != expected:
        raise StoreError(f"{folder / _ABOUT}: sha256 {expected} expected, found {found}")
    about = _read_about(folder)
    for name, expected in about["files"].items():
        path = folder / name
        found = file_sha256(path) if path.exists() else "no file"
        if found != expected:
            raise StoreError(f"{path}: sha256 {expected} expected, found {found}")
    return about


def _read_about(folder: Path) -> dict[str, Any]:
    """Read `checkpoint.json` and check its structure; no name in it leads out of the folder."""
    path = folder / _ABOUT
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{path}: not readable JSON ({why(error)})") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        found = about.get("format") if isinstance(about, dict) else about
        raise StoreError(f"{folder}: checkpoint format {FORMAT} expected, found {shown(found)}")
    kinds = {"step": int, "files": dict, "about": dict}
    for key, kind in kinds.items():
        if not isinstance(about.get(key), kind):
            raise StoreError(
                f"{path}: expected {key} as {kind.__name__}, found {shown(about.get(key))}"
            )
    for name, digest in about["files"].items():
        if not _FILE.fullmatch(name) or not _SHA256.fullmatch(str(digest)):
            raise StoreError(
                f"{path}: expected names of files beside it and their sha256, found "
                f"{shown(name)}: {shown(digest)}"
            )
    return about


def latest(root: Path) -> Path | None:
    """Find the newest checkpoint that verifies, passing over incomplete and damaged ones.

    Args:
        root: Folder of all checkpoints; may be missing.

    Returns:
        Its folder, or None if there is none.
    """
    for folder in _folders(root):
        try:
            verify_checkpoint(folder)
        except StoreError:
            continue
        return folder
    return None


def load_weights_file(path: Path) -> Weights:
    """Read a safetensors file onto the CPU.

    Raises:
        StoreError: If it is missing or damaged.
    """
    try:
        return load_file(path, device="cpu")
    except (OSError, ValueError, SafetensorError) as error:
        raise StoreError(f"{path}: not a readable safetensors file ({why(error)})") from error


def load_checkpoint(folder: Path) -> Checkpoint:
    """Verify and read a checkpoint onto the CPU.

    Args:
        folder: As `save_checkpoint` or `latest` returned it.

    Returns:
        What was saved, the state by `torch.load(weights_only=True)`.

    Raises:
        StoreError: If it is incomplete or damaged, or its state holds other than plain values.
    """
    about = verify_checkpoint(folder)
    weights = {
        Path(name).stem: load_weights_file(folder / name)
        for name in about["files"]
        if name.endswith(".safetensors")
    }
    try:
        state = torch.load(folder / _STATE, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise StoreError(f"{folder / _STATE}: holds other than tensors and plain values") from error
    except Exception as error:  # damaged bytes raise anything
        raise StoreError(f"{folder / _STATE}: damaged ({type(error).__name__})") from error
    return Checkpoint(step=about["step"], weights=weights, state=state, about=about["about"])


def load_weights(network: nn.Module, tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Copy weights into a network of exactly the same names and shapes.

    Args:
        network: Changed in place, and only if everything fits.
        tensors: A state dict.
        source: Where it comes from, for the message.

    Raises:
        StoreError: If a tensor is missing, unknown, or of another shape; the first is named.
    """
    own = network.state_dict()
    for word, names in (
        ("lacks", own.keys() - tensors.keys()),
        ("has an unknown", tensors.keys() - own.keys()),
    ):
        if names:
            raise StoreError(f"{source}: {word} {min(names)} ({len(names)} such)")
    wrong = [name for name in sorted(own) if own[name].shape != tensors[name].shape]
    if wrong:
        name = wrong[0]
        raise StoreError(
            f"{source}: {name} has shape {tuple(tensors[name].shape)}, the network's is "
            f"{tuple(own[name].shape)} ({len(wrong)} such)"
        )
    network.load_state_dict(dict(tensors), strict=True)
