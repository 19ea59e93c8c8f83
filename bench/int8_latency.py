"""What a precision costs and gains on this machine: latency and size of a network's files in both runtimes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from bench.measure import table
from pipeline.device.benchmark.plan import Plan, Variant
from pipeline.device.benchmark.runner import run_benchmark
from pipeline.device.benchmark.statistics import compare

RUNTIMES = ("onnxruntime", "openvino")
BASELINE = "fp32"


def measure_latency(
    models: Mapping[str, tuple[onnx.ModelProto, str]],
    images: NDArray[np.float32],
    rounds: int,
    seconds: float,
    advance: Callable[[], None],
) -> list[dict[str, Any]]:
    """Latency of one image in interleaved fresh processes, a row per file and runtime.

    Args:
        models: file -> model and precision; ``BASELINE`` among them.
        images: [N, 3, H, W], normalised.
        rounds: processes for each file and runtime.
        seconds: that each of them measures at least.
        advance: called when a process has ended.
    """
    with tempfile.TemporaryDirectory() as folder:
        np.save(inputs := Path(folder) / "inputs.npy", images)
        variants, sizes = {}, {}
        for number, (name, (model, precision)) in enumerate(models.items()):
            onnx.save(model, path := Path(folder) / f"{number}.onnx")
            sizes[name] = path.stat().st_size
            for runtime in RUNTIMES:
                variants[name, runtime] = Variant(f"{number}-{runtime}", runtime, str(path), precision)
        plan = Plan(
            tuple(variants.values()), str(inputs), rounds=rounds, warmup_seconds=0.3, min_seconds=seconds, min_count=100
        )
        measured = run_benchmark(plan, lambda done, total, label: advance() if done else None)
    found = {row["name"]: row for row in measured["variants"]}
    medians = {key: [one["median_ms"] for one in found[variant.name]["rounds"]] for key, variant in variants.items()}
    rows = []
    for (name, runtime), variant in variants.items():
        row = found[variant.name]
        keys = ("latency_p50_ms", "latency_p90_ms", "latency_ci_low_ms", "latency_ci_high_ms", "verdict", "error")
        entry = {"file": name, "runtime": runtime, "size_bytes": sizes[name], "executed": row["precision_executed"]}
        entry |= {key: row[key] for key in keys}
        if name != BASELINE and medians[name, runtime] and medians[BASELINE, runtime]:
            against = compare(medians[name, runtime], medians[BASELINE, runtime])
            ratio = against.ratio
            entry |= {"ratio": ratio.value, "ratio_low": ratio.low, "ratio_high": ratio.high, "pays": against.verdict}
        rows.append(entry)
    return rows


def latency_table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    return table(
        ("file", "runtime", "executed", "kB", "p50, ms", "interval of the median", "of fp32", "verdict"),
        [
            (
                row["file"],
                row["runtime"],
                row["executed"] or row["error"],
                f"{row['size_bytes'] / 1000:,.0f}",
                "-" if row["latency_p50_ms"] is None else f"{row['latency_p50_ms']:.3f}",
                "-"
                if row["latency_ci_low_ms"] is None
                else f"{row['latency_ci_low_ms']:.3f} to {row['latency_ci_high_ms']:.3f}",
                f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f}), {row['pays']}"
                if "ratio" in row
                else "-",
                row["verdict"] or "-",
            )
            for row in rows
        ],
    )
