"""Runs a plan: variants in shuffled rounds, each in a fresh process, and what the samples add up to."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.device.aggregate import Collected, Json, compare_with_first, samples_ns, summarise
from pipeline.device.errors import BenchmarkError, PlanError
from pipeline.device.plan import SCHEMA, Plan, Variant
from pipeline.device.probe import device_name, provenance
from pipeline.device.worker import EXIT_MODEL_FILE, EXIT_UNAVAILABLE

Progress = Callable[[int, int, str], None]

_KIND_OF_EXIT = {EXIT_UNAVAILABLE: "unavailable", EXIT_MODEL_FILE: "model_file"}


class _WorkerError(Exception):
    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


def run_benchmark(plan: Plan, on_progress: Progress | None = None) -> Json:
    """Measure all variants of a plan.

    A variant whose worker fails keeps its earlier rounds, is left out of the later ones, and carries the reason in
    ``error`` and its kind in ``error_kind``: "unavailable", "model_file", "timeout" or "failed".

    Args:
        on_progress: called with workers done, workers in all, and what comes next.

    Returns:
        A dictionary that is ready for JSON but for ``samples_ns``, which maps "<variant>/round<r>" to int64 [M] in time
        order, as ``np.savez_compressed(path, **result.pop("samples_ns"))`` takes them.

    Raises:
        PlanError: the inputs file does not exist.
        BenchmarkError: no variant could be measured.
    """
    if not Path(plan.inputs).is_file():
        raise PlanError(f"{plan.inputs} does not exist; write the preprocessed images first.")
    started = time.time()
    machine = provenance()
    order = _shuffled_rounds(plan)
    collected = {variant.name: Collected([]) for variant in plan.variants}
    total = plan.rounds * len(plan.variants)
    report = on_progress or (lambda done, total, label: None)
    done = 0
    with tempfile.TemporaryDirectory() as folder:
        for index, variants in enumerate(order):
            for variant in variants:
                report(done, total, f"round {index + 1}/{plan.rounds} {variant.name}")
                mine = collected[variant.name]
                if mine.error is None:
                    try:
                        mine.rounds.append(_run_worker(plan, variant, index, Path(folder) / "result.json"))
                    except _WorkerError as failure:
                        mine.error, mine.error_kind = str(failure), failure.kind
                done += 1
    report(done, total, "done")
    errors = [mine.error for mine in collected.values() if not mine.rounds]
    if len(errors) == len(collected):
        raise BenchmarkError(str(errors[0]))
    return {
        "schema": SCHEMA,
        "device": device_name(),
        "provenance": machine,
        "plan": json.loads(plan.to_json()),
        "order": [[variant.name for variant in variants] for variants in order],
        "started_at": started,
        "seconds": time.time() - started,
        "variants": [summarise(plan, variant, collected[variant.name], machine) for variant in plan.variants],
        "comparisons": compare_with_first(plan, collected),
        "samples_ns": {
            f"{name}/round{number}": samples_ns(result)
            for name, mine in collected.items()
            for number, result in enumerate(mine.rounds)
        },
    }


def _shuffled_rounds(plan: Plan) -> list[list[Variant]]:
    generator = np.random.default_rng(plan.seed)
    return [[plan.variants[i] for i in generator.permutation(len(plan.variants))] for _ in range(plan.rounds)]


def _run_worker(plan: Plan, variant: Variant, index: int, output: Path) -> Json:
    """The measurement of one fresh process.

    Raises:
        _WorkerError: one sentence with the last line that the worker wrote to standard error.
    """
    job = {
        **dataclasses.asdict(variant),
        "path": str(Path(variant.path).resolve()),
        "inputs": str(Path(plan.inputs).resolve()),
        "output": str(output),
    }
    for key in ("threads", "warmup_seconds", "warmup_count", "min_seconds", "min_count", "max_seconds"):
        job[key] = getattr(plan, key)
    # The folder, or the archive, that holds the package which this file is part of.
    root = Path(__file__).parents[2].resolve()
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    # Both the warm-up and the measurement may take max_seconds.
    limit = plan.timeout_seconds + 2 * plan.max_seconds
    where = f"the benchmark worker of {variant.name} in round {index + 1}"
    output.unlink(missing_ok=True)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "pipeline.device.worker"],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=limit,
            check=False,
            cwd=root if root.is_dir() else None,
            env={**os.environ, "PYTHONPATH": path},
        )
    except subprocess.TimeoutExpired:
        message = f"{where} did not end within {limit:g} s; raise timeout_seconds or use a smaller model."
        raise _WorkerError(message, "timeout") from None
    if ended.returncode:
        kind = _KIND_OF_EXIT.get(ended.returncode, "failed")
        raise _WorkerError(f"{where} ended {_manner(ended.returncode)}: {_last_line(ended.stderr)}", kind)
    try:
        result: Json = json.loads(output.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _WorkerError(f"{where} left no result ({error}).", "failed") from error
    return result


def _manner(code: int) -> str:
    # A process that ran out of memory was ended by signal 9.
    return f"with exit code {code}" if code > 0 else f"by signal {-code} ({signal.strsignal(-code)})"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it wrote nothing to standard error."
