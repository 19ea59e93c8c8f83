"""Base losses of distillation. Each returns one value per sample, [B]; the mean is taken once, by the caller.

The temperature is one number per sample, [B], or a float that stands for the constant vector: "Energy X" is loss X
called with energy temperatures, not a loss of its own.
"""

from __future__ import annotations

from pipeline.losses.dkd import dkd
from pipeline.losses.kd import kd

__all__ = ["dkd", "kd"]
