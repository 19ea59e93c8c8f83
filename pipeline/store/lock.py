"""A lock file that one process holds, and that says who for the next one."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import BusyError
from pipeline.store.atomic import naming

_DYING_SECONDS = 10.0  # a data loader's workers look for their parent every 5 seconds


@contextmanager
def exclusive(lock: Path, work: str) -> Iterator[None]:
    """Hold a lock file while the block runs; the file names the process, for the one that finds it held.

    The lock ends with the process, however that ends. One whose holder is dead is held for a few seconds more by the
    processes that it had started, which notice its end: they are waited for.

    Args:
        work: what is done under it, as "training this teacher".

    Raises:
        BusyError: another process holds it; names the process, and says if what started that one is gone.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + _DYING_SECONDS
    with lock.open("a+", encoding="utf-8") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                file.seek(0)
                holder = _holder(file.read())
                if holder is None or not holder.dead or time.monotonic() > deadline:
                    raise BusyError(_busy(lock, work, holder)) from None
                time.sleep(0.1)
        with naming(lock):
            file.truncate(0)
            # past the buffer, which would fail once more when the file is closed
            os.write(file.fileno(), json.dumps(_me()).encode())
        yield


@dataclass(frozen=True)
class _Holder:
    """Who holds a lock: its process, that one's parent when it took the lock, their machine, and if dvc started it."""

    pid: int
    parent: int
    host: str
    by_dvc: bool

    @property
    def here(self) -> bool:
        return self.host == os.uname().nodename

    @property
    def dead(self) -> bool:
        return self.here and _status(self.pid) is None

    @property
    def orphaned(self) -> bool:
        parent = _status(self.pid) if self.here else None
        if parent is None:
            return False
        # a dvc that was killed while its stage still started was not its parent any more when that took the lock
        return parent != self.parent or (self.by_dvc and not _is_dvc(parent))


def _me() -> dict[str, Any]:
    # DVC_STAGE: dvc sets it for the programs of stages
    by_dvc = "DVC_STAGE" in os.environ
    return {"pid": os.getpid(), "parent": os.getppid(), "host": os.uname().nodename, "by_dvc": by_dvc}


def _is_dvc(pid: int) -> bool:
    """Whether a process, or one that it descends from, is dvc: between the two there may be a shell."""
    while pid > 1:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False
        if b"dvc" in words:
            return True
        pid = _status(pid) or 0
    return False


def _holder(text: str) -> _Holder | None:
    """None if the file does not tell, for the moment in which its holder writes it."""
    try:
        return _Holder(**json.loads(text))
    except (json.JSONDecodeError, TypeError):
        return None


def _status(pid: int) -> int | None:
    """The parent of a process that runs on this machine, else None; also for one that is dead but not yet reaped."""
    try:
        state, parent, *_ = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(parent)


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
