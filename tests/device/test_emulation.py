from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.device.machine.emulation import emulated
from tests.device.fake_system import write

X86 = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Intel Xeon\n"
ARM = "processor\t: 0\nBogoMIPS\t: 100.00\nCPU implementer\t: 0x00\n"
ARCH_STATUS = "proc/self/arch_status"
MIDR = "sys/devices/system/cpu/cpu0/regs/identification/midr_el1"


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
    assert emulated(tmp_path, machine) is expected


def test_this_machine_is_as_it_says() -> None:
    assert emulated() in {False, None}
