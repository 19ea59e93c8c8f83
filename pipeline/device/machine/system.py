"""Small readings of what the system shows: files below /proc and /sys, and the output of commands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

_COMMAND_SECONDS = 10

T = TypeVar("T")


def attempt(read: Callable[[], T]) -> T | None:
    """The value, or None where the system does not have it or does not show it to this user."""
    try:
        return read()
    except (OSError, ValueError, AttributeError, subprocess.SubprocessError):
        return None


def read_text(path: Path) -> str | None:
    return attempt(lambda: path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")) or None


def read_number(path: Path) -> int | None:
    return attempt(lambda: int(path.read_text(encoding="ascii")))


def run_command(name: str, *arguments: str) -> str | None:
    program = shutil.which(name)
    if program is None:
        return None

    def run() -> str | None:
        done = subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=True
        )
        return done.stdout.strip() or None

    return attempt(run)


def field_of(text: str, name: str) -> str | None:
    found = re.search(rf"^{name}\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else None


def affinity() -> list[int] | None:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def frequency_folders(root: Path) -> list[Path]:
    """cpufreq folders of the cores that this process may use."""
    folders = (root / f"sys/devices/system/cpu/cpu{core}/cpufreq" for core in affinity() or [])
    return [folder for folder in folders if folder.is_dir()]


def meminfo_kb(root: Path, name: str) -> int | None:
    field = field_of(read_text(root / "proc/meminfo") or "", name)
    return None if field is None else attempt(lambda: int(field.split()[0]))


def nvidia_smi(fields: tuple[str, ...]) -> list[dict[str, str]] | None:
    """One dictionary for each GPU that nvidia-smi lists; None without nvidia-smi, as on a Jetson."""
    output = run_command("nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits")
    if output is None:
        return None
    return [dict(zip(fields, map(str.strip, line.split(",")), strict=False)) for line in output.splitlines()]
