"""Errors of the connection to a device. Each message is one sentence that names the device."""

from pipeline.errors import EnergyKDError


class RemoteError(EnergyKDError):
    """A measurement on a device failed."""


class OccupiedError(RemoteError):
    """Another run holds the device."""


class LinkError(RemoteError):
    """The connection failed, and a new attempt may succeed: no answer, a refused or a dropped connection."""
