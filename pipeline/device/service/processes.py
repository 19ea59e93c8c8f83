"""Processes of a run, found so that none of another program is ever taken for one of them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from pipeline.device.service.session import BUNDLE

# In the environment of a run and of all that it starts: the folder whose lock the run holds.
MARK = "ENERGYKD_RUN_FOLDER"
# Of their command lines. Any other process that a run starts ends by itself and may have something to put in order.
_MEASURING = (b"pipeline.device.benchmark.worker", BUNDLE.encode())
_PROC = Path("/proc")


def started_ticks(pid: int) -> int | None:
    """When a process began, in clock ticks since the device started; tells it from a later one with the same number.

    None if there is no such process, or the system does not tell.
    """
    try:
        stat = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The second field is a name in parentheses that may hold anything; the start time is the 22nd.
    return int(stat.rpartition(")")[2].split()[19])


def marked(folder: Path) -> list[int]:
    """Processes of this user that measure for a run in ``folder``; none where the system does not tell."""
    wanted = f"{MARK}={folder}".encode()
    found = []
    for path in _PROC.glob("[0-9]*") if _PROC.is_dir() else []:
        try:
            environment = (path / "environ").read_bytes()
            command = (path / "cmdline").read_bytes()
        except OSError:
            continue
        measuring = any(sign in command for sign in _MEASURING)
        if measuring and wanted in environment.split(b"\0") and int(path.name) != os.getpid():
            found.append(int(path.name))
    return found


def end_marked(folder: Path, patience_seconds: float = 10.0) -> None:
    """End what is left of runs in ``folder``; only for the one who holds its lock, or wants its run ended."""
    for sign, patience in ((signal.SIGTERM, patience_seconds), (signal.SIGKILL, 2.0)):
        for pid in marked(folder):
            _send(pid, sign)
        until = time.monotonic() + patience
        while marked(folder):
            if time.monotonic() > until:
                break
            time.sleep(0.05)
        else:
            return


def _send(pid: int, sign: signal.Signals) -> None:
    try:
        os.kill(pid, sign)
    except (ProcessLookupError, PermissionError):
        return
