"""Size of a network: number of parameters and multiply-accumulates."""

from typing import Any

import torch
from torch import Tensor, nn


def count_parameters(module: nn.Module) -> int:
    """Count the learnable scalars; a shared tensor counts once, and buffers (running statistics) do not count."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_macs(module: nn.Module, shape: tuple[int, int, int]) -> int:
    """Count multiply-accumulates of the `nn.Conv2d` and `nn.Linear` layers for one image of ``shape`` [C, H, W].

    Biases, normalisation, activations, pooling and matrix products outside these layers (attention) do not count.
    The network runs once on zeros, on its own device and in eval mode; then its training modes are restored.

    Raises:
        ValueError: the image would have no pixel.
    """
    if min(shape) < 1:
        raise ValueError(f"the shape of an image has positive sizes [C, H, W], not {list(shape)}")
    total = 0

    def add(layer: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Conv2d):
            total += output.numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.Linear):
            total += output.numel() * layer.in_features

    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(add) for layer in layers]
    modes = {part: part.training for part in module.modules()}
    some_weight = next(module.parameters(), torch.empty(0))
    try:
        module.eval()
        with torch.no_grad():
            module(torch.zeros(1, *shape, device=some_weight.device, dtype=some_weight.dtype))
    finally:
        for part, training in modes.items():
            part.training = training
        for handle in handles:
            handle.remove()
    return total
