"""Latency under load that goes on, minute by minute, until it does not change any more."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.device.benchmark import statistics
from pipeline.device.machine.sensors import sensors, slowdown, throttling

WINDOW_SECONDS = 60.0
# A plateau: so many whole minutes in a row whose medians lie within this share of their own median.
PLATEAU_MINUTES = 3
PLATEAU_RANGE = 0.02
# Cool is at most so far above the idle temperature, or at least this share of the idle clock.
COOL_DEGREES = 3.0
COOL_CLOCK = 0.95
COOL_LIMIT_SECONDS = 300.0
_REST_SECONDS = 10.0  # where nothing tells how warm the device is
_POLL_SECONDS = 2.0
_PERCENTILES = {"p50_ms": 0.5, "p90_ms": 0.9, "p95_ms": 0.95, "p99_ms": 0.99}

Json = dict[str, Any]


def sustain(
    time_window: Callable[[float], Sequence[int]],
    *,
    limit_seconds: float,
    window_seconds: float = WINDOW_SECONDS,
    read_sensors: Callable[[], Json] = sensors,
    clock: Callable[[], float] = time.monotonic,
) -> Json:
    """Measure minute by minute until a plateau or the limit; sensors are read between the minutes.

    Args:
        time_window: runs inferences for so many seconds and returns the nanoseconds of each.
        window_seconds: of what is called a minute here.

    Returns:
        ``minutes`` with the percentiles that the samples of each carry; ``ended_by`` "plateau" or "time limit";
        ``plateau_ms``, the median of the medians of the plateau, or None; ``last_to_first``, the ratio of the last
        median to the first; ``evidence`` of throttling in any minute, or of a slower clock at the end.
    """
    begin = clock()
    first = last = read_sensors()
    minutes: list[Json] = []
    proved: list[str] = []
    ended_by = "time limit"
    while (left := limit_seconds - (clock() - begin)) > 0:
        wanted = min(window_seconds, left)
        started = clock()
        samples = time_window(wanted)
        seconds = clock() - started
        last = read_sensors()
        proved += throttling(first, last)
        minutes.append(_minute(np.asarray(samples), seconds, whole=wanted == window_seconds) | _state(last))
        if is_plateau(minutes):
            ended_by = "plateau"
            break
    medians = [minute["p50_ms"] for minute in minutes if minute["p50_ms"] is not None]
    plateau = [minute["p50_ms"] for minute in minutes[-PLATEAU_MINUTES:]] if ended_by == "plateau" else None
    return {
        "minutes": minutes,
        "ended_by": ended_by,
        "plateau_ms": None if plateau is None else float(np.median(plateau)),
        "last_to_first": medians[-1] / medians[0] if len(medians) > 1 else None,
        "seconds": clock() - begin,
        "evidence": list(dict.fromkeys([*proved, *slowdown(first, last)])),
    }


def is_plateau(minutes: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the last PLATEAU_MINUTES are whole, have a median each, and these lie within PLATEAU_RANGE."""
    medians = [minute["p50_ms"] for minute in minutes[-PLATEAU_MINUTES:] if minute["whole"]]
    if len(medians) < PLATEAU_MINUTES or None in medians:
        return False
    return bool(max(medians) - min(medians) <= PLATEAU_RANGE * float(np.median(medians)))


def _minute(samples: NDArray[np.int64], seconds: float, *, whole: bool) -> Json:
    found = {key: statistics.percentile(samples / 1e6, p) for key, p in _PERCENTILES.items()}
    return {
        "samples": int(samples.size),
        "seconds": seconds,
        "whole": whole,
        **{key: percentile.value for key, percentile in found.items()},
        "mean_ms": float(samples.mean()) / 1e6,
        "max_ms": float(samples.max()) / 1e6,
        "notes": [percentile.reason for percentile in found.values() if percentile.reason is not None],
    }


def _state(reading: Json) -> Json:
    clocks = reading.get("frequencies_khz")
    return {
        "temperature_c": _warmest(reading),
        "clock_khz": sum(clocks) / len(clocks) if clocks else None,
        "throttle_count": reading.get("throttle_count"),
        "raspberry_throttled": reading.get("raspberry_throttled"),
        "nvidia": reading.get("nvidia"),
    }


def cool_down(
    idle: Json,
    *,
    limit_seconds: float = COOL_LIMIT_SECONDS,
    read_sensors: Callable[[], Json] = sensors,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Json:
    """Wait until the device is as cool as it was when idle, or for ``limit_seconds``.

    The temperature decides where it can be read, else the clock; where neither can, the device rests for a fixed time.

    Returns:
        ``seconds`` waited and ``ended_by``: "temperature", "clock", "time limit" or "no sensor".
    """
    begin = clock()
    while True:
        reading = read_sensors()
        sign, cool = _is_cool(idle, reading)
        waited = clock() - begin
        if cool or waited >= limit_seconds:
            return {"seconds": waited, "ended_by": sign if cool else "time limit"}
        if sign == "no sensor":
            sleep(min(_REST_SECONDS, limit_seconds))
            return {"seconds": clock() - begin, "ended_by": sign}
        sleep(min(_POLL_SECONDS, limit_seconds - waited))


def _is_cool(idle: Json, reading: Json) -> tuple[str, bool]:
    then, now = _warmest(idle), _warmest(reading)
    if then is not None and now is not None:
        return "temperature", now <= then + COOL_DEGREES
    clocks = [one.get("frequencies_khz") for one in (idle, reading)]
    if all(clocks):
        before, after = (sum(values) / len(values) for values in clocks if values)
        return "clock", after >= COOL_CLOCK * before
    return "no sensor", False


def _warmest(reading: Json) -> float | None:
    """Degrees of the hottest zone or GPU."""
    temperatures = list((reading.get("temperatures_c") or {}).values())
    for card in reading.get("nvidia") or []:
        try:
            temperatures.append(float(card["temperature.gpu"]))
        except (KeyError, ValueError):  # "[N/A]"
            continue
    return max(temperatures, default=None)
