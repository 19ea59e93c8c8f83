"""A lock file that names the process that holds it."""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from pipeline.errors import BusyError
from pipeline.portable.files import path_in_errors, read_object

_DYING_SECONDS = 10.0  # a data loader's workers look for their parent every 5 seconds


@contextmanager
def exclusive(lock: Path, work: str) -> Iterator[None]:
    """Hold a lock file while the block runs; the file names this process for others that want the lock.

    The lock ends with the process, however that ends. After a kill, worker processes of the holder keep the lock for a
    few seconds until they notice its death; this function waits for them.

    Args:
        work: the work in words, such as "training this teacher", for messages.

    Raises:
        BusyError: another process holds it; the message names it, and says if the dvc that started it was killed.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + _DYING_SECONDS
    # not by filelock, which drops the lock in forked processes: the workers of a killed holder must keep it
    with lock.open("a+", encoding="utf-8") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                holder = _holder(lock)
                if holder is None or not holder.dead or time.monotonic() > deadline:
                    raise BusyError(_busy(lock, work, holder)) from None
                time.sleep(0.1)
        with path_in_errors(lock):
            file.truncate(0)
            me = _Holder(os.getpid(), os.getppid(), os.uname().nodename, "DVC_STAGE" in os.environ)  # which dvc sets
            os.write(file.fileno(), json.dumps(vars(me)).encode())  # unbuffered: a buffer would fail again at close
        yield


@dataclass(frozen=True)
class _Holder:
    """Holder of a lock: its process id, its parent's id when it took the lock, its machine, and if dvc started it."""

    pid: int
    parent: int
    host: str
    by_dvc: bool

    @property
    def here(self) -> bool:
        return self.host == os.uname().nodename

    @property
    def dead(self) -> bool:
        return self.here and _running(self.pid) is None

    @property
    def orphaned(self) -> bool:
        process = _running(self.pid) if self.here else None
        if process is None:
            return False
        # a dvc that was killed while its stage was starting was no longer the parent when the stage took the lock
        return process.ppid() != self.parent or (self.by_dvc and not any(map(is_dvc, process.parents())))


def is_dvc(process: psutil.Process) -> bool:
    """Whether a process is dvc."""
    try:
        return any("dvc" in word for word in process.cmdline())
    except psutil.Error:
        return False


def _running(pid: int) -> psutil.Process | None:
    """None also for a process that is dead but not yet reaped."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return process
    return None


def _holder(lock: Path) -> _Holder | None:
    """None while the holder has not yet written the file."""
    try:
        return _Holder(**(read_object(lock) or {}))
    except TypeError:
        return None


def _busy(lock: Path, work: str, holder: _Holder | None) -> str:
    if holder is None:
        return f"another process is already {work} (it holds {lock}); wait for it or stop it"
    if not holder.here:
        return (
            f"process {holder.pid} on {holder.host} is already {work} (it holds {lock}); wait for it or stop it there"
        )
    if holder.dead:
        return (
            f"processes that the ended process {holder.pid} started are still {work} (they hold {lock}); "
            f"`fuser {lock}` names them: wait for them or stop them"
        )
    if holder.orphaned:
        return (
            f"process {holder.pid} is already {work}, left behind by a dvc that was killed (it holds {lock}); wait "
            f"until it ends or stop it with `kill {holder.pid}`, then run the same command again"
        )
    return f"process {holder.pid} is already {work} (it holds {lock}); wait for it or stop it with `kill {holder.pid}`"
