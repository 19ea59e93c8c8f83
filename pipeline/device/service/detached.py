"""A run that outlives the connection that started it: a process that measures, and one that watches over it."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import subprocess
import sys
import traceback
from types import FrameType

from pipeline.device.errors import DeviceError
from pipeline.device.service.bundle import open_bundle, sha256_of
from pipeline.device.service.execute import execute
from pipeline.device.service.lock import DeviceLock, Holder, LockedError, boot_id
from pipeline.device.service.processes import MARK, end_marked, started_ticks
from pipeline.device.service.session import DIED, FAILED, FINISHED, RESULT, SAMPLES, Session, drop_leftovers

LATE = "it did not end within its time limit; measure less or raise the limit"
STOPPED = "it was stopped on request"
_GRACE_SECONDS = 15


def start(session: Session, owner: str, limit_seconds: float) -> str:
    """Start the run and return at once; or find out that it was started before, which is no reason to measure again.

    Args:
        owner: user@host of the client, for whoever finds the device locked.
        limit_seconds: after which the run is ended.

    Returns:
        "started", "running", or "ended" for a run that came to its end or died.

    Raises:
        LockedError: another run holds the device.
        DeviceError: the file system has no locks.
        OSError: no space, or no right to write.
    """
    lock = DeviceLock(session.folder)
    if runs(lock, session):
        return "running"
    if session.path.exists():
        return "ended"
    holder = Holder.now(owner, session.bundle, session.run)
    try:
        descriptor = lock.take(holder)
    except LockedError:
        # Perhaps by an earlier client of this very run, between the two looks.
        if runs(lock, session):
            return "running"
        raise
    try:
        # Who holds the lock knows that all other runs are over, whatever their last workers believe.
        end_marked(session.folder)
        drop_leftovers(session.folder)
        session.create()
        process = _spawn(session, descriptor, limit_seconds)
        lock.describe(dataclasses.replace(holder, pid=process.pid, started=started_ticks(process.pid)))
    finally:
        os.close(descriptor)
    return "started"


def runs(lock: DeviceLock, session: Session) -> bool:
    """Whether this run goes on now."""
    holder = lock.holder()
    return holder is not None and (holder.bundle, holder.run) == (session.bundle, session.run)


def _spawn(session: Session, lock: int, limit_seconds: float) -> subprocess.Popen[bytes]:
    words = ["run", "--folder", str(session.folder), "--bundle", session.bundle, "--run", session.run]
    with session.log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, str(session.archive), *words, "--lock", str(lock), "--limit", str(limit_seconds)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # The connection's end sends its signals to the connection's session only.
            start_new_session=True,
            pass_fds=(lock,),
            env={**os.environ, MARK: str(session.folder)},
        )


def supervise(session: Session, lock: int, limit_seconds: float) -> None:
    """Measure in a child process, and write down how that ended, whatever ended it.

    A termination signal stops the run; ``lock`` is held until both processes have ended.
    """
    os.set_inheritable(lock, False)
    child = os.fork()
    if child == 0:
        os._exit(_measure(session))
    reasons: list[str] = []

    def end(number: int, frame: FrameType | None) -> None:
        if not reasons:
            reasons.append(LATE if number == signal.SIGALRM else STOPPED)
            os.kill(child, signal.SIGTERM)
            signal.setitimer(signal.ITIMER_REAL, _GRACE_SECONDS)
        elif number == signal.SIGALRM:
            os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, limit_seconds)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    signal.setitimer(signal.ITIMER_REAL, 0)
    end_marked(session.folder)
    session.drop_files()
    session.write_outcome(DIED, message=reasons[0] if reasons else _manner(code, session))


def _measure(session: Session) -> int:
    """The child's whole life; its exit code matters only where it could not write how it ended."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    try:
        bundle = open_bundle(session.archive)
        execute(bundle, session.bundle, session.files, session.path, session.write_progress)
        session.write_outcome(FINISHED, sha256={name: sha256_of(session.path / name) for name in (RESULT, SAMPLES)})
    except DeviceError as error:
        return _failed(session, str(error))
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return _failed(session, f"no space is left in {session.folder}; free space there or use another folder")
        traceback.print_exc()
        return _failed(session, f"{error.strerror or error} ({error.filename or session.folder}); see {session.log}")
    except SystemExit:
        return 1
    except BaseException as error:
        traceback.print_exc()
        return _failed(session, f"the program met a defect ({type(error).__name__}: {error}); see {session.log}")
    return 0


def _failed(session: Session, message: str) -> int:
    # First, because a full disk has no room for the message.
    session.drop_files()
    session.write_outcome(FAILED, message=message)
    return 0


def _manner(code: int, session: Session) -> str:
    if code < 0:
        name = signal.strsignal(-code) or "unknown"
        advice = (
            "; if the device ran out of memory, use fewer images or smaller files" if code == -signal.SIGKILL else ""
        )
        return f"it was ended by signal {-code} ({name}){advice}"
    return f"it ended with exit code {code}: {session.last_words()}"


def death(session: Session) -> str:
    """Why a run has neither an outcome nor a process, as far as the device can tell."""
    begun = session.begun_in()
    if begun is not None and begun != boot_id():
        return "the device was restarted meanwhile"
    return f"all its processes were ended from outside; its last words: {session.last_words()}"
