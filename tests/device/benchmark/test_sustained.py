from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.device.benchmark.sustained import cool_down, is_plateau, sustain
from pipeline.portable.documents import Sustained


class Device:
    """Time that passes only in inferences and while waiting; ``latency_ms`` is a function of the seconds passed."""

    def __init__(self, latency_ms: Callable[[float], float]) -> None:
        self.now = 0.0
        self.latency_ms = latency_ms
        self.readings_within = 0
        self.timing = False

    def clock(self) -> float:
        return self.now

    def time_window(self, seconds: float) -> Sequence[int]:
        self.timing = True
        end, samples = self.now + seconds, []
        while self.now < end - 1e-9:
            samples.append(round(self.latency_ms(self.now) * 1e6))
            self.now += samples[-1] / 1e9
        self.timing = False
        return samples

    def read_sensors(self) -> dict[str, Any]:
        self.readings_within += self.timing
        return {"frequencies_khz": [2_400_000 if self.now < 100 else 1_500_000], "temperatures_c": {"cpu-0": 60.0}}

    def sustain(self, limit_seconds: float) -> Sustained:
        return sustain(self.time_window, limit_seconds=limit_seconds, read_sensors=self.read_sensors, clock=self.clock)


def test_a_steady_device_is_at_its_plateau_after_three_minutes() -> None:
    device = Device(lambda now: 50.0)
    found = device.sustain(3600)
    assert (found.ended_by, len(found.minutes)) == ("plateau", 3)
    assert found.plateau_ms == pytest.approx(50.0)
    assert found.last_to_first == pytest.approx(1.0)
    assert found.seconds == pytest.approx(180, abs=1)
    assert device.readings_within == 0


def test_a_device_that_slows_down_is_followed_to_where_it_settles() -> None:
    generator = np.random.default_rng(0)
    device = Device(lambda now: (100.0 if now < 90 else 160.0) * float(generator.normal(1, 0.01)))
    found = device.sustain(3600)
    assert found.ended_by == "plateau"
    assert found.plateau_ms == pytest.approx(160, rel=0.01)
    assert found.minutes[0].p50_ms == pytest.approx(100, rel=0.01)
    assert len(found.minutes) == 5
    assert found.last_to_first == pytest.approx(1.6, rel=0.02)
    assert found.evidence == ["the CPU clock fell from 2400 to 1500 MHz."]


def test_a_device_that_keeps_slowing_down_is_ended_by_the_limit_without_a_plateau() -> None:
    found = Device(lambda now: 50 + now / 10).sustain(330)
    assert (found.ended_by, found.plateau_ms) == ("time limit", None)
    assert [minute.whole for minute in found.minutes] == [True] * 5 + [False]
    assert found.seconds == pytest.approx(330, abs=1)


def test_a_minute_has_only_the_percentiles_that_its_samples_carry() -> None:
    [fast, slow] = (Device(lambda now, ms=ms: ms).sustain(60).minutes[0] for ms in (100.0, 4000.0))
    assert (fast.samples, fast.p90_ms, fast.p95_ms, fast.p99_ms) == (600, 100.0, 100.0, None)
    assert fast.notes == ["p99 not measured: 600 samples, 662 needed."]
    assert (slow.samples, slow.p50_ms, slow.p90_ms) == (15, 4000.0, None)


def test_minutes_with_too_few_samples_are_no_plateau() -> None:
    found = Device(lambda now: 20_000.0).sustain(400)
    assert (found.ended_by, found.plateau_ms, found.last_to_first) == ("time limit", None, None)


@pytest.mark.parametrize(
    ("medians", "whole", "expected"),
    [
        ([10, 10, 10], [True] * 3, True),
        ([10, 10.1, 10.2], [True] * 3, True),
        ([10, 10.1, 10.3], [True] * 3, False),
        ([5, 10, 10, 10], [True] * 4, True),
        ([10, 10], [True] * 2, False),
        ([10, 10, 10], [True, True, False], False),
        ([10, 10, None], [True] * 3, False),
    ],
)
def test_a_plateau_is_three_whole_minutes_within_two_percent(
    medians: list[float | None], whole: list[bool], expected: bool
) -> None:
    minutes = [SimpleNamespace(p50_ms=median, whole=each) for median, each in zip(medians, whole, strict=True)]
    assert is_plateau(minutes) is expected  # type: ignore[arg-type]


class Cooling:
    """A clock for ``cool_down``, whose readings are a function of the seconds waited."""

    def __init__(self, reading: Callable[[float], dict[str, Any]]) -> None:
        self.now = 0.0
        self.reading = reading

    def wait(self, idle: dict[str, Any], limit_seconds: float = 300.0) -> dict[str, Any]:
        def sleep(seconds: float) -> None:
            self.now += seconds

        return cool_down(
            idle,
            limit_seconds=limit_seconds,
            read_sensors=lambda: self.reading(self.now),
            clock=lambda: self.now,
            sleep=sleep,
        )


def zone(degrees: float) -> dict[str, Any]:
    return {"temperatures_c": {"cpu-0": degrees}}


def test_waiting_ends_when_the_temperature_is_near_idle() -> None:
    found = Cooling(lambda now: zone(80 - now / 2)).wait(zone(50))
    assert found["ended_by"] == "temperature"
    assert found["seconds"] == pytest.approx(54, abs=2)


def test_waiting_ends_at_the_limit_where_the_device_stays_warm() -> None:
    found = Cooling(lambda now: zone(80)).wait(zone(50), limit_seconds=31)
    assert (found["ended_by"], found["seconds"]) == ("time limit", 31)


def test_the_clock_decides_where_no_temperature_can_be_read() -> None:
    slow_then_fast = Cooling(lambda now: {"frequencies_khz": [1_500_000 if now < 10 else 2_400_000]})
    assert slow_then_fast.wait({"frequencies_khz": [2_400_000]}) == {"seconds": 10, "ended_by": "clock"}


def test_a_gpu_that_is_warm_is_waited_for() -> None:
    card = {"temperature.gpu": "40"}
    found = Cooling(lambda now: {"nvidia": [{"temperature.gpu": "70" if now < 6 else "42"}]}).wait({"nvidia": [card]})
    assert found == {"seconds": 6, "ended_by": "temperature"}


def test_without_sensors_the_device_rests_for_a_fixed_time() -> None:
    assert Cooling(lambda now: {}).wait({}) == {"seconds": 10, "ended_by": "no sensor"}
    assert Cooling(lambda now: {"nvidia": [{"temperature.gpu": "[N/A]"}]}).wait({}, 3)["ended_by"] == "no sensor"
