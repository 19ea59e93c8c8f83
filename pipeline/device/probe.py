"""What machine this is and what state it is in. Reads only; what cannot be read is None; the host name is left out."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

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
# Bits of `vcgencmd get_throttled` that speak of now; the same bits 16 higher speak of any time since boot.
_RASPBERRY_BITS = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
# Reasons of the NVIDIA driver that mean throttling; idle clocks and application settings are no such reasons.
_NVIDIA_REASONS = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}
_NVIDIA_IDENTITY = ("name", "driver_version", "memory.total", "power.limit", "persistence_mode")
_NVIDIA_STATE = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw", "clocks_throttle_reasons.active")
_COMMAND_SECONDS = 10
_FREQUENCY_DROP = 0.10

T = TypeVar("T")


def provenance(root: Path = Path("/")) -> dict[str, Any]:
    """All that a latency depends on and that can be read without privileges, ready for JSON.

    Args:
        root: where /proc and /sys are; another folder in tests.
    """
    cpuinfo = _text(root / "proc/cpuinfo") or ""
    return {
        "cpu": _cpu_model(root, cpuinfo),
        "board": _board(root),
        "machine": platform.machine(),
        "cpu_flags": _flags(cpuinfo),
        "logical_cores": os.cpu_count(),
        "affinity": _affinity(),
        "cpu_quota": _text(root / "sys/fs/cgroup/cpu.max"),
        "governors": _governors(root),
        "frequency_limits_khz": _frequency_limits(root),
        "memory_total_kb": _meminfo(root, "MemTotal"),
        "kernel": platform.release(),
        "system": platform.system(),
        "python": platform.python_version(),
        "container": _container(root),
        "virtual_machine": _virtual_machine(root, cpuinfo),
        "on_battery": _on_battery(root),
        "nvidia": _nvidia(_NVIDIA_IDENTITY),
        "nvpmodel": _command("nvpmodel", "-q"),
        "state": sensors(root, gpu=True),
    }


def sensors(root: Path = Path("/"), *, gpu: bool = False) -> dict[str, Any]:
    """State that changes while measuring: clocks, temperatures, throttle counters and bits, load. Takes milliseconds.

    Args:
        gpu: ask nvidia-smi too, which takes up to a second.
    """
    return {
        "time": time.time(),
        "frequencies_khz": _frequencies(root),
        "temperatures_c": _temperatures(root),
        "temperature_limits_c": _temperature_limits(root),
        "throttle_count": _throttle_count(root),
        "raspberry_throttled": _raspberry_throttled(),
        "load_average": _try(lambda: list(os.getloadavg())),
        "memory_available_kb": _meminfo(root, "MemAvailable"),
        "nvidia": _nvidia(_NVIDIA_STATE) if gpu else None,
    }


def device_name(*, gpu: bool = False) -> str:
    """Short name of this machine for a table: the board, the CPU model or, on request, the GPU."""
    if gpu and (cards := _nvidia(("name",))):
        return str(cards[0]["name"])
    root = Path("/")
    cpuinfo = _text(root / "proc/cpuinfo") or ""
    return _board(root) or _cpu_model(root, cpuinfo) or platform.machine() or "unknown device"


def throttling(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Proof in two ``sensors`` readings that the device was throttled: sentences, none if there is no proof."""
    found = []
    counted = _change(before.get("throttle_count"), after.get("throttle_count"))
    if counted is not None and counted > 0:
        found.append(f"the CPU's thermal throttle counters went up by {counted:g}.")
    bits = after.get("raspberry_throttled")
    if bits is not None:
        # A since-boot bit that was set before measuring says nothing about this measurement.
        fresh = bits & ~(before.get("raspberry_throttled") or 0)
        named = [name for bit, name in _RASPBERRY_BITS.items() if bits >> bit & 1 or fresh >> (bit + 16) & 1]
        if named:
            found.append(f"vcgencmd reports {', '.join(named)}.")
    for index, card in enumerate(after.get("nvidia") or []):
        active = _hexadecimal(card.get("clocks_throttle_reasons.active"))
        named = [name for bit, name in _NVIDIA_REASONS.items() if active & bit]
        if named:
            found.append(f"GPU {index} reports {', '.join(named)}.")
    return found


