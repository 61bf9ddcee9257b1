"""Shell: where networks run: the device, and torch's number of CPU threads."""

import torch

from pipeline.errors import ConfigError

_THREADS_AT_START = torch.get_num_threads()


def resolve_device(device: str) -> str:
    """Turn `auto` into the device that this machine has.

    Raises:
        ConfigError: If `cuda` is asked for where there is none.
    """
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ConfigError("device: expected a GPU for 'cuda', found none; use 'auto' or 'cpu'")
    if device != "auto":
        return device
    return "cuda" if available else "cpu"


def use_threads(count: int | None) -> None:
    """Use `count` threads for torch's operators; None goes back to what the process began with."""
    torch.set_num_threads(_THREADS_AT_START if count is None else count)
