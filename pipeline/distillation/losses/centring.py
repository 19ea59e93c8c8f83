"""Centred vectors and their lengths, safe where a vector is constant."""

from __future__ import annotations

import torch
from torch import Tensor

# A deviation this small is noise of the arithmetic; a gradient divided by it would end a training run.
SHORTEST = 1e-8


def centre(values: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """``values`` minus their mean along ``dim``, and the Euclidean length of that difference.

    A constant slice (no deviation beyond rounding, or a length of at most 1e-8) has no direction: it comes back as
    zeros of length one, both without gradient, so that a division by the length is finite forwards and backwards.

    Args:
        values: of any shape, float32 or wider.

    Returns:
        The centred values, of the shape of ``values``, and the lengths, > 0, with size 1 along ``dim``.
    """
    centred = values - values.mean(dim, keepdim=True)
    squares = centred.square().sum(dim, keepdim=True)
    rounding = 4 * torch.finfo(values.dtype).eps * values.detach().abs().amax(dim, keepdim=True)
    constant = squares <= (values.shape[dim] * rounding.square()).clamp_min(SHORTEST**2)
    lengths = torch.where(constant, torch.ones_like(squares), squares).sqrt()
    return torch.where(constant, torch.zeros_like(centred), centred), lengths
