"""What changes while measuring, and what two readings of it say. Reads only; what cannot be read is None."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from pipeline.device.machine.system import (
    attempt,
    frequency_folders,
    meminfo_kb,
    nvidia_smi,
    read_number,
    read_text,
    run_command,
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
_NVIDIA_STATE = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw", "clocks_throttle_reasons.active")
_FREQUENCY_DROP = 0.10


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
        "load_average": attempt(lambda: list(os.getloadavg())),
        "memory_available_kb": meminfo_kb(root, "MemAvailable"),
        "nvidia": nvidia_smi(_NVIDIA_STATE) if gpu else None,
    }


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
    return attempt(lambda: int(str(text), 16)) or 0


def _frequencies(root: Path) -> list[int] | None:
    values = [read_number(folder / "scaling_cur_freq") for folder in frequency_folders(root)]
    return [value for value in values if value is not None] or None


def _zones(root: Path) -> list[Path]:
    return attempt(lambda: sorted((root / "sys/class/thermal").glob("thermal_zone*"))) or []


def _zone_name(zone: Path) -> str:
    return f"{read_text(zone / 'type') or 'zone'}-{zone.name.removeprefix('thermal_zone')}"


def _temperatures(root: Path) -> dict[str, float] | None:
    readings = {_zone_name(zone): read_number(zone / "temp") for zone in _zones(root)}
    return {name: value / 1000 for name, value in readings.items() if value is not None} or None


def _temperature_limits(root: Path) -> dict[str, float] | None:
    """The lowest trip point of each zone at which the kernel slows the device down."""
    limits: dict[str, float] = {}
    for zone in _zones(root):
        kinds = attempt(lambda zone=zone: sorted(zone.glob("trip_point_*_type"))) or []  # type: ignore[misc]
        slowing = [kind for kind in kinds if read_text(kind) in {"passive", "hot"}]
        points = [read_number(kind.with_name(kind.name.replace("_type", "_temp"))) for kind in slowing]
        valid = [point for point in points if point is not None and point > 0]
        if valid:
            limits[_zone_name(zone)] = min(valid) / 1000
    return limits or None


def _throttle_count(root: Path) -> int | None:
    """Sum of the thermal throttle counters of Intel CPUs."""
    pattern = "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count"
    counters = attempt(lambda: [read_number(path) for path in root.glob(pattern)]) or []
    valid = [counter for counter in counters if counter is not None]
    return sum(valid) if valid else None


def _raspberry_throttled() -> int | None:
    output = run_command("vcgencmd", "get_throttled")
    return None if output is None else attempt(lambda: int(output.partition("=")[2], 16))
