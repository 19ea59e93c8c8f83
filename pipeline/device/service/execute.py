"""Measure what a bundle holds, here and now, and write the result."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.device.errors import DeviceError
from pipeline.device.service.bundle import Bundle, extract
from pipeline.device.service.files import write_atomically
from pipeline.device.service.session import RESULT, SAMPLES

Progress = Callable[[int, int, str], None]
Json = dict[str, Any]


class NumpyMissingError(DeviceError):
    """This Python has no numpy."""


def execute(bundle: Bundle, sha256: str, files: Path, out: Path, on_progress: Progress) -> Json:
    """Verify, extract, measure, and write samples.npz and then result.json, each whole or not at all.

    Args:
        sha256: of the bundle.
        files: folder to extract to; must not exist.
        out: folder of the result.
        on_progress: called with steps done, steps in all (0: not known yet) and what comes next.

    Returns:
        what result.json holds: the benchmark's result with ``bundle_sha256`` and ``card``.

    Raises:
        DeviceError: numpy is missing, the bundle is damaged, or nothing could be measured.
        OSError: no space, or no right to write.
    """
    try:
        import numpy as np

        from pipeline.device.benchmark.runner import run_benchmark
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "numpy":
            raise
        raise NumpyMissingError(
            "numpy is not installed for this Python; install it with `pip install numpy`."
        ) from None
    out.mkdir(parents=True, exist_ok=True)
    on_progress(0, 0, "verifying the bundle")
    # Workers are told resolved paths, and their messages repeat them.
    files = files.resolve()
    plan = extract(bundle, files, None)
    result: Json = run_benchmark(plan, on_progress)
    samples = io.BytesIO()
    np.savez_compressed(samples, **result.pop("samples_ns"))
    result.update(bundle_sha256=sha256, card=dict(bundle.card))
    # The benchmark has written "~" for the home folder.
    home = os.path.expanduser("~")  # noqa: PTH111  Path.home() raises for a user without one
    short = f"~{str(files).removeprefix(home)}/"
    result = portable(result, [f"{files}/", short])
    write_atomically(out / SAMPLES, samples.getvalue())
    write_atomically(out / RESULT, (json.dumps(result, indent=2, allow_nan=False) + "\n").encode())
    return result


def portable(value: Any, places: Sequence[str]) -> Any:
    """The value with paths below ``places`` relative to them, and null for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: portable(item, places) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [portable(item, places) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        for place in places:
            value = value.replace(place, "")
    return value


def table(result: Json) -> str:
    """What was measured, for a person at the device."""
    rows = [("file", "runtime", "executed", "p50 ms", "p90 ms", "verdict")]
    for row in result["variants"]:
        if row["error"] and row["latency_p50_ms"] is None:
            rows.append((row["name"], row["runtime"], "-", "-", "-", str(row["error"])))
            continue
        numbers = [row["latency_p50_ms"], row["latency_p90_ms"]]
        shown = ["-" if number is None else f"{number:.3f}" for number in numbers]
        rows.append((row["name"], row["runtime"], str(row["precision_executed"]), *shown, str(row["verdict"])))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
    )
