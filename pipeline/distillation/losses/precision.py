"""The number type in which losses are computed."""

from __future__ import annotations

import torch
from torch import Tensor


def widen(values: Tensor) -> Tensor:
    """``values`` in float32, or unchanged where their type is wider; any shape."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
