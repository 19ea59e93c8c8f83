"""Whether a device can measure a bundle, found out before anything is copied there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipeline.device.service.bundle import Bundle
from pipeline.device.service.lock import Holder
from pipeline.device.service.selftest import MODULES
from pipeline.remote.errors import RemoteError

_OLDEST = (3, 10)
_ROOM = 16 << 20  # for the result, the log and the workers' own small files


def modules(bundle: Bundle) -> list[str]:
    """The modules that the device is asked for."""
    return ["numpy", *sorted({MODULES[variant.runtime][0] for variant in bundle.plan.variants})]


def holder_of(facts: Mapping[str, Any]) -> Holder | None:
    """Who holds the device's lock; None if nobody, or nobody knows."""
    try:
        return Holder(**json.loads(facts["holder"])) if facts["locked"] else None
    except (TypeError, ValueError):
        return None


def holds(facts: Mapping[str, Any], bundle: str, run: str) -> bool:
    """Whether this run holds the device's lock."""
    holder = holder_of(facts)
    return holder is not None and (holder.bundle, holder.run) == (bundle, run)


def check_python(name: str, python: str, facts: Mapping[str, Any]) -> None:
    """Raises RemoteError: the device's Python is too old, or has no numpy."""
    version = tuple(facts["python"])
    if version < _OLDEST:
        raise RemoteError(
            f"{python} on {name} is Python {'.'.join(map(str, version))}, too old for the benchmark, "
            "which needs 3.10 or newer; install one and set address.python to it."
        )
    if not facts["modules"]["numpy"]:
        raise RemoteError(f"{python} on {name} has no numpy; install it there with `{python} -m pip install numpy`.")


def check_runtimes(name: str, python: str, bundle: Bundle, facts: Mapping[str, Any]) -> None:
    """Raises RemoteError: none of the bundle's runtimes is on the device. One of several may be missing."""
    runtimes = sorted({variant.runtime for variant in bundle.plan.variants})
    if not any(facts["modules"][MODULES[runtime][0]] for runtime in runtimes):
        installs = " or ".join(f"`{MODULES[runtime][1]}`" for runtime in runtimes)
        raise RemoteError(
            f"{python} on {name} has no runtime for these files ({', '.join(runtimes)}); install one there: {installs}."
        )


def check_lock(name: str, facts: Mapping[str, Any]) -> None:
    """Raises RemoteError: another run holds the device."""
    if facts["locked"]:
        holder = holder_of(facts)
        who = holder.describe(facts["boot"], facts["uptime"]) if holder else "a run that has just begun"
        raise RemoteError(f"{name} is locked by {who}; wait for its end or ask its owner to stop it.")


def check_space(name: str, size: int, bundle: Bundle, facts: Mapping[str, Any]) -> None:
    """Check the folder of the device.

    Args:
        size: bytes of the bundle that are still to be copied.

    Raises:
        RemoteError: it cannot be written, or has no room for the bundle and what is extracted from it.
    """
    if not facts["writable"]:
        raise RemoteError(f"{facts['folder']} on {name} cannot be written; set address.folder to another.")
    needed = size + sum(entry.size for entry in bundle.data.values()) + _ROOM
    if facts["free"] < needed:
        raise RemoteError(
            f"{name} has {facts['free'] / 1e6:.0f} MB free in {facts['folder']}, but {needed / 1e6:.0f} MB are needed; "
            "free space there or set address.folder to another disk."
        )
