"""What can go wrong with a runtime. Each message is one sentence; callers map the classes to errors of their own."""

from __future__ import annotations


class RuntimesError(Exception):
    """Base of the errors of this package."""


class RuntimeUnavailableError(RuntimesError):
    """The runtime is not installed, or the device it was asked to use is not here."""


class PrecisionError(RuntimesError):
    """The precision asked for is unknown, or not the one that is executed."""


class ModelFileError(RuntimesError):
    """The model file is missing, damaged, or does not fit the runtime."""
