"""Where and in which precision networks are computed."""

import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from pipeline.errors import ParamsError

TrainingPrecision = Literal["fp32", "bf16"]
_GRAPHS = 64


def choose_device(name: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device that ``device`` in params.yaml asks for. Raises ParamsError: cuda is asked for and there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ParamsError("params.yaml: device is cuda, but torch sees no GPU here; set device to auto or cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 numbers in hardware; emulated, they are many times slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # x86 and ARM; torch 2.11 has no get_capabilities, and fp32 is used there
    found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def autocast(precision: TrainingPrecision, device: torch.device) -> AbstractContextManager[object]:
    """Mixed precision for the forward pass; weights and losses stay in float32.

    Raises:
        ParamsError: bf16 is asked for on a GPU that does not compute in it.
    """
    if precision == "bf16" and device.type == "cuda" and not has_bf16(device):
        raise ParamsError("params.yaml: precision is bf16, but this GPU does not compute in it; set precision to fp32")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


@contextmanager
def fastest_kernels() -> Iterator[None]:
    """Within the block, cuDNN times its kernels for each new batch size and keeps the fastest; no effect on a CPU.

    The choice may differ from run to run, and with it the last bits of the results.
    """
    yield from _cudnn("benchmark", True)


@contextmanager
def full_fp32() -> Iterator[None]:
    """Within the block, a GPU computes fp32 convolutions in fp32; by default torch rounds their inputs to TF32.

    ``conv.fp32_precision`` is not used: while it is set, torch's compiler fails where it reads ``allow_tf32``.
    """
    yield from _cudnn("allow_tf32", False)


def _cudnn(name: str, value: bool) -> Iterator[None]:
    before = getattr(torch.backends.cudnn, name)
    setattr(torch.backends.cudnn, name, value)
    try:
        yield
    finally:
        setattr(torch.backends.cudnn, name, before)


def can_compile(device: torch.device) -> bool:
    """Whether there is what torch.compile needs: Python.h, and a compiler of C++ for a CPU or of C for a GPU."""
    if device.type == "cuda":  # of the code that launches Triton's kernels
        names: tuple[str, ...] = ("cc", "gcc", "clang")
    else:  # as torch._inductor.config has it, which takes seconds to import
        names = (os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++"),)
    return any(map(shutil.which, names)) and Path(sysconfig.get_path("include"), "Python.h").exists()


@contextmanager
def compiled(*networks: nn.Module) -> Iterator[None]:
    """Within the block, the passes of these networks are computed by what torch.compile makes of them.

    Each batch size has its own graph, so a training step has two or three; they are made at the first pass, and serve
    later blocks too. A compiled network does not run hooks.
    """
    # all networks share the limit, whatever their depth; beyond it torch would compute eagerly, with a warning
    torch.compiler.config.recompile_limit = max(torch.compiler.config.recompile_limit, _GRAPHS)
    for network in networks:
        network.compile(dynamic=False)
    try:
        yield
    finally:
        for network in networks:
            network._compiled_call_impl = None
