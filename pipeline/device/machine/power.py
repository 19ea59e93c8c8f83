"""Energy from a meter that the device has: what it counted, or what it showed while something ran."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from pipeline.device.errors import DeviceError
from pipeline.device.machine.system import nvidia_smi, read_number, read_text

IDLE_SECONDS = 5.0
SETTLE_SECONDS = 3.0  # before that: clocks and the mean that some meters show follow the load with a delay
_MIN_READINGS = 5
_HWMON_INTERVAL = 0.05
_NVIDIA_INTERVAL = 0.2
# Rails that all power of a board comes through, so that the others are parts of them.
_WHOLE_BOARD = frozenset({"VDD_IN", "POM_5V_IN"})

T = TypeVar("T")


class MeterError(DeviceError):
    """A meter that was there gave no reading."""


@dataclass(frozen=True)
class Consumption:
    """Joules within seconds of a clock that cannot be set."""

    joules: float
    seconds: float

    @property
    def watts(self) -> float:
        return self.joules / self.seconds


class Meter(Protocol):
    """What it is and covers is in ``name``."""

    @property
    def name(self) -> str: ...

    def measure(self, work: Callable[[], T]) -> tuple[Consumption, T]:
        """What the device consumed while work ran, and what work returned.

        Raises:
            MeterError: too few readings, or none.
        """
        ...


@dataclass(frozen=True)
class EnergyCounter:
    """RAPL: counters of microjoules that begin again at 0 after their range.

    Attributes:
        folders: of the zones that are added up, each with ``energy_uj`` and ``max_energy_range_uj``.
    """

    name: str
    folders: tuple[Path, ...]

    def measure(self, work: Callable[[], T]) -> tuple[Consumption, T]:
        before, begin = self._counts(), time.perf_counter()
        result = work()
        seconds, after = time.perf_counter() - begin, self._counts()
        ranges = [read_number(folder / "max_energy_range_uj") for folder in self.folders]
        joules = 0.0
        for low, high, span in zip(before, after, ranges, strict=True):
            if high < low and span is None:
                raise MeterError(f"{self.name} began again from 0 and does not say at what count.")
            joules += (high - low if high >= low else high + (span or 0) - low) / 1e6
        return Consumption(joules, seconds), result

    def _counts(self) -> list[int]:
        counts = [read_number(folder / "energy_uj") for folder in self.folders]
        known = [count for count in counts if count is not None]
        if len(known) < len(counts):
            raise MeterError(f"{self.name} gave no reading.")
        return known


@dataclass(frozen=True)
class PowerGauge:
    """A meter that shows watts; it is read at an interval from a thread, so nothing may be timed meanwhile.

    Attributes:
        watts: one reading; None where there is none.
        interval: seconds between readings.
    """

    name: str
    watts: Callable[[], float | None]
    interval: float

    def measure(self, work: Callable[[], T]) -> tuple[Consumption, T]:
        readings: list[float | None] = []
        ended = threading.Event()

        def read() -> None:
            while not ended.is_set():
                readings.append(self.watts())
                ended.wait(self.interval)

        reader = threading.Thread(target=read, daemon=True)
        begin = time.perf_counter()
        reader.start()
        try:
            result = work()
        finally:
            seconds = time.perf_counter() - begin
            ended.set()
            reader.join()
        known = [reading for reading in readings if reading is not None]
        if len(known) < _MIN_READINGS:
            raise MeterError(f"{self.name} gave {len(known)} readings in {seconds:.1f} s, {_MIN_READINGS} needed.")
        return Consumption(sum(known) / len(known) * seconds, seconds), result


def find_meter(root: Path = Path("/"), *, gpu: bool = False) -> tuple[Meter | None, str]:
    """The meter of this device for work on its CPU or on its GPU; without one, None and the reason in one sentence.

    On a CPU: RAPL's packages, else the rails of the board. On a GPU: its own meter, else the rails of the board, which
    is what a Jetson has.
    """
    looked = (_nvidia, _rails) if gpu else (_rapl, _rails)
    reasons = []
    for look in looked:
        meter, reason = look(root)
        if meter is not None:
            return meter, ""
        reasons.append(reason)
    return None, f"energy per inference not measured: {'; '.join(reasons)}."


def _rapl(root: Path) -> tuple[Meter | None, str]:
    zones = sorted((root / "sys/class/powercap").glob("intel-rapl:*"))
    # Zones within a package, such as its cores, are counted in it; psys would count the package again.
    packages = [zone for zone in zones if (read_text(zone / "name") or "").startswith("package")]
    if not packages:
        return None, "RAPL is not here"
    if not all(os.access(zone / "energy_uj", os.R_OK) for zone in packages):
        return None, f"this user may not read {packages[0] / 'energy_uj'}"
    if any(read_number(zone / "energy_uj") is None for zone in packages):
        return None, f"{packages[0] / 'energy_uj'} gives no reading"
    names = ", ".join(str(read_text(zone / "name")) for zone in packages)
    return EnergyCounter(f"RAPL {names}", tuple(packages)), ""


def _rails(root: Path) -> tuple[Meter | None, str]:
    """INA sensors, which measure the current on a rail of the board; all of a board's power where a rail has it."""
    rails: dict[str, Callable[[], float | None]] = {}
    for chip in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        name = read_text(chip / "name") or ""
        if name.startswith("ina"):
            rails |= _rails_of(chip, name)
    if not rails:
        return None, "the board shows no INA sensor"
    whole = [name for name in rails if name.split()[-1] in _WHOLE_BOARD]
    chosen = whole[:1] or list(rails)
    readers = [rails[name] for name in chosen]

    def watts() -> float | None:
        values = [reader() for reader in readers]
        known = [value for value in values if value is not None]
        return sum(known) if len(known) == len(values) else None

    if watts() is None:
        return None, f"the sensors of {', '.join(chosen)} give no reading"
    return PowerGauge(" + ".join(chosen) + (" (whole board)" if whole else ""), watts, _HWMON_INTERVAL), ""


