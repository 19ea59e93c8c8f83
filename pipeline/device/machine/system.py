"""Helpers that read files below /proc and /sys and the output of commands."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

PACKAGE_ROOT = Path(__file__).parents[3].resolve()  # folder or zip archive that holds the package `pipeline`
_COMMAND_SECONDS = 10

T = TypeVar("T")


def package_environment() -> dict[str, str]:
    """Environment variable that lets a child Python process import the package `pipeline`."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(PACKAGE_ROOT), os.environ.get("PYTHONPATH")]))}


def attempt(read: Callable[[], T]) -> T | None:
    """Call ``read``; returns None if the system does not have the value or this user may not read it."""
    try:
        return read()
    except (OSError, ValueError, AttributeError, subprocess.SubprocessError):
        return None


def read_text(path: Path) -> str | None:
    return attempt(lambda: path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")) or None


def read_number(path: Path) -> int | None:
    return attempt(lambda: int(path.read_text(encoding="ascii")))


def paths(folder: Path, pattern: str) -> list[Path]:
    return attempt(lambda: sorted(folder.glob(pattern))) or []


def not_none(values: Iterable[T | None]) -> list[T]:
    return [value for value in values if value is not None]


def run_command(name: str, *arguments: str) -> str | None:
    """Output of a command; None if it is not installed, fails, or runs for more than ten seconds."""
    command = [shutil.which(name) or "", *arguments]

    def output() -> str:
        process = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=True)
        return process.stdout.strip()

    return (attempt(output) or None) if command[0] else None


def field_of(text: str, name: str) -> str | None:
    """Value of the first line ``name: value``; None if there is none."""
    match = re.search(rf"^{name}\s*:\s*(.+)$", text, re.MULTILINE)
    return match.group(1).strip() if match else None


def affinity() -> list[int] | None:
    """Numbers of the cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def frequency_folders(root: Path) -> list[Path]:
    """The cpufreq folders of the cores that this process may use."""
    folders = (root / f"sys/devices/system/cpu/cpu{core}/cpufreq" for core in affinity() or [])
    return [folder for folder in folders if folder.is_dir()]


def frequencies(root: Path, kind: str) -> list[int]:
    """Clock in kHz of each core that this process may use; ``kind`` is "cur", "min" or "max"."""
    return not_none(read_number(folder / f"scaling_{kind}_freq") for folder in frequency_folders(root))


def meminfo_kb(root: Path, name: str) -> int | None:
    field = field_of(read_text(root / "proc/meminfo") or "", name)
    return None if field is None else attempt(lambda: int(field.split()[0]))


def nvidia_smi(fields: tuple[str, ...]) -> list[dict[str, str]] | None:
    """Fields of each GPU, as text; None without nvidia-smi, as on a Jetson."""
    output = run_command("nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits")
    rows = None if output is None else [map(str.strip, line.split(",")) for line in output.splitlines()]
    return None if rows is None else [dict(zip(fields, row, strict=False)) for row in rows]
