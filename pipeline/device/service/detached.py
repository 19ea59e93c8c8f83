"""Runs that continue after the client's connection ends: start, follow, stop and clean."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from pipeline.device.errors import DeviceError
from pipeline.device.service import lock
from pipeline.device.service.bundle import open_bundle
from pipeline.device.service.execute import execute
from pipeline.device.service.run_folder import DIED, FAILED, FINISHED, RESULT, SAMPLES, RunFolder, bundle_folders
from pipeline.portable.files import sha256_file

TIMED_OUT = "it did not end within its time limit; measure less or raise the limit"
STOPPED = "it was stopped on request"
ALIVE_SECONDS = 5.0  # interval of the heartbeat
_GRACE_SECONDS = 15
POLL_SECONDS = 0.5  # a short interval would disturb the latency measurement
_STOP_SECONDS = 30.0
_UNUSED_SECONDS = 3600.0  # a younger bundle may belong to a client that has just copied it


def start(run: RunFolder, owner: str, limit_seconds: float) -> str:
    """Start the run in the background, unless it was started before.

    Args:
        owner: user@host of the client, shown to other clients while the device is locked.
        limit_seconds: time limit of the run.

    Returns:
        "started", "running", or "ended" for an earlier run that finished or died.
    """
    device_lock = lock.DeviceLock(run.folder)
    if is_running(run):
        return "running"
    if run.path.exists():
        return "ended"
    holder = lock.Holder.now(owner, run.bundle, run.id)
    try:
        descriptor = device_lock.take(holder)
    except lock.LockedError:
        # An earlier client may have started this run since the first check.
        if is_running(run):
            return "running"
        raise
    try:
        # With the lock held, all other runs have ended, so their remaining workers can be ended too.
        lock.end_measuring_processes(run.folder)
        for files in (files for bundle in bundle_folders(run.folder) for files in bundle.glob("*/files")):
            shutil.rmtree(files, ignore_errors=True)
        run.create()
        process = _spawn(run, descriptor, limit_seconds)
        device_lock.describe(dataclasses.replace(holder, pid=process.pid, started=lock.started_ticks(process.pid)))
    finally:
        os.close(descriptor)
    return "started"


def is_running(run: RunFolder) -> bool:
    """Return true if this run holds the device."""
    holder = lock.DeviceLock(run.folder).holder()
    return holder is not None and (holder.bundle, holder.run) == (run.bundle, run.id)


def _spawn(run: RunFolder, descriptor: int, limit_seconds: float) -> subprocess.Popen[bytes]:
    arguments = ["run", "--folder", str(run.folder), "--bundle", run.bundle, "--run", run.id]
    with run.log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, str(run.archive), *arguments, "--lock", str(descriptor), "--limit", str(limit_seconds)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # the end of the connection signals only the session of the connection
            pass_fds=(descriptor,),
            env={**os.environ, lock.RUN_VARIABLE: str(run.folder)},
        )


def supervise(run: RunFolder, descriptor: int, limit_seconds: float) -> None:
    """Measure in a child process and write the outcome, even if a signal ends the child.

    SIGTERM stops the run. ``descriptor`` holds the lock until both processes have ended.
    """
    os.set_inheritable(descriptor, False)
    child = os.fork()
    if child == 0:
        os._exit(_measure(run))
    reasons: list[str] = []

    def end(number: int, frame: FrameType | None) -> None:
        if not reasons:
            reasons.append(TIMED_OUT if number == signal.SIGALRM else STOPPED)
            os.kill(child, signal.SIGTERM)
            signal.setitimer(signal.ITIMER_REAL, _GRACE_SECONDS)
        elif number == signal.SIGALRM:
            os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, limit_seconds)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    signal.setitimer(signal.ITIMER_REAL, 0)
    lock.end_measuring_processes(run.folder)
    run.remove_files()
    run.write_outcome(DIED, message=reasons[0] if reasons else _exit_reason(code, run))


def _measure(run: RunFolder) -> int:
    """Main function of the child process. Its exit code matters only if it could not write the outcome."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    try:
        execute(open_bundle(run.archive), run.bundle, run.files, run.path, run.write_progress)
        run.write_outcome(FINISHED, sha256={name: sha256_file(run.path / name) for name in (RESULT, SAMPLES)})
        return 0
    except SystemExit:
        return 1
    except DeviceError as error:
        message = str(error)
    except BaseException as error:
        message = f"the program failed with {type(error).__name__}: {error}; see {run.log}"
        if isinstance(error, OSError):
            message = f"{error.strerror or error} ({error.filename or run.folder}); see {run.log}"
        if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
            message = f"no space is left in {run.folder}; free space there or use another folder"
        else:
            traceback.print_exc()
    run.remove_files()  # first, because the disk may be full and the message needs space
    run.write_outcome(FAILED, message=message)
    return 0


