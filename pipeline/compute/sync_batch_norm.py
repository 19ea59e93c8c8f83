"""Batch statistics taken over all processes that share a batch, so that their number does not change the result."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.compute.distributed import World
from pipeline.errors import TrainingError

_GROUP = "process_group"  # an attribute that nn.SyncBatchNorm has beside those of other batch norms


@contextmanager
def synchronised_batch_norm(network: nn.Module, world: World) -> Iterator[None]:
    """Within the block, the batch norms of the network take their statistics over all processes.

    Only the class of each module is replaced: parameters, names and hooks stay as they are.

    Raises:
        TrainingError: the network has batch norms of a kind that cannot be synchronised.
    """
    if world.size == 1:
        yield
        return
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    others = {type(module).__name__ for module in norms if type(module) is not nn.BatchNorm2d}
    if others:
        raise TrainingError(
            f"{type(network).__name__} has {', '.join(sorted(others))}, whose statistics cannot be taken over several "
            "processes; set launcher.processes and launcher.machines to 1 or choose another network"
        )
    on_gpu = any(parameter.is_cuda for parameter in network.parameters())
    try:
        for module in norms:
            module.__class__ = nn.SyncBatchNorm if on_gpu else _SynchronisedOnCpu
            setattr(module, _GROUP, None)  # all processes
        yield
    finally:
        for module in norms:
            module.__class__ = nn.BatchNorm2d
            delattr(module, _GROUP)


class _SynchronisedOnCpu(nn.BatchNorm2d):
    """The same computation as nn.SyncBatchNorm, which itself is for GPUs only."""

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W], B of this process -> the same shape."""
        if not self.training:
            return super().forward(input)
        values = input.float()
        count = values.new_tensor([values.numel() / values.shape[1]])
        sums = _total(torch.cat([values.sum(dim=(0, 2, 3)), count]))
        total = sums[-1].detach()
        mean = sums[:-1] / total
        centred = values - mean.view(1, -1, 1, 1)
        variance = _total(centred.square().sum(dim=(0, 2, 3))) / total
        self._track(mean.detach(), variance.detach() * total / (total - 1))
        normalised = centred * torch.rsqrt(variance + self.eps).view(1, -1, 1, 1)
        if self.affine:
            normalised = torch.addcmul(self.bias.view(1, -1, 1, 1), normalised, self.weight.view(1, -1, 1, 1))
        return normalised.to(input.dtype)

    def _track(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        rate = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, rate)
        self.running_var.lerp_(unbiased_variance, rate)


class _Total(torch.autograd.Function):
    """The sum over all processes. Every process uses it, so its gradients are summed over all of them too."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def _total(values: Tensor) -> Tensor:
    total: Tensor = _Total.apply(values)
    return total
