"""Errors of a benchmark. Each message is one sentence, and callers map the classes to their own errors."""


class DeviceError(Exception):
    """Base of the errors of this package."""


class PlanError(DeviceError):
    """A benchmark plan is contradictory or names a missing file."""


class BenchmarkError(DeviceError):
    """No variant of the plan could be measured."""
