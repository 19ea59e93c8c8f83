"""Arithmetic shared by the losses: number type, temperatures, centred vectors, logit standardization."""

import math

import torch
from torch import Tensor

# A length up to this is rounding noise; a gradient divided by it would make the training diverge.
SHORTEST = 1e-8


def widen(values: Tensor) -> Tensor:
    """``values`` in float32, or unchanged where their type is wider; any shape."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def as_column(temperature: Tensor | float, logits: Tensor) -> Tensor:
    """The temperature as a column [B, 1] (or [1, 1] for a float) on the device and in the compute type of ``logits``.

    Raises:
        ValueError: the vector's length is not the batch size.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    if isinstance(temperature, Tensor):
        column = temperature.to(logits.device, dtype).reshape(-1, 1)
    else:  # as_tensor would copy it from the host, which then waits for all queued work of a GPU
        column = torch.full((1, 1), temperature, dtype=dtype, device=logits.device)
    if column.shape[0] not in (1, logits.shape[0]):
        raise ValueError(f"{column.shape[0]} temperatures for a batch of {logits.shape[0]}")
    return column


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


def standardize(logits: Tensor) -> Tensor:
    """(z - mean(z)) / (std(z) + 1e-7) per row, with the unbiased standard deviation (Sun et al., arXiv 2403.01427).

    Not a loss: the caller passes the standardized logits of student and teacher to a loss. A constant row becomes
    zeros and gets no gradient.

    Args:
        logits: [B, K], of any floating type; computed in float32 or wider.

    Returns:
        [B, K], mean 0 and standard deviation 1 in every row that is not constant.
    """
    centred, lengths = centre(widen(logits), dim=1)
    deviation = lengths / math.sqrt(max(logits.shape[1] - 1, 1))
    return centred / (deviation + 1e-7)
