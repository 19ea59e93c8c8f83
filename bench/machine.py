"""The machine that a benchmark ran on: what its speed depends on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from pipeline.device.probe import provenance

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
    }


def load() -> float:
    """Mean number of processes that wanted to run in the last minute: more than the cores is a disturbed figure."""
    return round(os.getloadavg()[0], 2)


def described(found: Mapping[str, Any]) -> str:
    """The facts in one line."""
    return (
        f"Machine: {found['cpu']}, bf16 and VNNI flags {', '.join(found['flags']) or 'none'}, {found['cores']} cores, "
        f"GPU {found['gpu'] or 'none'}; torch {found['torch']} with {found['threads']} threads, Python "
        f"{found['python']}, kernel {found['kernel']}; load average {found['load_before']} before and "
        f"{found['load_after']} after."
    )


def memory_kind(device: str) -> str:
    """What the memory figures are of."""
    if device == "cuda":
        return "memory of the GPU that torch had given out"
    return "resident memory of the process, its loader's workers not counted"
