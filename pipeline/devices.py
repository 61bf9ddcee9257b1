"""Shell: where networks run: the device, and torch's number of CPU threads."""

import functools

from pipeline.errors import ConfigError

# Torch is imported when it is asked: it takes seconds, which a mistake in a config need not wait.


def resolve_device(device: str) -> str:
    """Turn `auto` into the device that this machine has.

    Raises:
        ConfigError: If `cuda` is asked for where there is none.
    """
    import torch

    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ConfigError("device: expected a GPU for 'cuda', found none; use 'auto' or 'cpu'")
    if device != "auto":
        return device
    return "cuda" if available else "cpu"


def use_threads(count: int | None) -> None:
    """Use `count` threads for torch's operators; None goes back to what the process began with."""
    import torch

    at_start = _threads_at_start()
    torch.set_num_threads(at_start if count is None else count)


@functools.cache
def _threads_at_start() -> int:
    """Give torch's own number of threads, asked before the first change of it."""
    import torch

    return torch.get_num_threads()
