"""The shared treatment of temperatures."""

from __future__ import annotations

import torch
from torch import Tensor


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
