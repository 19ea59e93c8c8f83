"""Latency under sustained load, minute by minute, until a plateau."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.device.benchmark.statistics import percentile
from pipeline.device.machine.sensors import Reading, mean, slowdown, throttling
from pipeline.portable.documents import Minute, Sustained

_MINUTE_SECONDS = 60.0
# Plateau: this many whole minutes in a row, with a range of their medians of at most this share of the median.
_PLATEAU_MINUTES = 3
_PLATEAU_RANGE = 0.02
# The device is cool at most this far above its idle temperature, or at this share of its idle clock or more.
_COOL_DEGREES = 3.0
_COOL_CLOCK = 0.95
_REST_SECONDS = 10.0  # fixed pause for a device without temperature and clock sensors
_POLL_SECONDS = 2.0


def sustain(
    time_window: Callable[[float], Sequence[int]],
    *,
    limit_seconds: float,
    read_sensors: Callable[[], Reading],
    clock: Callable[[], float] = time.monotonic,
) -> Sustained:
    """Measure latency minute by minute until a plateau or the time limit. Sensors are read between the minutes.

    Args:
        time_window: function that runs inferences for the given seconds and returns the nanoseconds of each.
    """
    begin = clock()
    first = last = read_sensors()
    minutes: list[Minute] = []
    evidence: list[str] = []
    while not is_plateau(minutes) and (remaining := limit_seconds - (clock() - begin)) > 0:
        window, started = min(_MINUTE_SECONDS, remaining), clock()
        samples = np.asarray(time_window(window))
        seconds = clock() - started
        last = read_sensors()
        evidence += throttling(first, last)
        minutes.append(_minute(samples, seconds, last, whole=window == _MINUTE_SECONDS))
    medians = [minute.p50_ms for minute in minutes if minute.p50_ms is not None]
    settled = is_plateau(minutes)
    return Sustained(
        minutes=minutes,
        ended_by="plateau" if settled else "time limit",
        plateau_ms=float(np.median(medians[-_PLATEAU_MINUTES:])) if settled else None,
        last_to_first=medians[-1] / medians[0] if len(medians) > 1 else None,
        seconds=clock() - begin,
        evidence=list(dict.fromkeys([*evidence, *slowdown(first, last)])),
    )


def is_plateau(minutes: Sequence[Minute]) -> bool:
    """Return true if the last three minutes are whole and the range of their medians is within 2 % of the median."""
    medians = [minute.p50_ms for minute in minutes[-_PLATEAU_MINUTES:] if minute.whole and minute.p50_ms is not None]
    if len(medians) < _PLATEAU_MINUTES:
        return False
    return bool(max(medians) - min(medians) <= _PLATEAU_RANGE * float(np.median(medians)))


def _minute(samples: NDArray[np.int64], seconds: float, reading: Reading, *, whole: bool) -> Minute:
    p50, p90, p95, p99 = (percentile(samples / 1e6, p) for p in (0.5, 0.9, 0.95, 0.99))
    return Minute(
        samples=int(samples.size),
        seconds=seconds,
        whole=whole,
        p50_ms=p50.value,
        p90_ms=p90.value,
        p95_ms=p95.value,
        p99_ms=p99.value,
        mean_ms=float(samples.mean()) / 1e6,
        max_ms=float(samples.max()) / 1e6,
        notes=[number.reason for number in (p50, p90, p95, p99) if number.reason is not None],
        temperature_c=_warmest(reading),
        clock_khz=mean(reading.get("frequencies_khz")),
        throttle_count=reading.get("throttle_count"),
        raspberry_throttled=reading.get("raspberry_throttled"),
        nvidia=reading.get("nvidia"),
    )


def cool_down(
    idle: Reading,
    *,
    limit_seconds: float,
    read_sensors: Callable[[], Reading],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Wait until the device is as cool as when idle, at most ``limit_seconds``.

    The temperature decides if it can be read, else the CPU clock, else a fixed pause.

    Returns:
        ``seconds`` of waiting, and ``ended_by``: "temperature", "clock", "time limit" or "no sensor".
    """
    begin = clock()
    while True:
        sensor, cool = _is_cool(idle, read_sensors())
        waited = clock() - begin
        if cool or waited >= limit_seconds:
            return {"seconds": waited, "ended_by": sensor if cool else "time limit"}
        if sensor == "no sensor":
            sleep(min(_REST_SECONDS, limit_seconds))
            return {"seconds": clock() - begin, "ended_by": sensor}
        sleep(min(_POLL_SECONDS, limit_seconds - waited))


def _is_cool(idle: Reading, reading: Reading) -> tuple[str, bool]:
    """Return the sensor that decides, and true if the device is cool."""
    idle_celsius, celsius = _warmest(idle), _warmest(reading)
    if idle_celsius is not None and celsius is not None:
        return "temperature", celsius <= idle_celsius + _COOL_DEGREES
    idle_clock, clock = (mean(sensors.get("frequencies_khz")) for sensors in (idle, reading))
    if idle_clock and clock:
        return "clock", clock >= _COOL_CLOCK * idle_clock
    return "no sensor", False


def _warmest(reading: Reading) -> float | None:
    """Temperature of the hottest zone or GPU in °C."""
    temperatures = list((reading.get("temperatures_c") or {}).values())
    for card in reading.get("nvidia") or []:
        try:
            temperatures.append(float(card["temperature.gpu"]))
        except (KeyError, ValueError):  # "[N/A]"
            continue
    return max(temperatures, default=None)
