from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pipeline.device.machine.power import EnergyCounter, MeterError, PowerGauge, find_meter
from tests.device.fake_system import install_command, write

POWERCAP = "sys/class/powercap"
HWMON = "sys/class/hwmon/hwmon3"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", "/bin")  # install_command adds to it; no nvidia-smi of this machine
    return tmp_path / "root"


def write_zone(root: Path, zone: str, name: str, energy: int, span: int | None = 262_143_328_850) -> Path:
    write(root, f"{POWERCAP}/{zone}/name", f"{name}\n")
    write(root, f"{POWERCAP}/{zone}/energy_uj", f"{energy}\n")
    if span is not None:
        write(root, f"{POWERCAP}/{zone}/max_energy_range_uj", f"{span}\n")
    return root / POWERCAP / zone


def write_rail(root: Path, channel: int, label: str, millivolts: int, milliamperes: int, chip: str = HWMON) -> None:
    write(root, f"{chip}/name", "ina3221\n")
    write(root, f"{chip}/in{channel}_label", f"{label}\n")
    write(root, f"{chip}/in{channel}_input", f"{millivolts}\n")
    write(root, f"{chip}/curr{channel}_input", f"{milliamperes}\n")


def test_rapl_adds_up_the_packages_and_nothing_within_or_around_them(root: Path) -> None:
    first = write_zone(root, "intel-rapl:0", "package-0", 5_000_000)
    second = write_zone(root, "intel-rapl:1", "package-1", 1_000_000)
    core = write_zone(root, "intel-rapl:0:0", "core", 0)
    whole = write_zone(root, "intel-rapl:2", "psys", 0)
    meter, reason = find_meter(root)
    assert meter is not None
    assert (meter.name, reason) == ("RAPL package-0, package-1", "")

    def work() -> str:
        (first / "energy_uj").write_text("7500000")
        (second / "energy_uj").write_text("1250000")
        (core / "energy_uj").write_text("999000000")
        (whole / "energy_uj").write_text("999000000")
        return "done"

    consumed, result = meter.measure(work)
    assert result == "done"
    assert consumed.joules == pytest.approx(2.75)
    assert consumed.watts == pytest.approx(2.75 / consumed.seconds)


def test_a_counter_that_begins_again_is_followed_over_its_range(root: Path) -> None:
    zone = write_zone(root, "intel-rapl:0", "package-0", 9_000_000, span=10_000_000)
    consumed, _ = EnergyCounter("RAPL", (zone,)).measure(lambda: (zone / "energy_uj").write_text("500000"))
    assert consumed.joules == pytest.approx(1.5)


def test_a_counter_that_begins_again_at_an_unknown_count_is_no_reading(root: Path) -> None:
    zone = write_zone(root, "intel-rapl:0", "package-0", 9_000_000, span=None)
    with pytest.raises(MeterError, match="restarted from 0"):
        EnergyCounter("RAPL", (zone,)).measure(lambda: (zone / "energy_uj").write_text("500000"))


def test_a_counter_that_vanishes_is_no_reading(root: Path) -> None:
    zone = write_zone(root, "intel-rapl:0", "package-0", 1)
    with pytest.raises(MeterError, match="gave no reading"):
        EnergyCounter("RAPL", (zone,)).measure((zone / "energy_uj").unlink)


