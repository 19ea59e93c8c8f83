from __future__ import annotations

import json
import os
import socket
import stat
from pathlib import Path

import pytest

from pipeline.device import probe

KEYS = {
    "cpu",
    "board",
    "machine",
    "cpu_flags",
    "logical_cores",
    "affinity",
    "cpu_quota",
    "governors",
    "frequency_limits_khz",
    "memory_total_kb",
    "kernel",
    "system",
    "python",
    "container",
    "virtual_machine",
    "on_battery",
    "nvidia",
    "nvpmodel",
    "state",
}


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text, encoding="utf-8")


def install_command(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder) + os.pathsep + os.environ["PATH"])


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Raspberry Pi's /proc and /sys."""
    monkeypatch.setattr(probe, "_affinity", lambda: [0, 1])
    root = tmp_path / "root"
    write(root, "proc/cpuinfo", "processor\t: 0\nFeatures\t: fp asimd asimddp\nHardware\t: BCM2712\n")
    write(root, "proc/device-tree/model", "Raspberry Pi 5 Model B Rev 1.0\0")
    write(root, "proc/meminfo", "MemTotal:        8000000 kB\nMemAvailable:    6000000 kB\n")
    for core in (0, 1):
        folder = f"sys/devices/system/cpu/cpu{core}/cpufreq"
        write(root, f"{folder}/scaling_governor", "ondemand\n")
        write(root, f"{folder}/scaling_min_freq", "1500000\n")
        write(root, f"{folder}/scaling_max_freq", "2400000\n")
        write(root, f"{folder}/scaling_cur_freq", "2400000\n")
    write(root, "sys/class/thermal/thermal_zone0/type", "cpu-thermal\n")
    write(root, "sys/class/thermal/thermal_zone0/temp", "61500\n")
    write(root, "sys/class/thermal/thermal_zone0/trip_point_0_type", "critical\n")
    write(root, "sys/class/thermal/thermal_zone0/trip_point_0_temp", "110000\n")
    write(root, "sys/class/thermal/thermal_zone0/trip_point_1_type", "passive\n")
    write(root, "sys/class/thermal/thermal_zone0/trip_point_1_temp", "80000\n")
    return root


def test_this_machine_is_described_without_its_name() -> None:
    found = probe.provenance()
    assert set(found) == KEYS
    assert socket.gethostname() not in json.dumps(found).split('"')


def test_an_unknown_system_gives_nulls_and_no_exception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    found = probe.provenance(tmp_path)
    assert set(found) == KEYS
    empty = ("board", "cpu_flags", "cpu_quota", "governors", "frequency_limits_khz", "memory_total_kb", "nvidia")
    assert [found[key] for key in empty] == [None] * len(empty)
    assert found["state"]["temperatures_c"] is None
    assert found["state"]["raspberry_throttled"] is None


def test_a_board_is_read(board: Path) -> None:
    found = probe.provenance(board)
    assert found["board"] == "Raspberry Pi 5 Model B Rev 1.0"
    assert found["cpu"] == "BCM2712"
    assert found["cpu_flags"] == ["asimd", "asimddp"]
    assert found["governors"] == ["ondemand"]
    assert found["frequency_limits_khz"] == {"min": 1500000, "max": 2400000}
    assert found["memory_total_kb"] == 8000000
    assert found["state"]["frequencies_khz"] == [2400000, 2400000]
    assert found["state"]["temperatures_c"] == {"cpu-thermal-0": 61.5}
    assert found["state"]["temperature_limits_c"] == {"cpu-thermal-0": 80.0}


def test_a_virtual_machine_is_known_by_its_cpu_flag(board: Path) -> None:
    write(board, "proc/cpuinfo", "model name\t: AMD EPYC\nflags\t\t: fpu avx2 hypervisor\n")
    found = probe.provenance(board)
    assert (found["virtual_machine"], found["cpu_flags"]) == (True, ["avx2"])


def test_a_laptop_without_mains_is_on_battery(board: Path) -> None:
    write(board, "sys/class/power_supply/AC/online", "0\n")
    assert probe.provenance(board)["on_battery"] is True
    write(board, "sys/class/power_supply/AC/online", "1\n")
    assert probe.provenance(board)["on_battery"] is False


def test_vendor_tools_are_read_where_they_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "bin"
    install_command(folder, "vcgencmd", "echo throttled=0x50005", monkeypatch)
    install_command(folder, "nvpmodel", "echo 'NV Power Mode: 15W'", monkeypatch)
    install_command(folder, "nvidia-smi", "echo 'Test GPU, 560.35, 8192, 200.0, Enabled'", monkeypatch)
    found = probe.provenance()
    assert found["state"]["raspberry_throttled"] == 0x50005
    assert found["nvpmodel"] == "NV Power Mode: 15W"
    assert found["nvidia"][0]["name"] == "Test GPU"
    assert probe.device_name(gpu=True) == "Test GPU"


def test_a_failing_vendor_tool_is_null(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("vcgencmd", "nvidia-smi"):
        install_command(tmp_path / "bin", name, "echo broken driver; exit 9", monkeypatch)
    found = probe.sensors(gpu=True)
    assert (found["raspberry_throttled"], found["nvidia"]) == (None, None)


def test_nvidia_smi_is_not_asked_for_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_command(tmp_path / "bin", "nvidia-smi", f"touch {tmp_path / 'asked'}", monkeypatch)
    probe.sensors()
    assert not (tmp_path / "asked").exists()


def test_the_device_has_a_short_name() -> None:
    name = probe.device_name()
    assert name
    assert "\n" not in name
    assert len(name) < 100


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
    assert probe.throttling(before, after) == sentences


def test_a_lower_clock_and_a_hot_zone_are_signs_of_slowdown() -> None:
    before = {"frequencies_khz": [2400000, 2400000]}
    after = {
        "frequencies_khz": [1500000, 1500000],
        "temperatures_c": {"cpu-0": 81.0, "gpu-1": 90.0},
        "temperature_limits_c": {"cpu-0": 80.0},
    }
    assert probe.slowdown(before, after) == [
        "the CPU clock fell from 2400 to 1500 MHz.",
        "cpu-0 is at 81 °C, its limit is 80 °C.",
    ]
    assert probe.slowdown(before, before) == []
    assert probe.slowdown({}, {}) == []
