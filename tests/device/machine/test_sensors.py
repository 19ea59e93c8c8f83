from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.device.machine import sensors
from tests.device.fake_system import install_command


def test_a_failing_vendor_tool_is_null(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("vcgencmd", "nvidia-smi"):
        install_command(tmp_path / "bin", name, "echo broken driver; exit 9", monkeypatch)
    found = sensors.sensors(gpu=True)
    assert (found["raspberry_throttled"], found["nvidia"]) == (None, None)


def test_nvidia_smi_is_not_asked_for_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_command(tmp_path / "bin", "nvidia-smi", f"touch {tmp_path / 'asked'}", monkeypatch)
    sensors.sensors()
    assert not (tmp_path / "asked").exists()


@pytest.mark.parametrize(
    ("before", "after", "sentences"),
    [
        ({}, {}, []),
        ({"throttle_count": 3}, {"throttle_count": 3}, []),
        ({"throttle_count": 3}, {"throttle_count": 5}, ["the CPU's thermal throttle counters went up by 2."]),
        ({"raspberry_throttled": 0x50000}, {"raspberry_throttled": 0x50000}, []),
        ({"raspberry_throttled": 0}, {"raspberry_throttled": 0x40000}, ["vcgencmd reports throttled."]),
        ({"raspberry_throttled": 0}, {"raspberry_throttled": 0x5}, ["vcgencmd reports under-voltage, throttled."]),
        ({}, {"nvidia": [{"clocks_throttle_reasons.active": "0x0000000000000001"}]}, []),
        (
            {},
            {"nvidia": [{"clocks_throttle_reasons.active": "0x0000000000000060"}]},
            ["GPU 0 reports software thermal slowdown, hardware thermal slowdown."],
        ),
        ({}, {"nvidia": [{"clocks_throttle_reasons.active": "[N/A]"}]}, []),
    ],
)
def test_throttling_is_proved_by_counters_and_bits(
    before: dict[str, object], after: dict[str, object], sentences: list[str]
) -> None:
    assert sensors.throttling(before, after) == sentences


def test_a_lower_clock_and_a_hot_zone_are_signs_of_slowdown() -> None:
    before = {"frequencies_khz": [2400000, 2400000]}
    after = {
        "frequencies_khz": [1500000, 1500000],
        "temperatures_c": {"cpu-0": 81.0, "gpu-1": 90.0},
        "temperature_limits_c": {"cpu-0": 80.0},
    }
    assert sensors.slowdown(before, after) == [
        "the CPU clock fell from 2400 to 1500 MHz.",
        "cpu-0 is at 81 °C, its limit is 80 °C.",
    ]
    assert sensors.slowdown(before, before) == []
    assert sensors.slowdown({}, {}) == []