def _rails_of(chip: Path, name: str) -> dict[str, Callable[[], float | None]]:
    """By name: watts from power<n>_input in microwatts, else from in<n>_input in millivolts x curr<n>_input in mA."""
    found: dict[str, Callable[[], float | None]] = {}
    for power in sorted(chip.glob("power*_input")):
        label = read_text(power.with_name(power.name.replace("_input", "_label"))) or power.name.removesuffix("_input")
        found[f"{name} {label}"] = lambda power=power: _product(1e-6, power)  # type: ignore[misc]
    if found:
        return found
    for current in sorted(chip.glob("curr*_input")):
        index = current.name.removeprefix("curr").removesuffix("_input")
        voltage = chip / f"in{index}_input"
        label = read_text(chip / f"in{index}_label") or read_text(chip / f"curr{index}_label") or f"rail{index}"
        if voltage.is_file() and label != "NC":  # the board's name for a channel that nothing is connected to
            found[f"{name} {label}"] = lambda v=voltage, c=current: _product(1e-6, v, c)  # type: ignore[misc]
    return found


def _product(unit: float, *paths: Path) -> float | None:
    value = unit
    for path in paths:
        reading = read_number(path)
        if reading is None:
            return None
        value *= reading
    return value


def _nvidia(root: Path) -> tuple[Meter | None, str]:
    cards = nvidia_smi(("name", "power.draw"))
    if not cards:
        return None, "nvidia-smi shows no GPU"
    if len(cards) > 1:
        return None, f"nvidia-smi shows {len(cards)} GPUs, and not which of them works"
    if _card_watts() is None:
        return None, f"nvidia-smi shows no power of {cards[0]['name']}"
    return PowerGauge(f"NVML power.draw of {cards[0]['name']}", _card_watts, _NVIDIA_INTERVAL), ""


def _card_watts() -> float | None:
    cards = nvidia_smi(("power.draw",))
    try:
        return float(cards[0]["power.draw"]) if cards else None
    except ValueError:  # "[N/A]"
        return None
