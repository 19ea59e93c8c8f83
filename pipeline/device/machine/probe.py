"""Description of this machine without host and user names. A value that cannot be read is None."""

import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.device.machine import system
from pipeline.device.machine.sensors import sensors
from pipeline.portable.text import brief

# CPU flags that decide which kernels a runtime picks, in the spelling of x86 and ARM Linux.
_FLAGS = re.compile(
    "avx2|fma|f16c|avx_vnni|avx512f|avx512_vnni|avx512_bf16|avx512_fp16|amx_tile|amx_int8|amx_bf16|"
    "asimd|asimdhp|asimddp|sve|bf16|i8mm"
)
_NVIDIA_IDENTITY = ("name", "driver_version", "memory.total", "power.limit", "persistence_mode")


def describe_machine(root: Path = Path("/")) -> dict[str, Any]:
    """Describe the hardware, operating system and settings that affect latency, as JSON values.

    No privileges are needed. This module reads /proc and /sys below ``root``.
    """
    cpuinfo = system.read_text(root / "proc/cpuinfo") or ""
    return {
        "cpu": _cpu_model(cpuinfo),
        "board": _board(root),
        "machine": platform.machine(),
        "cpu_flags": _cpu_flags(cpuinfo),
        "logical_cores": os.cpu_count(),
        "emulated": emulated(root),
        "affinity": system.affinity(),
        "cpu_quota": _cpu_quota(root),
        "governors": _governors(root),
        "frequency_limits_khz": _frequency_limits(root),
        "cpu_boost": _cpu_boost(root),
        "power_profile": system.read_text(root / "sys/firmware/acpi/platform_profile"),
        "memory_total_kb": system.meminfo_kb(root, "MemTotal"),
        "memory_limit": system.read_text(root / "sys/fs/cgroup/memory.max"),
        "swap_total_kb": system.meminfo_kb(root, "SwapTotal"),
        "page_bytes": system.attempt(lambda: os.sysconf("SC_PAGE_SIZE")),
        "kernel": platform.release(),
        "system": platform.system(),
        "libc": " ".join(platform.libc_ver()).strip() or None,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "container": _container(root),
        "virtual_machine": _virtual_machine(root, cpuinfo),
        "on_battery": _on_battery(root),
        "nvidia": system.nvidia_smi(_NVIDIA_IDENTITY),
        "nvpmodel": system.run_command("nvpmodel", "-q"),
        "state": sensors(root, gpu=True),
    }


def device_name(*, gpu: bool = False) -> str:
    """Short name of this machine for tables: the board or the CPU model; with ``gpu`` the GPU."""
    if gpu and (cards := system.nvidia_smi(("name",))):
        return brief(cards[0]["name"])
    root = Path("/")
    model = _board(root) or _cpu_model(system.read_text(root / "proc/cpuinfo") or "")
    return brief(model or platform.machine() or "unknown device")


def emulated(root: Path = Path("/"), machine: str | None = None) -> bool | None:
    """Return true if an emulator such as qemu-user translates programs for another processor.

    An emulated program sees the machine name of the emulated processor, but /proc and /sys of the real kernel: only x86
    kernels have ``arch_status``, and only ARM kernels have ``midr_el1``. QEMU 8.1 and later also emulate /proc/cpuinfo,
    so that file is not enough. ``machine`` is the name that programs see, by default this machine's.
    """
    if sys.platform == "darwin":
        translated = system.run_command("sysctl", "-n", "sysctl.proc_translated")
        return None if translated is None else translated == "1"
    machine, cpuinfo = machine or platform.machine(), system.read_text(root / "proc/cpuinfo") or ""
    if "QEMU TCG" in cpuinfo:
        return True
    x86_kernel = (root / "proc/self/arch_status").exists() or system.field_of(cpuinfo, "vendor_id") is not None
    midr = root / "sys/devices/system/cpu/cpu0/regs/identification/midr_el1"
    arm_kernel = midr.exists() or system.field_of(cpuinfo, "CPU implementer") is not None
    is_x86 = re.fullmatch(r"x86_64|amd64|i[3-6]86", machine, re.IGNORECASE) is not None
    if is_x86 and arm_kernel and not x86_kernel:
        return True
    if not is_x86 and x86_kernel:
        return machine != "s390x"  # a real s390x has a vendor_id too, and is not emulated
    return False if x86_kernel or arm_kernel else None


def _cpu_model(cpuinfo: str) -> str | None:
    if sys.platform == "darwin":
        return system.run_command("sysctl", "-n", "machdep.cpu.brand_string")
    return (
        system.field_of(cpuinfo, "model name") or system.field_of(cpuinfo, "Hardware") or platform.processor() or None
    )


def _board(root: Path) -> str | None:
    """Name of a single-board computer from its device tree; None on a PC."""
    return system.read_text(root / "proc/device-tree/model")


def _cpu_flags(cpuinfo: str) -> list[str] | None:
    line = system.field_of(cpuinfo, "flags") or system.field_of(cpuinfo, "Features")
    return None if line is None else [flag for flag in line.split() if _FLAGS.fullmatch(flag)]


def _governors(root: Path) -> list[str] | None:
    names = {system.read_text(folder / "scaling_governor") for folder in system.frequency_folders(root)}
    return sorted(name for name in names if name) or None


def _frequency_limits(root: Path) -> dict[str, int | None] | None:
    lows, highs = system.frequencies(root, "min"), system.frequencies(root, "max")
    return {"min": min(lows, default=None), "max": max(highs, default=None)} if lows or highs else None


def _cpu_quota(root: Path) -> str | None:
    """CPU quota and period in microseconds, such as "max 100000" without a quota."""
    if quota := system.read_text(root / "sys/fs/cgroup/cpu.max"):
        return quota
    values = [system.read_text(root / f"sys/fs/cgroup/cpu/cpu.cfs_{name}_us") for name in ("quota", "period")]
    return None if None in values else " ".join(map(str, values)).replace("-1 ", "max ")


def _cpu_boost(root: Path) -> bool | None:
    """Return true if the CPU may exceed its nominal clock for a while."""
    folder = root / "sys/devices/system/cpu"
    no_turbo = system.read_number(folder / "intel_pstate/no_turbo")
    boost = system.read_number(folder / "cpufreq/boost") if no_turbo is None else 1 - no_turbo
    return None if boost is None else boost == 1


def _container(root: Path) -> bool | None:
    if (root / ".dockerenv").exists() or (root / "run/.containerenv").exists() or "container" in os.environ:
        return True
    groups = system.read_text(root / "proc/1/cgroup")
    return None if groups is None else bool(re.search(r"docker|kubepods|containerd|lxc|podman", groups))


def _virtual_machine(root: Path, cpuinfo: str) -> bool | None:
    if "hypervisor" in (system.field_of(cpuinfo, "flags") or "").split() or (root / "proc/xen").exists():
        return True
    product = system.read_text(root / "sys/class/dmi/id/product_name")
    if product is None:
        return None
    return bool(re.search(r"kvm|qemu|virtual|vmware|bochs|compute engine", product, re.IGNORECASE))


def _on_battery(root: Path) -> bool | None:
    states = system.not_none(map(system.read_number, system.paths(root / "sys/class/power_supply", "*/online")))
    return not any(states) if states else None
