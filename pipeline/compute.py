"""Where and in which precision networks are computed."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Literal

import torch

from pipeline.errors import ParamsError


def choose_device(name: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device that ``device`` in params.yaml asks for.

    Raises:
        ParamsError: cuda is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ParamsError("params.yaml: device is cuda, but torch sees no GPU here; set device to auto or cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def autocast(precision: Literal["auto", "fp32", "bf16"], device: torch.device) -> AbstractContextManager[object]:
    """Mixed precision for the forward pass; weights and losses stay in float32.

    ``auto`` is bf16 on a GPU that computes in it and fp32 elsewhere: most CPUs are slower in bf16.

    Raises:
        ParamsError: bf16 is asked for on a GPU that does not compute in it.
    """
    native = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bf16" and not native:
        raise ParamsError("params.yaml: precision is bf16, but this GPU does not compute in it; set precision to fp32")
    enabled = precision == "bf16" or (precision == "auto" and device.type == "cuda" and native)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)