def test_a_counter_that_may_not_be_read_is_the_reason(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone = write_zone(root, "intel-rapl:0", "package-0", 1)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may read everything
    meter, reason = find_meter(root)
    assert meter is None
    words = f"this user may not read {zone / 'energy_uj'}; the board shows no INA sensor."
    assert reason == f"energy per inference not measured: {words}"


def test_the_rail_of_a_whole_board_is_taken_alone(root: Path) -> None:
    write_rail(root, 1, "VDD_IN", 5000, 2000)
    write_rail(root, 2, "VDD_CPU_GPU_CV", 5000, 800)
    for gpu in (False, True):
        meter, _ = find_meter(root, gpu=gpu)
        assert meter is not None
        assert meter.name == "ina3221 VDD_IN (whole board)"
        consumed, _ = meter.measure(lambda: time.sleep(0.4))
        assert consumed.watts == pytest.approx(10.0)


def test_rails_without_one_for_the_whole_board_are_added_up_and_named(root: Path) -> None:
    write_rail(root, 1, "VDD_GPU_SOC", 10000, 300)
    write_rail(root, 2, "VDD_CPU_CV", 10000, 200)
    write_rail(root, 3, "NC", 10000, 900)
    write(root, "sys/class/hwmon/hwmon0/name", "coretemp\n")
    write(root, "sys/class/hwmon/hwmon0/power1_input", "99000000\n")
    meter, _ = find_meter(root)
    assert isinstance(meter, PowerGauge)
    assert meter.name == "ina3221 VDD_GPU_SOC + ina3221 VDD_CPU_CV"
    assert meter.watts() == pytest.approx(5.0)


def test_a_chip_that_shows_power_is_read_in_microwatts(root: Path) -> None:
    write(root, f"{HWMON}/name", "ina219\n")
    write(root, f"{HWMON}/power1_input", "4200000\n")
    write(root, f"{HWMON}/in1_input", "5000\n")
    write(root, f"{HWMON}/curr1_input", "1\n")
    meter, _ = find_meter(root)
    assert isinstance(meter, PowerGauge)
    assert (meter.name, meter.watts()) == ("ina219 power1", pytest.approx(4.2))


def test_a_gauge_integrates_what_it_shows_while_work_runs() -> None:
    shown = iter([2.0, 4.0] * 1000)
    consumed, _ = PowerGauge("gauge", lambda: next(shown), 0.01).measure(lambda: time.sleep(0.5))
    assert consumed.watts == pytest.approx(3.0, rel=0.1)
    assert consumed.joules == pytest.approx(consumed.watts * consumed.seconds)
    assert consumed.seconds >= 0.5


def test_a_gauge_with_few_readings_is_no_meter() -> None:
    with pytest.raises(MeterError, match=r"gauge gave 1 readings in 0\.0 s, 5 needed\."):
        PowerGauge("gauge", lambda: 3.0, 10.0).measure(lambda: None)


def test_a_gauge_stops_reading_when_work_fails() -> None:
    readings: list[float] = []

    def fail() -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        PowerGauge("gauge", lambda: readings.append(1.0), 0.01).measure(fail)
    count = len(readings)
    time.sleep(0.05)
    assert len(readings) == count


def test_a_gpu_is_read_through_nvidia_smi(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = 'case "$1" in *name*) echo "Test GPU, 71.5";; *) echo 71.5;; esac'
    install_command(tmp_path / "bin", "nvidia-smi", script, monkeypatch)
    write_zone(root, "intel-rapl:0", "package-0", 1)  # not the GPU's
    meter, _ = find_meter(root, gpu=True)
    assert isinstance(meter, PowerGauge)
    assert (meter.name, meter.watts()) == ("NVML power.draw of Test GPU", 71.5)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'Test GPU, [N/A]'", "nvidia-smi shows no power of Test GPU"),
        ("echo 'A, 1'; echo 'B, 2'", "nvidia-smi shows 2 GPUs, but not which of them runs the model"),
        ("exit 9", "nvidia-smi shows no GPU"),
    ],
)
def test_a_gpu_without_a_clear_reading_has_no_meter(
    script: str, words: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_command(tmp_path / "bin", "nvidia-smi", script, monkeypatch)
    meter, reason = find_meter(root, gpu=True)
    assert meter is None
    assert reason == f"energy per inference not measured: {words}; the board shows no INA sensor."


def test_a_machine_without_a_meter_says_what_was_looked_for(root: Path) -> None:
    assert find_meter(root) == (
        None,
        "energy per inference not measured: RAPL is not available; the board shows no INA sensor.",
    )
