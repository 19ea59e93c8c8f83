"""What can go wrong between this machine and a device. Each message is one sentence that names the device."""

from __future__ import annotations

from pipeline.errors import EnergyKDError


class RemoteError(EnergyKDError):
    """Nothing could be measured on a device."""


class LinkError(RemoteError):
    """The connection failed in a way that may pass: no answer, a refused or a dropped connection."""
