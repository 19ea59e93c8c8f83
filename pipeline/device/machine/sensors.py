"""Clocks, temperatures and throttling of this machine. A value that cannot be read is None."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.device.machine import system

Reading = dict[str, Any]  # result of `sensors`; every key may be missing

# Bits of `vcgencmd get_throttled` for the present state; the same bits shifted by 16 mean any time since boot.
_RASPBERRY_BITS = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
# Reasons of the NVIDIA driver that mean throttling; idle clocks and application clocks do not.
_NVIDIA_REASONS = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}
_NVIDIA_STATE = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw", "clocks_throttle_reasons.active")
_FREQUENCY_DROP = 0.10


def sensors(root: Path = Path("/"), *, gpu: bool = False) -> Reading:
    """Read clocks, temperatures, throttle counters and bits, and the load.

    This takes milliseconds, and up to a second with ``gpu``, which runs nvidia-smi.
    """
    return {
        "time": time.time(),
        "frequencies_khz": system.frequencies(root, "cur") or None,
        "temperatures_c": _temperatures(root),
        "temperature_limits_c": _temperature_limits(root),
        "throttle_count": _throttle_count(root),
        "raspberry_throttled": _raspberry_throttled(),
        "load_average": system.attempt(lambda: list(os.getloadavg())),
        "memory_available_kb": system.meminfo_kb(root, "MemAvailable"),
        "nvidia": system.nvidia_smi(_NVIDIA_STATE) if gpu else None,
    }


def throttling(before: Reading, after: Reading) -> list[str]:
    """Compare two readings; returns a sentence for each proof that the device was throttled."""
    proofs = []
    count = before.get("throttle_count")
    if count is not None and (risen := (after.get("throttle_count") or 0) - count) > 0:
        proofs.append(f"the CPU's thermal throttle counters went up by {risen}.")
    if (bits := after.get("raspberry_throttled")) is not None:
        # Ignore a since-boot bit that was set before the measurement.
        fresh = bits & ~(before.get("raspberry_throttled") or 0)
        causes = [name for bit, name in _RASPBERRY_BITS.items() if bits >> bit & 1 or fresh >> (bit + 16) & 1]
        if causes:
            proofs.append(f"vcgencmd reports {', '.join(causes)}.")
    for index, card in enumerate(after.get("nvidia") or []):
        active = _hexadecimal(card.get("clocks_throttle_reasons.active")) or 0
        causes = [name for bit, name in _NVIDIA_REASONS.items() if active & bit]
        if causes:
            proofs.append(f"GPU {index} reports {', '.join(causes)}.")
    return proofs


def slowdown(before: Reading, after: Reading) -> list[str]:
    """Compare two readings; returns signs of throttling, such as a lower clock, that count only if latency rose too."""
    signs = []
    clocks = [mean(reading.get("frequencies_khz")) for reading in (before, after)]
    if clocks[0] and clocks[1] and clocks[1] < (1 - _FREQUENCY_DROP) * clocks[0]:
        signs.append(f"the CPU clock fell from {clocks[0] / 1000:.0f} to {clocks[1] / 1000:.0f} MHz.")
    limits = after.get("temperature_limits_c") or {}
    for zone, temperature in (after.get("temperatures_c") or {}).items():
        limit = limits.get(zone)
        if limit is not None and temperature >= limit:
            signs.append(f"{zone} is at {temperature:.0f} °C, its limit is {limit:.0f} °C.")
    return signs


def mean(values: Sequence[float] | None) -> float | None:
    """Arithmetic mean; None without values."""
    return sum(values) / len(values) if values else None


def _hexadecimal(text: object) -> int | None:
    return system.attempt(lambda: int(str(text), 16))


def _zones(root: Path) -> dict[str, Path]:
    zones = system.paths(root / "sys/class/thermal", "thermal_zone*")
    kinds = [system.read_text(zone / "type") or "zone" for zone in zones]
    return {f"{kind}-{zone.name.removeprefix('thermal_zone')}": zone for kind, zone in zip(kinds, zones, strict=True)}


def _temperatures(root: Path) -> dict[str, float] | None:
    readings = {name: system.read_number(zone / "temp") for name, zone in _zones(root).items()}
    return {name: value / 1000 for name, value in readings.items() if value is not None} or None


def _temperature_limits(root: Path) -> dict[str, float] | None:
    """Lowest temperature of each zone at which the kernel slows the device down."""
    limits = {}
    for name, zone in _zones(root).items():
        kinds = system.paths(zone, "trip_point_*_type")
        slowing = [kind for kind in kinds if system.read_text(kind) in {"passive", "hot"}]
        points = system.not_none(system.read_number(kind.with_name(kind.name[:-4] + "temp")) for kind in slowing)
        if valid := [point for point in points if point > 0]:
            limits[name] = min(valid) / 1000
    return limits or None


def _throttle_count(root: Path) -> int | None:
    """Sum of the thermal throttle counters of Intel CPUs."""
    pattern = "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count"
    counters = system.not_none(map(system.read_number, system.paths(root, pattern)))
    return sum(counters) if counters else None


def _raspberry_throttled() -> int | None:
    output = system.run_command("vcgencmd", "get_throttled")
    return None if output is None else _hexadecimal(output.partition("=")[2])
