"""Flat numbers for `dvc metrics show`: stable names, and only what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.report.compare import Comparison

Summary = Mapping[str, Any]


def build_metrics(summary: Summary, row: Mapping[str, Any] | None, comparison: Comparison | None) -> dict[str, float]:
    """The content of reports/metrics.json.

    Args:
        row: the recommended row; None if no file is within the budget.
        comparison: of that row with the teacher.

    Returns:
        Accuracies as shares in [0, 1], latencies in ms, sizes in MB (10^6 bytes); a number that was not measured has no
        entry, because DVC has no null.
    """
    teacher, student = summary["teacher"], summary["student"]
    values: dict[str, float | None] = {
        "teacher_top1": teacher["top1"],
        "teacher_val_top1": teacher["val_top1"],
        "teacher_parameters": teacher["parameters"],
        "student_top1": student["top1"],
        "student_top1_high_energy": student["top1_high_energy"],
        "student_val_top1": student["val_top1"],
        "student_parameters": student["parameters"],
    }
    if row is not None:
        values |= {
            "recommended_top1": row["top1"],
            "recommended_top1_high_energy": row["top1_high_energy"],
            "recommended_delta_top1": row["delta_top1"],
            "recommended_latency_p50_ms": row["latency_p50_ms"],
            "recommended_throughput_ips": row["throughput_ips"],
            "recommended_size_mb": row["size_bytes"] / 1e6,
        }
    if comparison is not None:
        values |= {"compression_ratio": comparison.size_ratio, "speedup": comparison.speed_ratio}
    return {name: value for name, value in values.items() if value is not None}