def slowdown(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Signs that suggest throttling where latency rose as well: a lower clock, a zone at its limit."""
    found = []
    clocks = [_mean(reading.get("frequencies_khz")) for reading in (before, after)]
    if clocks[0] and clocks[1] and clocks[1] < (1 - _FREQUENCY_DROP) * clocks[0]:
        found.append(f"the CPU clock fell from {clocks[0] / 1000:.0f} to {clocks[1] / 1000:.0f} MHz.")
    limits = after.get("temperature_limits_c") or {}
    for zone, temperature in (after.get("temperatures_c") or {}).items():
        limit = limits.get(zone)
        if limit is not None and temperature >= limit:
            found.append(f"{zone} is at {temperature:.0f} °C, its limit is {limit:.0f} °C.")
    return found


def _change(before: Any, after: Any) -> float | None:
    return None if before is None or after is None else float(after) - float(before)


def _mean(values: Any) -> float | None:
    return sum(values) / len(values) if values else None


def _hexadecimal(text: Any) -> int:
    return _try(lambda: int(str(text), 16)) or 0


def _try(read: Callable[[], T]) -> T | None:
    """The value, or None where the system does not have it or does not show it to this user."""
    try:
        return read()
    except (OSError, ValueError, AttributeError, subprocess.SubprocessError):
        return None


def _text(path: Path) -> str | None:
    return _try(lambda: path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")) or None


def _number(path: Path) -> int | None:
    return _try(lambda: int(path.read_text(encoding="ascii")))


def _command(name: str, *arguments: str) -> str | None:
    program = shutil.which(name)
    if program is None:
        return None

    def run() -> str | None:
        done = subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=True
        )
        return done.stdout.strip() or None

    return _try(run)


def _field(text: str, name: str) -> str | None:
    found = re.search(rf"^{name}\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else None


def _cpu_model(root: Path, cpuinfo: str) -> str | None:
    if sys.platform == "darwin":
        return _command("sysctl", "-n", "machdep.cpu.brand_string")
    return _field(cpuinfo, "model name") or _field(cpuinfo, "Hardware") or platform.processor() or None


def _board(root: Path) -> str | None:
    """Name of a single-board computer from its device tree; None on PCs."""
    return _text(root / "proc/device-tree/model")


def _flags(cpuinfo: str) -> list[str] | None:
    line = _field(cpuinfo, "flags") or _field(cpuinfo, "Features")
    return None if line is None else [flag for flag in CPU_FLAGS if flag in line.split()]


def _affinity() -> list[int] | None:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def _frequency_folders(root: Path) -> list[Path]:
    """cpufreq folders of the cores that this process may use."""
    folders = (root / f"sys/devices/system/cpu/cpu{core}/cpufreq" for core in _affinity() or [])
    return [folder for folder in folders if folder.is_dir()]


def _governors(root: Path) -> list[str] | None:
    names = {_text(folder / "scaling_governor") for folder in _frequency_folders(root)}
    return sorted(name for name in names if name) or None


def _frequency_limits(root: Path) -> dict[str, int | None] | None:
    folders = _frequency_folders(root)
    if not folders:
        return None
    lows = [low for folder in folders if (low := _number(folder / "scaling_min_freq")) is not None]
    highs = [high for folder in folders if (high := _number(folder / "scaling_max_freq")) is not None]
    return {"min": min(lows, default=None), "max": max(highs, default=None)}


def _frequencies(root: Path) -> list[int] | None:
    values = [_number(folder / "scaling_cur_freq") for folder in _frequency_folders(root)]
    return [value for value in values if value is not None] or None


def _zones(root: Path) -> list[Path]:
    return _try(lambda: sorted((root / "sys/class/thermal").glob("thermal_zone*"))) or []


def _zone_name(zone: Path) -> str:
    return f"{_text(zone / 'type') or 'zone'}-{zone.name.removeprefix('thermal_zone')}"


def _temperatures(root: Path) -> dict[str, float] | None:
    readings = {_zone_name(zone): _number(zone / "temp") for zone in _zones(root)}
    return {name: value / 1000 for name, value in readings.items() if value is not None} or None


def _temperature_limits(root: Path) -> dict[str, float] | None:
    """The lowest trip point of each zone at which the kernel slows the device down."""
    limits: dict[str, float] = {}
    for zone in _zones(root):
        kinds = _try(lambda zone=zone: sorted(zone.glob("trip_point_*_type"))) or []  # type: ignore[misc]
        slowing = [kind for kind in kinds if _text(kind) in {"passive", "hot"}]
        points = [_number(kind.with_name(kind.name.replace("_type", "_temp"))) for kind in slowing]
        valid = [point for point in points if point is not None and point > 0]
        if valid:
            limits[_zone_name(zone)] = min(valid) / 1000
    return limits or None


def _throttle_count(root: Path) -> int | None:
    """Sum of the thermal throttle counters of Intel CPUs."""
    pattern = "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count"
    counters = _try(lambda: [_number(path) for path in root.glob(pattern)]) or []
    valid = [counter for counter in counters if counter is not None]
    return sum(valid) if valid else None


def _raspberry_throttled() -> int | None:
    output = _command("vcgencmd", "get_throttled")
    return None if output is None else _try(lambda: int(output.partition("=")[2], 16))


def _meminfo(root: Path, name: str) -> int | None:
    field = _field(_text(root / "proc/meminfo") or "", name)
    return None if field is None else _try(lambda: int(field.split()[0]))


def _container(root: Path) -> bool | None:
    if (root / ".dockerenv").exists() or (root / "run/.containerenv").exists() or "container" in os.environ:
        return True
    groups = _text(root / "proc/1/cgroup")
    return None if groups is None else bool(re.search(r"docker|kubepods|containerd|lxc|podman", groups))


def _virtual_machine(root: Path, cpuinfo: str) -> bool | None:
    if "hypervisor" in (_field(cpuinfo, "flags") or "").split() or (root / "proc/xen").exists():
        return True
    product = _text(root / "sys/class/dmi/id/product_name")
    if product is None:
        return None
    return bool(re.search(r"kvm|qemu|virtual|vmware|bochs|compute engine", product, re.IGNORECASE))


def _on_battery(root: Path) -> bool | None:
    supplies = _try(lambda: sorted((root / "sys/class/power_supply").glob("*/online"))) or []
    states = [state for state in map(_number, supplies) if state is not None]
    return not any(states) if states else None


def _nvidia(fields: tuple[str, ...]) -> list[dict[str, str]] | None:
    """One dictionary for each GPU that nvidia-smi lists; None without nvidia-smi, as on a Jetson."""
    output = _command("nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits")
    if output is None:
        return None
    return [dict(zip(fields, map(str.strip, line.split(",")), strict=False)) for line in output.splitlines()]
