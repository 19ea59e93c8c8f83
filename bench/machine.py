"""The machine that a benchmark ran on: what its speed depends on."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch

from pipeline.compute.device import has_bf16
from pipeline.device.machine.probe import provenance

_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
# what makes bf16 and int8 fast on a CPU
_FLAGS = ("avx512_bf16", "amx_bf16", "bf16", "avx512_vnni", "avx_vnni", "amx_int8", "i8mm")


def facts(device: torch.device) -> dict[str, Any]:
    """CPU, its bf16 and VNNI flags, cores, versions, threads and GPU."""
    found = provenance()
    return {
        "cpu": found["cpu"],
        "flags": [flag for flag in _FLAGS if flag in (found["cpu_flags"] or ())],
        "cores": len(os.sched_getaffinity(0)),
        "kernel": found["kernel"],
        "python": found["python"],
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "matrix_gflops": {
            name: round(_matrix_gflops(dtype, device))
            for name, dtype in _PRECISIONS.items()
            if dtype != torch.bfloat16 or has_bf16(device)  # emulated, the product takes minutes
        },
    }


def _matrix_gflops(dtype: torch.dtype, device: torch.device) -> float:
    """What the product of two large matrices reaches, the median of five: no network can do more."""
    size = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(7):
        started = time.perf_counter()
        (left @ right)[0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(seconds[2:]) / 1e9


def load() -> float:
    """Mean number of processes that wanted to run in the last minute: more than the cores is a disturbed figure."""
    return round(os.getloadavg()[0], 2)


def described(found: Mapping[str, Any]) -> str:
    """The facts in one line."""
    products = ", ".join(f"{gflops:,} in {name}" for name, gflops in found["matrix_gflops"].items())
    return (
        f"Machine: {found['cpu']}, bf16 and VNNI flags {', '.join(found['flags']) or 'none'}, {found['cores']} cores, "
        f"GPU {found['gpu'] or 'none'}; torch {found['torch']} with {found['threads']} threads, Python "
        f"{found['python']}, kernel {found['kernel']}; load average {found['load_before']} before and "
        f"{found['load_after']} after. A large matrix product reaches, in GFLOP/s: {products}."
    )


def memory_kind(device: str) -> str:
    """What the memory figures are of."""
    if device == "cuda":
        return "memory of the GPU that torch had given out"
    return "resident memory of the process, its loader's workers not counted"
