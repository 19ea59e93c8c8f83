"""Energy that a device uses for some work, measured with its own energy counter or power sensor."""

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pipeline.device.errors import DeviceError
from pipeline.device.machine.system import nvidia_smi, read_number, read_text

IDLE_SECONDS = 5.0
SETTLE_SECONDS = 3.0  # clocks, and meters that show a running mean, follow the load with a delay
_MIN_READINGS = 5
_HWMON_INTERVAL = 0.05
_NVIDIA_INTERVAL = 0.2
# Rails that carry the power of the whole board. The other rails are parts of them.
_WHOLE_BOARD = frozenset({"VDD_IN", "POM_5V_IN"})

T = TypeVar("T")


class MeterError(DeviceError):
    """A meter gave too few readings, or none."""


@dataclass(frozen=True)
class Consumption:
    """Energy in joules and duration in seconds of a monotonic clock."""

    joules: float
    seconds: float

    @property
    def watts(self) -> float:
        return self.joules / self.seconds


@dataclass(frozen=True)
class EnergyCounter:
    """RAPL energy counters in microjoules, which restart from 0 at the end of their range.

    Attributes:
        name: name of the counter and its parts.
        folders: folders of the zones to add up, each with ``energy_uj`` and ``max_energy_range_uj``.
    """

    name: str
    folders: tuple[Path, ...]

    def measure(self, work: Callable[[], T]) -> tuple[Consumption, T]:
        """Run ``work``; returns the energy of the device meanwhile and the value of ``work``. Raises MeterError."""
        before, begin = self._counts(), time.perf_counter()
        result = work()
        seconds, after = time.perf_counter() - begin, self._counts()
        joules = 0.0
        for folder, low, high in zip(self.folders, before, after, strict=True):
            span = 0 if high >= low else read_number(folder / "max_energy_range_uj")
            if span is None:
                raise MeterError(f"{self.name} restarted from 0, and its range cannot be read.")
            joules += (high + span - low) / 1e6
        return Consumption(joules, seconds), result

    def _counts(self) -> list[int]:
        counts = [read_number(folder / "energy_uj") for folder in self.folders]
        valid = [count for count in counts if count is not None]
        if len(valid) < len(counts):
            raise MeterError(f"{self.name} gave no reading.")
        return valid


@dataclass(frozen=True)
class PowerGauge:
    """A power sensor in watts. A thread reads it at an interval, so no latency may be measured at the same time.

    Attributes:
        name: name of the sensor and its rails.
        watts: function that reads the sensor; returns None if the reading fails.
        interval: seconds between readings.
    """

    name: str
    watts: Callable[[], float | None]
    interval: float

    def measure(self, work: Callable[[], T]) -> tuple[Consumption, T]:
        """Run ``work``; returns the energy of the device meanwhile and the value of ``work``. Raises MeterError."""
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
        valid = [reading for reading in readings if reading is not None]
        if len(valid) < _MIN_READINGS:
            raise MeterError(f"{self.name} gave {len(valid)} readings in {seconds:.1f} s, {_MIN_READINGS} needed.")
        return Consumption(sum(valid) / len(valid) * seconds, seconds), result


Meter = EnergyCounter | PowerGauge


def find_meter(root: Path = Path("/"), *, gpu: bool = False) -> tuple[Meter | None, str]:
    """Find the power meter of this device; returns None and the reason in one sentence if there is none.

    For the CPU: the RAPL packages, else the rails of the board. For the GPU: NVML, else the rails, as on a Jetson.
    """
    reasons = []
    for find in (_nvidia, _rails) if gpu else (_rapl, _rails):
        meter = find(root)
        if not isinstance(meter, str):
            return meter, ""
        reasons.append(meter)
    return None, f"energy per inference not measured: {'; '.join(reasons)}."


def _rapl(root: Path) -> Meter | str:
    zones = sorted((root / "sys/class/powercap").glob("intel-rapl:*"))
    # A package includes its inner zones, such as its cores. The zone psys would count the packages twice.
    packages = [zone for zone in zones if (read_text(zone / "name") or "").startswith("package")]
    if not packages:
        return "RAPL is not available"
    if not all(os.access(zone / "energy_uj", os.R_OK) for zone in packages):
        return f"this user may not read {packages[0] / 'energy_uj'}"
    if any(read_number(zone / "energy_uj") is None for zone in packages):
        return f"{packages[0] / 'energy_uj'} gives no reading"
    return EnergyCounter(f"RAPL {', '.join(str(read_text(zone / 'name')) for zone in packages)}", tuple(packages))


def _rails(root: Path) -> Meter | str:
    """INA current sensors on the rails of a board: the rail of the whole board if there is one, else all rails."""
    rails: dict[str, tuple[Path, ...]] = {}
    for chip in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        name = read_text(chip / "name") or ""
        if name.startswith("ina"):
            rails |= _rails_of(chip, name)
    if not rails:
        return "the board shows no INA sensor"
    whole = [name for name in rails if name.split()[-1] in _WHOLE_BOARD]
    chosen = whole[:1] or list(rails)

    def watts() -> float | None:
        total = 0.0
        for name in chosen:
            micro = 1.0
            for reading in map(read_number, rails[name]):
                if reading is None:
                    return None
                micro *= reading
            total += micro / 1e6
        return total

    if watts() is None:
        return f"the sensors of {', '.join(chosen)} give no reading"
    return PowerGauge(" + ".join(chosen) + (" (whole board)" if whole else ""), watts, _HWMON_INTERVAL)


def _rails_of(chip: Path, name: str) -> dict[str, tuple[Path, ...]]:
    """Sensor files by rail: power<n>_input in microwatts, else in<n>_input in millivolts and curr<n>_input in mA."""
    rails: dict[str, tuple[Path, ...]] = {}
    for power in sorted(chip.glob("power*_input")):
        label = read_text(power.with_name(power.name.replace("_input", "_label"))) or power.name.removesuffix("_input")
        rails[f"{name} {label}"] = (power,)
    if rails:
        return rails
    for current in sorted(chip.glob("curr*_input")):
        index = current.name.removeprefix("curr").removesuffix("_input")
        voltage = chip / f"in{index}_input"
        label = read_text(chip / f"in{index}_label") or read_text(chip / f"curr{index}_label") or f"rail{index}"
        if voltage.is_file() and label != "NC":  # NC labels a channel that is not connected
            rails[f"{name} {label}"] = (voltage, current)
    return rails


def _nvidia(root: Path) -> Meter | str:
    cards = nvidia_smi(("name", "power.draw"))
    if not cards:
        return "nvidia-smi shows no GPU"
    if len(cards) > 1:
        return f"nvidia-smi shows {len(cards)} GPUs, but not which of them runs the model"
    if _card_watts() is None:
        return f"nvidia-smi shows no power of {cards[0]['name']}"
    return PowerGauge(f"NVML power.draw of {cards[0]['name']}", _card_watts, _NVIDIA_INTERVAL)


def _card_watts() -> float | None:
    cards = nvidia_smi(("power.draw",))
    try:
        return float(cards[0]["power.draw"]) if cards else None
    except ValueError:  # "[N/A]"
        return None