def _exit_reason(code: int, run: RunFolder) -> str:
    """Describe the exit code of the child process."""
    if code >= 0:
        return f"it ended with exit code {code}: {run.last_log_line()}"
    advice = "; if the device ran out of memory, use fewer images or smaller files" if code == -signal.SIGKILL else ""
    return f"it was ended by signal {-code} ({signal.strsignal(-code) or 'unknown'}){advice}"


def follow(run: RunFolder, send: Callable[[Mapping[str, Any]], None]) -> None:
    """Send every change of the progress, a heartbeat every few seconds, and at last the outcome."""
    if not run.path.is_dir():
        raise DeviceError(f"there is no run {run.id} of this bundle; start it first.")
    last: Mapping[str, Any] | None = None
    sent_at = time.monotonic()
    while True:
        # Check the lock first: a run writes all its files before it releases the lock.
        alive, progress = is_running(run), run.progress()
        if progress is not None and progress != last:
            send({"progress": progress})
            last, sent_at = progress, time.monotonic()
        if not alive:
            send({"end": run.outcome() or {"status": DIED, "message": _lost_reason(run)}})
            return
        if time.monotonic() - sent_at >= ALIVE_SECONDS:
            send({"alive": True})
            sent_at = time.monotonic()
        time.sleep(POLL_SECONDS)


def _lost_reason(run: RunFolder) -> str:
    """Explain why a run has neither an outcome nor a process."""
    if run.boot() not in {None, lock.boot_id()}:
        return "the device was restarted meanwhile"
    return f"all its processes were ended from outside; the end of its log: {run.last_log_line()}"


def stop(run: RunFolder) -> bool:
    """End a run and wait until it releases the device; false if it was not running. Raises DeviceError if it stays."""
    if not is_running(run):
        return False
    holder = lock.DeviceLock(run.folder).holder()
    # A process with the same id and another start time is not the supervisor.
    if holder is not None and holder.pid and lock.started_ticks(holder.pid) == holder.started:
        os.kill(holder.pid, signal.SIGTERM)
        _wait(run)
    if is_running(run):
        lock.end_measuring_processes(run.folder)
        _wait(run)
    if is_running(run):
        raise DeviceError(f"run {run.id} could not be ended; end it by hand.")
    return True


def _wait(run: RunFolder) -> None:
    until = time.monotonic() + _STOP_SECONDS
    while is_running(run) and time.monotonic() < until:
        time.sleep(0.1)


def clean(run: RunFolder, *, keep: int, days: float) -> list[str]:
    """Remove a fetched run, and bundles that are too old or too many; returns the SHA-256 of removed bundles.

    Bundles in use are kept. Bundles younger than an hour or with unfetched results are removed only for their age.

    Args:
        keep: number of other bundles to keep.
        days: age limit of a bundle.
    """
    holder = lock.DeviceLock(run.folder).holder()
    if not is_running(run):
        shutil.rmtree(run.path, ignore_errors=True)
    busy = {run.bundle, *([holder.bundle] if holder else [])}
    others = sorted((path for path in bundle_folders(run.folder) if path.name not in busy), key=_age)
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
