"""What can go wrong with a benchmark. Each message is one sentence; callers map the classes to errors of their own."""

from __future__ import annotations


class DeviceError(Exception):
    """Base of the errors of this package."""


class PlanError(DeviceError):
    """A benchmark plan is contradictory or names what does not exist."""


class BenchmarkError(DeviceError):
    """Nothing could be measured."""
