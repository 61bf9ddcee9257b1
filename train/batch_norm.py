"""Batch normalisation over the batch of all processes, so that their number changes nothing.

Shape letters: B batch, C channels, H W pixels.
"""

from typing import Any

import torch
from torch import distributed, nn
from torch.autograd.function import FunctionCtx


class _SumOverProcesses(torch.autograd.Function):
    """Add a tensor up over all processes; the gradient is added up in turn."""

    @staticmethod
    def forward(_ctx: FunctionCtx, tensor: torch.Tensor) -> torch.Tensor:
        total = tensor.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_ctx: FunctionCtx, gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.contiguous().clone()
        distributed.all_reduce(total)
        return total


def _sum_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    total: torch.Tensor = _SumOverProcesses.apply(tensor)  # type: ignore[no-untyped-call]
    return total


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose statistics are those of all processes' samples together.

    Torch's own `nn.SyncBatchNorm` works on GPUs only; this one is for the CPU. In eval mode it is
    the plain layer.
    """

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Normalise; shape (B, C, H, W) in and out, B may differ between processes."""
        if not self.training:
            return super().forward(x_BCHW)
        pixels = x_BCHW.new_tensor([x_BCHW.numel() / x_BCHW.shape[1]])
        sums = _sum_over_processes(torch.cat([x_BCHW.sum((0, 2, 3)), pixels]))
        count = sums[-1].detach()
        mean_C = sums[:-1] / count
        centered_BCHW = x_BCHW - mean_C[:, None, None]
        variance_C = _sum_over_processes(centered_BCHW.square().sum((0, 2, 3))) / count
        self._remember(mean_C.detach(), variance_C.detach() * count / (count - 1))
        scale_C = torch.rsqrt(variance_C + self.eps) * self.weight
        return centered_BCHW * scale_C[:, None, None] + self.bias[:, None, None]

    def _remember(self, mean_C: torch.Tensor, variance_C: torch.Tensor) -> None:
        assert self.running_mean is not None, "the decoder's layers keep running statistics"
        assert self.running_var is not None, "the decoder's layers keep running statistics"
        assert self.num_batches_tracked is not None, "the decoder's layers count"
        momentum = self.momentum if self.momentum is not None else 0.1
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean_C, momentum)
        self.running_var.lerp_(variance_C, momentum)


def synced(network: nn.Module, device: str) -> nn.Module:
    """Replace every batch normalisation by one over all processes; names of weights stay."""
    if device.startswith("cuda"):
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return converted
    for parent in list(network.modules()):
        for name, layer in parent.named_children():
            if type(layer) is nn.BatchNorm2d:
                setattr(parent, name, _synced_layer(layer))
    return network


def _synced_layer(layer: nn.BatchNorm2d) -> SyncedBatchNorm2d:
    new: Any = SyncedBatchNorm2d(layer.num_features, layer.eps, layer.momentum)
    new.load_state_dict(layer.state_dict())
    return new.to(layer.weight.device)  # type: ignore[no-any-return]


def freeze(network: nn.Module) -> None:
    """Put batch normalisations into eval mode: the running statistics are used and stay."""
    for layer in network.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.eval()
