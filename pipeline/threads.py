"""Shell: the number of CPU threads of torch, which stages in one process set in turn."""

import torch

_AT_START = torch.get_num_threads()


def use_threads(count: int | None) -> None:
    """Use `count` threads for torch's operators; None goes back to what the process began with."""
    torch.set_num_threads(_AT_START if count is None else count)
