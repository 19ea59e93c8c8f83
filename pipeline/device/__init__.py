"""The benchmark: what is measured, how, and what the numbers can carry.

This package and ``pipeline.runtimes`` travel to target devices as they are, so that the code that measures here is the
code that measures there.
"""

from __future__ import annotations

from pipeline.device.errors import BenchmarkError, DeviceError, PlanError
from pipeline.device.plan import Plan, Variant
from pipeline.device.probe import device_name, provenance
from pipeline.device.runner import run_benchmark
from pipeline.device.statistics import Comparison, compare

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
