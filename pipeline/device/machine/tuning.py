"""The CPU governor set to "performance" while measuring, and put back whatever ends the measurement.

Previous values are written to a file, under a lock, before anything is changed. They are put back at the end, at
SIGTERM, SIGINT and SIGHUP; after a kill by a child process that does nothing but wait for this one to end; and where
that was killed too, by the next measurement. A value that someone else has changed meanwhile is left alone.
"""

from __future__ import annotations

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

GOVERNOR = "performance"
_ENDING = ("SIGTERM", "SIGHUP")  # SIGINT is a KeyboardInterrupt already
_WATCHDOG = """import sys; from pipeline.device.machine.tuning import put_back
sys.stdin.buffer.read(); put_back(sys.argv[1], wait=True)"""
Json = dict[str, Any]


@contextmanager
def tuned(allowed: bool, root: Path = Path("/"), record: Path | None = None) -> Iterator[Json]:
    """Tune the device for the time of the block if that is allowed; first put back what an earlier run left behind.

    Args:
        root: where /sys is.
        record: file of the previous values; None for the one in the user's cache folder.

    Yields:
        ``allowed``; ``changed``, path -> [previous value, value]; ``notes``, a sentence for each thing that was not
        done or not found as it should be. Notes of putting back are added when the block has ended.
    """
    result: Json = {"allowed": allowed, "changed": {}, "notes": []}
    path = record or _record_path()
    if not allowed:
        if path.is_file():
            result["notes"] += put_back(path)
        yield result
        return
    with ExitStack() as stack:
        file = _open_record(path, result["notes"])
        if file is None:
            yield result
            return
        stack.enter_context(file)
        result["notes"] += _recover(file)
        changes = _find_changes(root, result["notes"])
        if not changes:
            yield result
            return
        _write_record(file, changes)
        stack.enter_context(_watchdog(path))
        stack.enter_context(_ended_by_signals())
        stack.callback(lambda: result["notes"].extend(_put_back_recorded(file)))
        result["changed"] = _apply(changes, result["notes"])
        yield result


def put_back(path: Path | str, *, wait: bool = False) -> list[str]:
    """Put back what a run that was killed has left behind; sentences about it, none if there is nothing.

    Args:
        wait: until the run that holds the record has ended, instead of leaving it alone.
    """
    notes: list[str] = []
    file = _open_record(Path(path), notes, wait=wait)
    if file is not None:
        with file:
            notes += _recover(file)
    return notes


def _record_path() -> Path:
    base = os.environ.get("ENERGYKD_CACHE") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    # Path.expanduser() raises for a user without a home
    return Path(os.path.expanduser(base)) / "energykd" / "tuning.json"  # noqa: PTH111


def _open_record(path: Path, notes: list[str], *, wait: bool = False) -> IO[str] | None:
    """The record, locked for as long as it is open; the lock ends with the process that holds it."""
    try:
        import fcntl
    except ImportError:
        notes.append("the device was not tuned: this system has no governors that can be set.")
        return None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        notes.append(
            f"the device was not tuned: {path} cannot be written ({error.strerror}); make its folder writable."
        )
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        file.close()
        notes.append("another measurement has tuned this device and still runs; its settings were left as they are.")
        return None
    return file


def _find_changes(root: Path, notes: list[str]) -> Json:
    """Path -> [previous value, new value] of the governors that are not what is wanted."""
    governors = sorted((root / "sys/devices/system/cpu/cpufreq").glob("policy*/scaling_governor"))
    if not governors:
        notes.append("the device was not tuned: it shows no CPU governor.")
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


def _apply(changes: Json, notes: list[str]) -> Json:
    done = {}
    for path, (before, value) in changes.items():
        try:
            Path(path).write_text(value, encoding="ascii")
        except OSError as error:
            notes.append(
                f"{path} was not changed ({error.strerror}); run with the right to write it, or set it yourself."
            )
        else:
            done[path] = [before, value]
    return done


def _write_record(file: IO[str], changes: Json) -> None:
    file.seek(0)
    file.truncate()
    file.write(json.dumps(changes) if changes else "")
    file.flush()
    os.fsync(file.fileno())


def _read_record(file: IO[str]) -> Json:
    """Path -> [previous value, value]; empty where nothing has to be put back."""
    file.seek(0)
    try:
        changes: Json = json.loads(file.read() or "{}")
    except ValueError:
        # The record is whole before anything is changed, so a run that was ended within writing it changed nothing.
        return {}
    return changes


def _recover(file: IO[str]) -> list[str]:
    """Put back what an earlier run has left in the open record; a sentence that says so, and those of failures."""
    if not _read_record(file):
        return []
    failures = _put_back_recorded(file)
    return failures or ["an earlier measurement was killed with the device tuned; the governor was put back."]


def _put_back_recorded(file: IO[str]) -> list[str]:
    """Put back what the open record holds, and empty it but for what could not be put back."""
    notes, left = [], {}
    for path, (before, value) in _read_record(file).items():
        governor = Path(path)
        try:
            if governor.read_text(encoding="ascii").strip() == value:
                governor.write_text(before, encoding="ascii")
        except OSError as error:
            notes.append(f"{path} could not be put back to {before} ({error.strerror}); set it yourself.")
            left[path] = [before, value]
    _write_record(file, left)
    return notes


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let a signal that asks this process to end raise SystemExit, so that ``finally`` blocks run."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # handlers belong to the main thread
        yield
        return
    numbers = [getattr(signal, name) for name in _ENDING if hasattr(signal, name)]
    previous = {number: signal.signal(number, end) for number in numbers if signal.getsignal(number) == signal.SIG_DFL}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _watchdog(record: Path) -> Iterator[None]:
    """A process of its own that waits for the end of its standard input, which is the end of this process."""
    root = Path(__file__).parents[3].resolve()
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    watchdog = subprocess.Popen(
        [sys.executable, "-c", _WATCHDOG, str(record.resolve())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,  # what kills the group of this process must not kill it too
    )
    try:
        yield
    finally:
        # It is needed only where a second signal has cut the putting back short.
        if not record.stat().st_size:
            watchdog.kill()
            watchdog.wait()
        if watchdog.stdin is not None:
            watchdog.stdin.close()
