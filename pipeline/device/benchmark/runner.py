"""Runs a plan: each pass over each variant in a fresh process, and what the samples add up to."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.device.benchmark.accuracy import Expected
from pipeline.device.benchmark.aggregate import compare_with_first, summarise
from pipeline.device.benchmark.collected import Collected, Json, samples_ns
from pipeline.device.benchmark.passes import is_gpu
from pipeline.device.benchmark.plan import SCHEMA, Plan
from pipeline.device.benchmark.process import WorkerError, run_worker
from pipeline.device.benchmark.steps import REQUIRED, Step, job_of, limit_seconds, shuffled_rounds, steps
from pipeline.device.benchmark.timing import WallClock
from pipeline.device.errors import BenchmarkError, PlanError
from pipeline.device.machine.power import find_meter
from pipeline.device.machine.probe import device_name, provenance
from pipeline.device.machine.tuning import tuned

Progress = Callable[[int, int, str], None]

_MEASURED_BY = {"cold": "cold start", "memory": "peak memory", "power": "energy", "sustained": "sustained latency"}


def run_benchmark(plan: Plan, on_progress: Progress | None = None) -> Json:
    """Measure all variants of a plan.

    A variant whose accuracy or latency cannot be measured keeps its earlier rounds, is left out of what follows, and
    carries the reason in ``error`` and its kind in ``error_kind``: "unavailable", "model_file", "timeout" or "failed".
    What fails in the other passes is null, with the reason in the row's ``notes``.

    Args:
        on_progress: called with workers done, workers in all, and what comes next.

    Returns:
        A dictionary that is ready for JSON but for ``samples_ns``, which maps "<variant>/round<r>" to int64 [M] in time
        order, as ``np.savez_compressed(path, **result.pop("samples_ns"))`` takes them. Its ``notes`` are about the run
        as a whole. The user's home folder is "~" in all texts.

    Raises:
        PlanError: the inputs or the expected answers do not exist, or do not fit each other.
        BenchmarkError: no variant could be measured.
    """
    _check_files(plan)
    report = on_progress or (lambda done, total, label: None)
    started, begin = time.time(), time.monotonic()
    with tuned(plan.allow_device_tuning) as tuning:
        machine = provenance()
        order = shuffled_rounds(plan)
        collected = {variant.name: Collected() for variant in plan.variants}
        for name, reason in _without_meter(plan).items():
            collected[name].reasons["power"] = reason
        metered = frozenset(name for name, mine in collected.items() if "power" not in mine.reasons)
        todo = steps(plan, order, metered, machine["state"])
        jumps = _run_all(plan, todo, collected, report)
    errors = [mine.error for mine in collected.values() if not mine.rounds]
    if len(errors) == len(collected):
        raise BenchmarkError(" ".join([str(errors[0]), *tuning["notes"]]))
    result = {
        "schema": SCHEMA,
        "device": device_name(),
        "provenance": machine,
        "tuning": tuning,
        "plan": json.loads(plan.to_json()),
        "order": [[variant.name for variant in variants] for variants in order],
        "started_at": started,
        "seconds": time.monotonic() - begin,
        "notes": [*tuning["notes"], *jumps],
        "variants": [summarise(plan, variant, collected[variant.name], machine) for variant in plan.variants],
        "comparisons": compare_with_first(plan, collected),
    }
    samples = {
        f"{name}/round{number}": samples_ns(found)
        for name, mine in collected.items()
        for number, found in enumerate(mine.rounds)
    }
    return {**_without_home(result), "samples_ns": samples}


def _check_files(plan: Plan) -> None:
    if not Path(plan.inputs).is_file():
        raise PlanError(f"{plan.inputs} does not exist; write the preprocessed images first.")
    if plan.expected is None:
        return
    if not Path(plan.expected).is_file():
        raise PlanError(f"{plan.expected} does not exist; write the expected answers first.")
    try:
        answers = len(Expected.load(Path(plan.expected)).labels)
        images = len(np.load(plan.inputs, mmap_mode="r", allow_pickle=False))
    except (ValueError, OSError, EOFError, TypeError) as error:
        raise PlanError(f"the images and expected answers cannot be read ({error}); write them again.") from error
    if answers != images:
        raise PlanError(
            f"{plan.expected} has answers for {answers} images, but {plan.inputs} has {images}; write them again."
        )


def _without_meter(plan: Plan) -> dict[str, str]:
    """Variants for whose device there is no power meter, with the reason."""
    reasons = {gpu: find_meter(gpu=gpu)[1] for gpu in {is_gpu(one.device, one.runtime) for one in plan.variants}}
    found = {variant.name: reasons[is_gpu(variant.device, variant.runtime)] for variant in plan.variants}
    return {name: reason for name, reason in found.items() if reason}


def _run_all(plan: Plan, todo: list[Step], collected: dict[str, Collected], report: Progress) -> list[str]:
    """Run the steps and collect what they give; sentences about a wall clock that was set meanwhile."""
    notes = []
    with tempfile.TemporaryDirectory() as folder:
        for done, step in enumerate(todo):
            report(done, len(todo), step.label)
            mine = collected[step.variant.name]
            if mine.error is not None or step.kind in mine.reasons:
                continue
            clock = WallClock()
            try:
                mine.results[step.kind].append(_run_step(plan, step, Path(folder) / "result.json"))
            except WorkerError as failure:
                _record_failure(mine, step, failure)
            jump = clock.jump()
            if jump is not None:
                notes.append(_jump_sentence(jump, step.label))
                mine.notes.append(notes[-1])
    report(len(todo), len(todo), "done")
    return notes


def _run_step(plan: Plan, step: Step, output: Path) -> Json:
    job = job_of(plan, step, output)
    result = run_worker(job, limit_seconds=limit_seconds(plan, step), name=step.worker)
    return {**result, "batch": job["batch"], "threads": job["threads"]}


def _record_failure(mine: Collected, step: Step, failure: WorkerError) -> None:
    if step.kind in REQUIRED:
        mine.error, mine.error_kind = str(failure), failure.kind
    elif step.kind == "throughput":  # the next point may well work
        mine.results[step.kind].append({**step.changes, "error": str(failure)})
    else:
        mine.reasons[step.kind] = f"{_MEASURED_BY[step.kind]} not measured: {failure}"


def _jump_sentence(seconds: float, during: str) -> str:
    cause = "was set back" if seconds < 0 else "was set forward, or the device slept,"
    return (
        f"the wall clock {cause} by {abs(seconds):.0f} s during {during}; durations are of a clock that cannot be set."
    )


def _without_home(value: Any) -> Any:
    """The same with the user's home folder, which is often called as the user is, as "~" in all texts."""
    home = os.path.expanduser("~")  # noqa: PTH111  Path.home() raises for a user without one
    if len(Path(home).parts) < 2:
        return value
    pattern = re.compile(re.escape(home) + r"(?![\w.-])")

    def replaced(value: Any) -> Any:
        if isinstance(value, str):
            return pattern.sub("~", value)
        if isinstance(value, dict):
            return {replaced(key): replaced(each) for key, each in value.items()}
        return [replaced(each) for each in value] if isinstance(value, (list, tuple)) else value

    return replaced(value)
