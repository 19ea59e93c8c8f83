"""Sets the CPU governor to "performance" during a measurement, and restores it afterwards.

The previous values are first written to a locked file. They are restored at the end and at SIGTERM, SIGINT and SIGHUP.
After SIGKILL a child process (the watchdog) restores them, and if the watchdog was killed too, the next measurement
does. A governor that another program has changed in the meantime keeps its value.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any

from pipeline.device.machine.system import package_environment

GOVERNOR = "performance"
_WATCHDOG = """import sys; from pipeline.device.machine.tuning import put_back
sys.stdin.buffer.read(); put_back(sys.argv[1], wait=True)"""
_RECOVERED = "an earlier measurement was killed before it restored the CPU governor; it is restored now."
Changes = dict[str, list[str]]  # path -> [previous value, value]


@contextmanager
def tuned(allowed: bool, root: Path = Path("/"), record: Path | None = None) -> Iterator[dict[str, Any]]:
    """Set the governor for the duration of the block, if allowed. First restore the values of an earlier, killed run.

    Previous values are kept in ``record``, by default a file in the user's cache folder.

    Yields:
        ``allowed``; ``changed``, path -> [previous value, value]; ``notes``, a sentence for each problem. Problems of
        restoring are added after the block.
    """
    notes: list[str] = []
    result: dict[str, Any] = {"allowed": allowed, "changed": {}, "notes": notes}
    path = record or _record_path()
    with ExitStack() as stack:
        file = _open_record(path, notes) if allowed or path.is_file() else None
        if file is not None:
            stack.enter_context(file)
            notes += _put_back_recorded(file, _RECOVERED)
            changes = _find_changes(root, notes) if allowed else {}
            if changes:
                _write_record(file, changes)
                stack.enter_context(_watchdog(path))
                stack.enter_context(_exit_on_signals())
                stack.callback(lambda: notes.extend(_put_back_recorded(file)))
                result["changed"] = _apply(changes, notes)
            elif not allowed:
                file.close()
        yield result


def put_back(path: Path | str, *, wait: bool = False) -> list[str]:
    """Restore the values of a killed run; ``wait`` first waits for the end of a running one. Returns notes."""
    notes: list[str] = []
    if (file := _open_record(Path(path), notes, wait=wait)) is not None:
        with file:
            notes += _put_back_recorded(file, _RECOVERED)
    return notes


def _record_path() -> Path:
    base = os.environ.get("ENERGYKD_CACHE") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    # Path.expanduser() raises for a user without a home
    return Path(os.path.expanduser(base)) / "energykd" / "tuning.json"  # noqa: PTH111


def _open_record(path: Path, notes: list[str], *, wait: bool = False) -> IO[str] | None:
    """Open and lock the record; None with a note if that fails. The kernel releases the lock when the process ends."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        reason = f"{path} cannot be written ({error.strerror}); make its folder writable."
        notes.append(f"the device was not tuned: {reason}")
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        file.close()
        notes.append("another measurement has tuned this device and still runs; its settings were not changed.")
        return None
    return file


def _find_changes(root: Path, notes: list[str]) -> Changes:
    """Find the governors that are not "performance" but offer it; adds a note for each that cannot be set."""
    governors = sorted((root / "sys/devices/system/cpu/cpufreq").glob("policy*/scaling_governor"))
    if not governors:
        notes.append("the device was not tuned: no CPU governor was found.")
    changes = {}
    for governor in governors:
        try:
            value = governor.read_text(encoding="ascii").strip()
            offered = governor.with_name("scaling_available_governors").read_text(encoding="ascii").split()
        except OSError as error:
            notes.append(f"{governor} was not changed: its values cannot be read ({error.strerror}).")
            continue
        if GOVERNOR not in offered:
            notes.append(f"{governor} was not changed: it offers {', '.join(offered)}, but not {GOVERNOR}.")
        elif value != GOVERNOR:
            changes[str(governor)] = [value, GOVERNOR]
    return changes


def _apply(changes: Changes, notes: list[str]) -> Changes:
    changed = {}
    for path, change in changes.items():
        try:
            Path(path).write_text(change[1], encoding="ascii")
            changed[path] = change
        except OSError as error:
            remedy = "run with the right to write it, or set it yourself."
            notes.append(f"{path} was not changed ({error.strerror}); {remedy}")
    return changed


def _write_record(file: IO[str], changes: Changes) -> None:
    file.seek(0)
    file.truncate()
    file.write(json.dumps(changes) if changes else "")
    file.flush()
    os.fsync(file.fileno())


def _read_record(file: IO[str]) -> Changes:
    """Read the changes to undo. A truncated record counts as empty, because its writer had not changed anything yet."""
    file.seek(0)
    try:
        changes: Changes = json.loads(file.read() or "{}")
    except ValueError:
        return {}
    return changes


def _put_back_recorded(file: IO[str], success: str | None = None) -> list[str]:
    """Restore the values of the open record and keep those that fail; returns notes on failures, else ``success``."""
    recorded = _read_record(file)
    notes, failed = [], {}
    for path, (before, value) in recorded.items():
        governor = Path(path)
        try:
            if governor.read_text(encoding="ascii").strip() == value:
                governor.write_text(before, encoding="ascii")
        except OSError as error:
            notes.append(f"{path} could not be restored to {before} ({error.strerror}); set it yourself.")
            failed[path] = [before, value]
    _write_record(file, failed)
    return [success] if success and recorded and not notes else notes


@contextmanager
def _exit_on_signals() -> Iterator[None]:
    """Raise SystemExit at SIGTERM and SIGHUP, so that ``finally`` blocks run."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    signals = (signal.SIGTERM, signal.SIGHUP)  # SIGINT already raises KeyboardInterrupt
    previous = {number: signal.signal(number, end) for number in signals if signal.getsignal(number) == signal.SIG_DFL}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _watchdog(record: Path) -> Iterator[None]:
    """Start a process that restores the values when its standard input closes, which happens when this process ends."""
    watchdog = subprocess.Popen(
        [sys.executable, "-c", _WATCHDOG, str(record.resolve())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **package_environment()},
        start_new_session=True,  # a signal to the group of this process must not end the watchdog
    )
    try:
        yield
    finally:
        # The watchdog is still needed if a second signal interrupted the restoring.
        if not record.stat().st_size:
            watchdog.kill()
            watchdog.wait()
        if watchdog.stdin is not None:
            watchdog.stdin.close()
