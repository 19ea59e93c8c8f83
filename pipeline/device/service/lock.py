"""One measurement at a time: a lock on the device's folder, and who holds it since when."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.device.errors import DeviceError
from pipeline.device.service.files import read_json, write_atomically

_PATIENCE_SECONDS = 1.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class LockedError(DeviceError):
    """Another run holds the device."""


@dataclass(frozen=True)
class Holder:
    """Who took the lock, for what, and when.

    Attributes:
        owner: user@host of the client.
        bundle: SHA-256.
        run: id that the client chose.
        pid: of the process that watches over the run; 0 until it has started.
        started: ``started_ticks`` of that process.
        boot: of the device's present uptime; None where the system does not tell.
        seconds: ``boot_seconds`` when the lock was taken.
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
        """As in "ann@laptop's run of bundle 3fa9c02b since 12 minutes".

        Args:
            boot: of the device now.
            seconds: ``boot_seconds`` of the device now.
        """
        same = self.boot == boot
        since = f"since {_age(seconds - self.seconds)}" if same else "since before the device was restarted"
        return f"{self.owner}'s run of bundle {self.bundle[:8]} {since}"


def boot_seconds() -> float:
    """Seconds since the device was started; no change of the date or the time moves it."""
    # CLOCK_BOOTTIME goes on while the device sleeps; only Linux has it.
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def boot_id() -> str | None:
    """Changes whenever the device is started."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return None


def _age(seconds: float) -> str:
    count, unit = max(int(seconds), 0), "second"
    if count >= 120:
        count, unit = count // 60, "minute"
    if unit == "minute" and count >= 120:
        count, unit = count // 60, "hour"
    return f"{count} {unit}{'' if count == 1 else 's'}"


class DeviceLock:
    """The lock of a device's folder. The kernel gives it back when the last process that holds it ends, however."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "lock"
        self._info = folder / "lock.json"

    def holder(self) -> Holder | None:
        """Who holds the lock now; None if nobody does.

        Raises:
            DeviceError: the file system has no locks.
        """
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            # Shared, so that two who look do not take each other for a holder.
            return None if self._try(descriptor, fcntl.LOCK_SH) else self._read()
        finally:
            os.close(descriptor)

    def take(self, holder: Holder) -> int:
        """Take the lock.

        Returns:
            the descriptor that holds it; processes that inherit it hold it as well.

        Raises:
            LockedError: another holds it; says who and since when.
            DeviceError: the file system has no locks.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        # Somebody who only looks holds it for a moment.
        patience = time.monotonic() + _PATIENCE_SECONDS
        try:
            while not self._try(descriptor, fcntl.LOCK_EX):
                if time.monotonic() > patience:
                    who = self._read()
                    shown = who.describe(boot_id(), boot_seconds()) if who else "a run that has just begun"
                    raise LockedError(f"locked by {shown}; wait for its end or ask its owner to stop it.")
                time.sleep(0.05)
            self.describe(holder)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def describe(self, holder: Holder) -> None:
        """Write down who holds the lock; only for the one who does."""
        write_atomically(self._info, json.dumps(dataclasses.asdict(holder)).encode())

    def _read(self) -> Holder | None:
        values = read_json(self._info)
        try:
            return None if values is None else Holder(**values)
        except TypeError:
            return None

    def _try(self, descriptor: int, kind: int) -> bool:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise DeviceError(
                f"{self._path} cannot be locked ({error.strerror}); choose a folder on a local disk of the device."
            ) from error
        return True
