"""Whether this processor is another one's imitation."""

from __future__ import annotations

import platform
import re
import sys
from pathlib import Path

from pipeline.device.machine.system import read_text, run_command

_X86 = re.compile(r"x86_64|amd64|i[3-6]86", re.IGNORECASE)


def emulated(root: Path = Path("/"), machine: str | None = None) -> bool | None:
    """Whether programs for this machine are translated for a processor of another kind, as qemu-user does.

    Linux gives a translated program the names of the imitated machine, but /proc and /sys are those of the real kernel:
    only kernels for x86 have ``arch_status``, only those for ARM have ``midr_el1``. QEMU 8.1 and later imitate
    /proc/cpuinfo too, so that file alone would not do.

    Args:
        machine: that programs are told; None asks the system.

    Returns:
        None where the system shows neither sign.
    """
    if sys.platform == "darwin":
        translated = run_command("sysctl", "-n", "sysctl.proc_translated")
        return None if translated is None else translated == "1"
    cpuinfo = read_text(root / "proc/cpuinfo") or ""
    if "QEMU TCG" in cpuinfo:
        return True
    x86_kernel = (root / "proc/self/arch_status").exists() or re.search(r"^vendor_id\s*:", cpuinfo, re.MULTILINE)
    arm_kernel = (root / "sys/devices/system/cpu/cpu0/regs/identification/midr_el1").exists() or re.search(
        r"^CPU implementer\s*:", cpuinfo, re.MULTILINE
    )
    is_x86 = _X86.fullmatch(machine or platform.machine()) is not None
    if is_x86 and arm_kernel and not x86_kernel:
        return True
    if not is_x86 and x86_kernel:
        # s390x has a vendor_id as well, but no arch_status; its own programs are not translated
        return (machine or platform.machine()) != "s390x"
    return False if x86_kernel or arm_kernel else None
