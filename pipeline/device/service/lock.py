"""The lock that allows one measurement at a time on a device, its holder, and the processes of a run."""

from __future__ import annotations

import dataclasses
import fcntl
import getpass
import os
import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.device.errors import DeviceError
from pipeline.device.machine.system import read_text
from pipeline.device.service.bundle import BUNDLE
from pipeline.portable.files import read_object, write_object

_WAIT_SECONDS = 1.0  # reading the holder takes the lock for a moment
_PROC = Path("/proc")
# Environment variable of a run and its child processes, with the folder of the lock.
RUN_VARIABLE = "ENERGYKD_RUN_FOLDER"
# Parts of the command lines of measuring processes. Other child processes end by themselves and may need to clean up.
_MEASURING = (b"pipeline.device.benchmark.worker", BUNDLE.encode())


class LockedError(DeviceError):
    """Another run holds the device."""


@dataclass(frozen=True)
class Holder:
    """The holder of the lock.

    Attributes:
        owner: user@host of the client.
        bundle: SHA-256 of the bundle.
        run: id of the run, chosen by the client.
        pid: process id of the supervisor; 0 until it has started.
        boot: ``boot_id`` when the lock was taken.
        seconds: ``boot_seconds`` when the lock was taken.
        started: ``started_ticks`` of the supervisor.
    """

    owner: str
    bundle: str
    run: str
    pid: int
    boot: str | None
    seconds: float
    started: int | None = None

    @classmethod
    def now(cls, owner: str, bundle: str, run: str) -> Holder:
        return cls(owner, bundle, run, 0, boot_id(), boot_seconds())

    def describe(self, boot: str | None, seconds: float) -> str:
        """Text such as "ann@laptop's run of bundle 3fa9c02b since 12 minutes"; the arguments are the present values."""
        since = _age(seconds - self.seconds) if self.boot == boot else "before the device was restarted"
        return f"{self.owner}'s run of bundle {self.bundle[:8]} since {since}"


def owner() -> str:
    """The present user as user@host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def boot_seconds() -> float:
    """Seconds since the device was started, independent of the wall clock."""
    # CLOCK_BOOTTIME includes sleep; only Linux has it.
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def boot_id() -> str | None:
    """Id that changes at every start of the device; None if the system does not report it."""
    return read_text(_PROC / "sys/kernel/random/boot_id")


def _age(seconds: float) -> str:
    count, unit = max(int(seconds), 0), "second"
    for larger in ("minute", "hour"):
        if count >= 120:
            count, unit = count // 60, larger
    return f"{count} {unit}{'' if count == 1 else 's'}"


class DeviceLock:
    """The lock of a device's folder. The kernel releases it when the last process that holds it ends, even by a kill.

    All methods raise DeviceError on a file system without locks.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "lock"
        self._info = folder / "lock.json"

    def holder(self) -> Holder | None:
        """Return the present holder; None if the lock is free."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            # A shared lock, so that two readers at once do not look like a holder.
            return None if self._try(descriptor, fcntl.LOCK_SH) else self._read()
        finally:
            os.close(descriptor)

    def take(self, holder: Holder) -> int:
        """Take the lock; returns the file descriptor that holds it. Child processes can inherit the descriptor.

        Raises LockedError with the other holder and the age of its lock.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        until = time.monotonic() + _WAIT_SECONDS
        try:
            while not self._try(descriptor, fcntl.LOCK_EX):
                if time.monotonic() > until:
                    other = self._read()
                    who = other.describe(boot_id(), boot_seconds()) if other else "a run that has just begun"
                    raise LockedError(f"locked by {who}; wait for its end or ask its owner to stop it.")
                time.sleep(0.05)
            self.describe(holder)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def describe(self, holder: Holder) -> None:
        """Write the holder to the file; only the holder itself may call this."""
        write_object(self._info, dataclasses.asdict(holder))

    def _read(self) -> Holder | None:
        try:
            return Holder(**(read_object(self._info) or {}))
        except TypeError:
            return None

    def _try(self, descriptor: int, kind: int) -> bool:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            reason = f"{self._path} cannot be locked ({error.strerror})"
            raise DeviceError(f"{reason}; choose a folder on a local disk of the device.") from error
        return True


def started_ticks(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot. It distinguishes processes with the same reused id."""
    stat = read_text(_PROC / str(pid) / "stat")
    # The second field is a name in parentheses with arbitrary characters; field 22 is the start time.
    return None if stat is None else int(stat.rpartition(")")[2].split()[19])


def measuring_processes(folder: Path) -> list[int]:
    """Ids of this user's measuring processes of runs in ``folder``; empty without /proc."""
    variable = os.fsencode(f"{RUN_VARIABLE}={folder}")
    pids = []
    for path in _PROC.glob("[0-9]*") if _PROC.is_dir() else []:
        try:
            environment = (path / "environ").read_bytes().split(b"\0")
            command = (path / "cmdline").read_bytes()
        except OSError:
            continue
        if variable in environment and any(part in command for part in _MEASURING) and int(path.name) != os.getpid():
            pids.append(int(path.name))
    return pids


def end_measuring_processes(folder: Path) -> None:
    """End the measuring processes of runs in ``folder``. The caller holds the lock or stops the run that holds it."""
    for number, seconds in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 2.0)):
        until = time.monotonic() + seconds
        for pid in measuring_processes(folder):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        while measuring_processes(folder) and time.monotonic() < until:
            time.sleep(0.05)
