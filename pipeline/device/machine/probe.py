"""What machine this is. Reads only; what cannot be read is None; host and user names are left out."""

from __future__ import annotations

import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.device.machine.emulation import emulated
from pipeline.device.machine.sensors import sensors
from pipeline.device.machine.system import (
    affinity,
    attempt,
    field_of,
    frequency_folders,
    meminfo_kb,
    nvidia_smi,
    read_number,
    read_text,
    run_command,
)

# CPU flags that decide which kernels a runtime picks, as x86 and ARM kernels spell them.
CPU_FLAGS = (
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimdhp",
    "asimddp",
    "sve",
    "bf16",
    "i8mm",
)
_NVIDIA_IDENTITY = ("name", "driver_version", "memory.total", "power.limit", "persistence_mode")


def provenance(root: Path = Path("/")) -> dict[str, Any]:
    """All that a latency depends on and that can be read without privileges, ready for JSON.

    Args:
        root: where /proc and /sys are; another folder in tests.
    """
    cpuinfo = read_text(root / "proc/cpuinfo") or ""
    return {
        "cpu": _cpu_model(root, cpuinfo),
        "board": _board(root),
        "machine": platform.machine(),
        "cpu_flags": _flags(cpuinfo),
        "logical_cores": os.cpu_count(),
        "emulated": emulated(root),
        "affinity": affinity(),
        "cpu_quota": _cpu_quota(root),
        "governors": _governors(root),
        "frequency_limits_khz": _frequency_limits(root),
        "cpu_boost": _cpu_boost(root),
        "power_profile": read_text(root / "sys/firmware/acpi/platform_profile"),
        "memory_total_kb": meminfo_kb(root, "MemTotal"),
        "memory_limit": read_text(root / "sys/fs/cgroup/memory.max"),
        "swap_total_kb": meminfo_kb(root, "SwapTotal"),
        "page_bytes": attempt(lambda: os.sysconf("SC_PAGE_SIZE")),
        "kernel": platform.release(),
        "system": platform.system(),
        "libc": " ".join(platform.libc_ver()).strip() or None,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "container": _container(root),
        "virtual_machine": _virtual_machine(root, cpuinfo),
        "on_battery": _on_battery(root),
        "nvidia": nvidia_smi(_NVIDIA_IDENTITY),
        "nvpmodel": run_command("nvpmodel", "-q"),
        "state": sensors(root, gpu=True),
    }


def device_name(*, gpu: bool = False) -> str:
    """Short name of this machine for a table: the board, the CPU model or, on request, the GPU."""
    if gpu and (cards := nvidia_smi(("name",))):
        return str(cards[0]["name"])
    root = Path("/")
    cpuinfo = read_text(root / "proc/cpuinfo") or ""
    return _board(root) or _cpu_model(root, cpuinfo) or platform.machine() or "unknown device"


def _cpu_model(root: Path, cpuinfo: str) -> str | None:
    if sys.platform == "darwin":
        return run_command("sysctl", "-n", "machdep.cpu.brand_string")
    return field_of(cpuinfo, "model name") or field_of(cpuinfo, "Hardware") or platform.processor() or None


def _board(root: Path) -> str | None:
    """Name of a single-board computer from its device tree; None on PCs."""
    return read_text(root / "proc/device-tree/model")


def _flags(cpuinfo: str) -> list[str] | None:
    line = field_of(cpuinfo, "flags") or field_of(cpuinfo, "Features")
    return None if line is None else [flag for flag in CPU_FLAGS if flag in line.split()]


def _governors(root: Path) -> list[str] | None:
    names = {read_text(folder / "scaling_governor") for folder in frequency_folders(root)}
    return sorted(name for name in names if name) or None


def _frequency_limits(root: Path) -> dict[str, int | None] | None:
    folders = frequency_folders(root)
    if not folders:
        return None
    lows = [low for folder in folders if (low := read_number(folder / "scaling_min_freq")) is not None]
    highs = [high for folder in folders if (high := read_number(folder / "scaling_max_freq")) is not None]
    return {"min": min(lows, default=None), "max": max(highs, default=None)}


def _cpu_quota(root: Path) -> str | None:
    """Microseconds of CPU in a period of microseconds, "max 100000" where there is no quota."""
    quota = read_text(root / "sys/fs/cgroup/cpu.max")
    if quota is not None:
        return quota
    first = [read_text(root / f"sys/fs/cgroup/cpu/cpu.cfs_{name}_us") for name in ("quota", "period")]
    return None if None in first else " ".join(map(str, first)).replace("-1 ", "max ")


def _cpu_boost(root: Path) -> bool | None:
    """Whether the CPU may go above its nominal clock for a while."""
    folder = root / "sys/devices/system/cpu"
    no_turbo = read_number(folder / "intel_pstate/no_turbo")
    boost = read_number(folder / "cpufreq/boost") if no_turbo is None else 1 - no_turbo
    return None if boost is None else boost == 1


def _container(root: Path) -> bool | None:
    if (root / ".dockerenv").exists() or (root / "run/.containerenv").exists() or "container" in os.environ:
        return True
    groups = read_text(root / "proc/1/cgroup")
    return None if groups is None else bool(re.search(r"docker|kubepods|containerd|lxc|podman", groups))


def _virtual_machine(root: Path, cpuinfo: str) -> bool | None:
    if "hypervisor" in (field_of(cpuinfo, "flags") or "").split() or (root / "proc/xen").exists():
        return True
    product = read_text(root / "sys/class/dmi/id/product_name")
    if product is None:
        return None
    return bool(re.search(r"kvm|qemu|virtual|vmware|bochs|compute engine", product, re.IGNORECASE))


def _on_battery(root: Path) -> bool | None:
    supplies = attempt(lambda: sorted((root / "sys/class/power_supply").glob("*/online"))) or []
    states = [state for state in map(read_number, supplies) if state is not None]
    return not any(states) if states else None
