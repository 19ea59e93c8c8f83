"""The benchmark: what is measured, how, and what the numbers can carry.

This package and ``pipeline.runtimes`` travel to target devices as they are, so that the code that measures here is the
code that measures there.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.device.errors import BenchmarkError, DeviceError, PlanError
    from pipeline.device.plan import Plan, Variant
    from pipeline.device.probe import device_name, provenance
    from pipeline.device.runner import run_benchmark
    from pipeline.device.statistics import Comparison, compare

_MODULES = {
    "BenchmarkError": "errors",
    "Comparison": "statistics",
    "DeviceError": "errors",
    "Plan": "plan",
    "PlanError": "errors",
    "Variant": "plan",
    "compare": "statistics",
    "device_name": "probe",
    "provenance": "probe",
    "run_benchmark": "runner",
}

__all__ = [
    "BenchmarkError",
    "Comparison",
    "DeviceError",
    "Plan",
    "PlanError",
    "Variant",
    "compare",
    "device_name",
    "provenance",
    "run_benchmark",
]


def __getattr__(name: str) -> Any:
    # On first use, because a bundle must be able to say that numpy is missing.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"pipeline.device.{_MODULES[name]}"), name)
