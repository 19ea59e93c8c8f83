"""Checks whether a device can measure a bundle, before anything is copied to it."""

import json
from collections.abc import Mapping
from typing import Any

from pipeline.device.service.bundle import Bundle
from pipeline.device.service.lock import Holder
from pipeline.device.service.main import INSTALL
from pipeline.remote.device import Device
from pipeline.remote.errors import OccupiedError, RemoteError

_OLDEST = (3, 10)
_ROOM = 16 << 20  # for the result, the log and the workers' own small files
Facts = Mapping[str, Any]  # message of :data:`pipeline.remote.scripts.PREFLIGHT`


def modules(bundle: Bundle) -> list[str]:
    """Python modules that the bundle needs on the device."""
    return ["numpy", *sorted({variant.runtime for variant in bundle.plan.variants})]


def holder_of(facts: Facts) -> Holder | None:
    """Return the holder of the device's lock; None if it is free or unknown."""
    try:
        return Holder(**json.loads(facts["holder"])) if facts["locked"] else None
    except (TypeError, ValueError):
        return None


def occupant(facts: Facts) -> str:
    """Who holds the device's lock, for sentences."""
    holder = holder_of(facts)
    return holder.describe(facts["boot"], facts["uptime"]) if holder else "a run that has just begun"


def check_python(device: Device, facts: Facts) -> None:
    """Raise RemoteError if the device's Python is too old or has no numpy."""
    version = tuple(facts["python"])
    if version < _OLDEST:
        raise RemoteError(
            f"{device.python} on {device.name} is Python {'.'.join(map(str, version))}, too old for the benchmark, "
            "which needs 3.10 or newer; install one and set address.python to it."
        )
    if not facts["modules"]["numpy"]:
        remedy = f"install it there with `{device.python} -m pip install numpy`"
        raise RemoteError(f"{device.python} on {device.name} has no numpy; {remedy}.")


def check_ready(device: Device, bundle: Bundle, facts: Facts, missing_bytes: int) -> None:
    """Check that the device has one of the bundle's runtimes, is free, and has enough disk space.

    Args:
        missing_bytes: bytes of the bundle that must still be copied.

    Raises:
        RemoteError: none of the runtimes is installed, the folder cannot be written, or the disk has no space for the
            bundle and its extracted files.
        OccupiedError: another run holds the device.
    """
    runtimes = sorted({variant.runtime for variant in bundle.plan.variants})
    if not any(facts["modules"][runtime] for runtime in runtimes):
        installs = " or ".join(f"`{INSTALL[runtime]}`" for runtime in runtimes)
        raise RemoteError(
            f"{device.python} on {device.name} has no runtime for these files ({', '.join(runtimes)}); "
            f"install one there: {installs}."
        )
    if not facts["writable"]:
        remedy = "set address.folder to another, or HOME for the stage benchmark"
        raise RemoteError(f"{facts['folder']} on {device.name} cannot be written; {remedy}.")
    if facts["locked"]:
        who = occupant(facts)
        raise OccupiedError(f"{device.name} is locked by {who}; wait for its end or ask its owner to stop it.")
    needed = missing_bytes + bundle.data_bytes + _ROOM
    if facts["free"] < needed:
        raise RemoteError(
            f"{device.name} has {facts['free'] / 1e6:.0f} MB free in {facts['folder']}, but {needed / 1e6:.0f} MB are "
            "needed; free space there or set address.folder to another disk."
        )
