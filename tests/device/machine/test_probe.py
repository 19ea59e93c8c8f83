from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from pipeline.device.machine import probe, system
from tests.device.fake_system import install_command, write

X86 = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Intel Xeon\n"
ARM = "processor\t: 0\nBogoMIPS\t: 100.00\nCPU implementer\t: 0x00\n"
ARCH_STATUS = "proc/self/arch_status"
MIDR = "sys/devices/system/cpu/cpu0/regs/identification/midr_el1"
KEYS = {
    "cpu",
    "board",
    "machine",
    "cpu_flags",
    "emulated",
    "cpu_boost",
    "power_profile",
    "memory_limit",
    "swap_total_kb",
    "page_bytes",
    "libc",
    "numpy",
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


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Raspberry Pi's /proc and /sys."""
    monkeypatch.setattr(system, "affinity", lambda: [0, 1])
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
    found = probe.describe_machine()
    assert set(found) == KEYS
    assert socket.gethostname() not in json.dumps(found).split('"')


def test_an_unknown_system_gives_nulls_and_no_exception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    found = probe.describe_machine(tmp_path)
    assert set(found) == KEYS
    empty = ("board", "cpu_flags", "cpu_quota", "governors", "frequency_limits_khz", "cpu_boost", "power_profile")
    empty += ("memory_total_kb", "memory_limit", "swap_total_kb", "nvidia")
    assert [found[key] for key in empty] == [None] * len(empty)
    assert found["state"]["temperatures_c"] is None
    assert found["state"]["raspberry_throttled"] is None


def test_a_board_is_read(board: Path) -> None:
    found = probe.describe_machine(board)
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
    found = probe.describe_machine(board)
    assert (found["virtual_machine"], found["cpu_flags"]) == (True, ["avx2"])


def test_a_laptop_without_mains_is_on_battery(board: Path) -> None:
    write(board, "sys/class/power_supply/AC/online", "0\n")
    assert probe.describe_machine(board)["on_battery"] is True
    write(board, "sys/class/power_supply/AC/online", "1\n")
    assert probe.describe_machine(board)["on_battery"] is False


def test_vendor_tools_are_read_where_they_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "bin"
    install_command(folder, "vcgencmd", "echo throttled=0x50005", monkeypatch)
    install_command(folder, "nvpmodel", "echo 'NV Power Mode: 15W'", monkeypatch)
    install_command(folder, "nvidia-smi", "echo 'Test GPU, 560.35, 8192, 200.0, Enabled'", monkeypatch)
    found = probe.describe_machine()
    assert found["state"]["raspberry_throttled"] == 0x50005
    assert found["nvpmodel"] == "NV Power Mode: 15W"
    assert found["nvidia"][0]["name"] == "Test GPU"
    assert probe.device_name(gpu=True) == "Test GPU"


def test_the_device_has_a_short_name() -> None:
    name = probe.device_name()
    assert name
    assert "\n" not in name
    assert len(name) < 100


def test_a_quota_is_read_from_either_version_of_control_groups(board: Path) -> None:
    write(board, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    write(board, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    assert probe.describe_machine(board)["cpu_quota"] == "max 100000"
    write(board, "sys/fs/cgroup/cpu.max", "50000 100000\n")
    assert probe.describe_machine(board)["cpu_quota"] == "50000 100000"


@pytest.mark.parametrize(
    ("path", "value", "boost"),
    [("intel_pstate/no_turbo", "1", False), ("intel_pstate/no_turbo", "0", True), ("cpufreq/boost", "1", True)],
)
def test_boost_is_read_as_intel_and_others_have_it(board: Path, path: str, value: str, boost: bool) -> None:
    write(board, f"sys/devices/system/cpu/{path}", value)
    assert probe.describe_machine(board)["cpu_boost"] is boost


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "sign", "expected"),
    [
        ("x86_64", X86, ARCH_STATUS, False),
        ("x86_64", X86, None, False),
        ("aarch64", ARM, MIDR, False),
        ("armv7l", ARM, None, False),
        ("aarch64", X86, None, True),
        ("aarch64", ARM, ARCH_STATUS, True),  # QEMU 8.1 and later imitate /proc/cpuinfo
        ("riscv64", "isa\t: rv64imafdc\n", ARCH_STATUS, True),
        ("x86_64", ARM, MIDR, True),
        ("x86_64", X86, MIDR, False),
        ("s390x", "vendor_id\t: IBM/S390\n", None, False),
        ("x86_64", X86.replace("Intel Xeon", "QEMU TCG CPU version 2.5+"), ARCH_STATUS, True),
        ("riscv64", "isa\t: rv64imafdc\n", None, None),
        ("aarch64", "", None, None),
    ],
)
def test_a_translated_program_is_known_by_the_kernel_below_it(
    machine: str, cpuinfo: str, sign: str | None, expected: bool | None, tmp_path: Path
) -> None:
    write(tmp_path, "proc/cpuinfo", cpuinfo)
    if sign is not None:
        write(tmp_path, sign, "")
    assert probe.emulated(tmp_path, machine) is expected


def test_this_machine_is_as_it_says() -> None:
    assert probe.emulated() in {False, None}
