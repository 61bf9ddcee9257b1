"""Shell: how a network is run: attention, memory layout, compilation, precision, processes.

None of it changes what is computed but for rounding, and all of it is off unless asked for.
"""

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from train.batch_norm import synced
from train.config import TrainConfig
from train.processes import Processes


def prepare_student(student: nn.Module, config: TrainConfig, device: str) -> nn.Module:
    """Put a new network on its device in the layout and with the attention that is configured.

    Comes before the teacher is copied from it and the optimizer takes its parameters.
    """
    if config.attention != "sdpa":
        for module in student.modules():
            if isinstance(module, PreTrainedModel):
                module.set_attn_implementation(config.attention)
    student = student.to(device)
    if config.channels_last:
        student = student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return student


def wrap_student(
    student: nn.Module, config: TrainConfig, device: str, processes: Processes
) -> nn.Module:
    """Give what a step calls: the student itself, compiled and shared out as is configured.

    The order is torch's advice: compiled in place, so that names stay, then inside
    DistributedDataParallel. Buffers need no broadcast: batch normalisation is over all processes.
    """
    if config.compile is not None:
        student.compile(backend=config.compile)
    if processes.count == 1:
        return student
    names = inspect.signature(DistributedDataParallel).parameters
    option = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    options: dict[str, Any] = {option: False}  # renamed in torch 2.13
    if device.startswith("cuda"):
        options["device_ids"] = [processes.local_rank]
    return DistributedDataParallel(student, **options)


def share_batch_norm(student: nn.Module, device: str, processes: Processes) -> nn.Module:
    """Let batch normalisation see all processes' samples, where there are several."""
    return synced(student, device) if processes.count > 1 else student


@contextmanager
def running(config: TrainConfig, device: str) -> Iterator[None]:
    """Run a forward pass in the configured precision, with the configured attention."""
    kind = device.partition(":")[0]
    with ExitStack() as stack:
        if config.precision == "bfloat16":
            stack.enter_context(torch.autocast(kind, dtype=torch.bfloat16))
        if config.attention == "eager":
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


def without_sync(wrapped: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """Keep gradients to this process until the last micro-batch, whose backward adds all up."""
    if last or not isinstance(wrapped, DistributedDataParallel):
        return nullcontext()
    return wrapped.no_sync()


def place_images(images_B3SS: torch.Tensor, config: TrainConfig) -> torch.Tensor:
    """Lay images out as the network is."""
    if config.channels_last:
        return images_B3SS.contiguous(memory_format=torch.channels_last)
    return images_B3SS
