"""What a client does with a run on the device beside starting it: follow it, stop it, clean up."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.device.errors import DeviceError
from pipeline.device.service.detached import death, runs
from pipeline.device.service.lock import DeviceLock
from pipeline.device.service.processes import end_marked, started_ticks
from pipeline.device.service.session import DIED, RESULT, Session, bundle_folders

# Looking rarely, because looking is work that the device does while it is timed.
_LOOK_SECONDS = 0.5
BEAT_SECONDS = 5.0
_STOP_SECONDS = 30.0
# Of bundles that nobody has just copied here.
_UNUSED_SECONDS = 3600.0

Tell = Callable[[Mapping[str, Any]], None]


def follow(session: Session, tell: Tell) -> None:
    """Tell the progress of a run as it changes, a sign of life every few seconds, and at last how it ended.

    Raises:
        DeviceError: there is no such run.
        BrokenPipeError: the client has gone.
    """
    if not session.path.is_dir():
        raise DeviceError(f"there is no run {session.run} of this bundle; start it first.")
    lock = DeviceLock(session.folder)
    told: Mapping[str, Any] | None = None
    beat = time.monotonic()
    while True:
        # In this order: what a run leaves is complete once it holds the lock no more.
        alive = runs(lock, session)
        progress = session.progress()
        if progress is not None and progress != told:
            tell({"progress": progress})
            told, beat = progress, time.monotonic()
        if not alive:
            tell({"end": session.outcome() or {"status": DIED, "message": death(session)}})
            return
        if time.monotonic() - beat >= BEAT_SECONDS:
            tell({"alive": True})
            beat = time.monotonic()
        time.sleep(_LOOK_SECONDS)


def stop(session: Session) -> bool:
    """End a run; returns once it holds the device no more.

    Returns:
        whether it was running.

    Raises:
        DeviceError: it could not be ended.
    """
    lock = DeviceLock(session.folder)
    if not runs(lock, session):
        return False
    holder = lock.holder()
    # A process with this number that began at another time is none of ours.
    if holder is not None and holder.pid and started_ticks(holder.pid) == holder.started:
        os.kill(holder.pid, signal.SIGTERM)
        _wait(lock, session)
    if runs(lock, session):
        end_marked(session.folder)
        _wait(lock, session)
    if runs(lock, session):
        raise DeviceError(f"run {session.run} could not be ended; end it by hand.")
    return True


def _wait(lock: DeviceLock, session: Session) -> None:
    until = time.monotonic() + _STOP_SECONDS
    while runs(lock, session) and time.monotonic() < until:
        time.sleep(0.1)


def clean(session: Session, *, keep: int, days: float) -> list[str]:
    """Forget a run that was fetched, and remove bundles that are old or too many.

    Never removes what runs, what was copied within the last hour, or, before its time, what has results that no client
    has fetched.

    Args:
        session: fetched; its bundle stays.
        keep: bundles beside this one.
        days: after which a bundle goes, whatever else.

    Returns:
        SHA-256 of the removed bundles.
    """
    holder = DeviceLock(session.folder).holder()
    if holder is None or (holder.bundle, holder.run) != (session.bundle, session.run):
        shutil.rmtree(session.path, ignore_errors=True)
    busy = {session.bundle, *([holder.bundle] if holder else [])}
    others = sorted((path for path in bundle_folders(session.folder) if path.name not in busy), key=_age)
    removed = []
    for rank, path in enumerate(others):
        surplus = rank >= keep and _age(path) > _UNUSED_SECONDS and not any(path.glob(f"*/{RESULT}"))
        if surplus or _age(path) > days * 86400:
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path.name)
    return removed


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0
