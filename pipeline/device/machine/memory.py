"""Resident memory of this process, in kB as Linux counts them (1024 bytes); None where the system does not tell."""

from __future__ import annotations

from pathlib import Path

_PROCESS = Path("/proc/self")


def current_memory_kb() -> int | None:
    return _status("VmRSS")


def peak_memory_kb() -> int | None:
    """Largest resident size so far, or since ``reset_peak``.

    From /proc and not getrusage: on Linux a child's ru_maxrss starts at what its parent had when it was forked.
    """
    return _status("VmHWM")


def reset_peak() -> bool:
    """Let the peak begin anew from what is resident now; False where the system does not allow it."""
    try:
        (_PROCESS / "clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _status(name: str) -> int | None:
    status = _PROCESS / "status"
    if not status.is_file():
        return None
    lines = status.read_text(encoding="ascii", errors="replace").splitlines()
    found = [int(line.split()[1]) for line in lines if line.startswith(f"{name}:")]
    return found[0] if found else None
