"""Shell: let a network start from imported weights."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from pipeline.errors import StoreError
from train.checkpoint import load_weights_file


def start_from(network: nn.Module, files: Sequence[Path]) -> tuple[str, ...]:
    """Copy weights that `import-weights` wrote into a network, whole parts at a time.

    A part is the first word of a tensor's name: vision, text, fusions, decoder. A file gives a part
    completely or not at all, and two files never the same one.

    Args:
        network: Changed in place, and only if every file fits.
        files: For example one of a Swin and one of BERT.

    Returns:
        The parts that no file gives, which keep their weights, in the network's order.

    Raises:
        StoreError: If a file cannot be read, or a tensor is missing, unknown, given twice or of
            another shape; the first is named.
    """
    own = network.state_dict()
    given: dict[str, torch.Tensor] = {}
    parts: dict[str, Path] = {}
    for path in files:
        tensors = load_weights_file(path)
        mine = {name.split(".")[0] for name in tensors}
        for part in sorted(mine):
            if part in parts:
                raise StoreError(f"{path}: gives {part!r}, which {parts[part]} gives already")
            parts[part] = path
        _check(own, tensors, mine, path)
        given |= tensors
    network.load_state_dict({**own, **given}, strict=True)
    return tuple(dict.fromkeys(part for name in own if (part := name.split(".")[0]) not in parts))


def _check(
    own: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor], parts: set[str], path: Path
) -> None:
    expected = {name for name in own if name.split(".")[0] in parts}
    for word, names in (
        ("has an unknown", tensors.keys() - expected),
        ("lacks", expected - tensors.keys()),
    ):
        if names:
            raise StoreError(f"{path}: {word} {min(names)} ({len(names)} such)")
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise StoreError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, the network's is "
                f"{tuple(own[name].shape)}; import it with this train.network"
            )
