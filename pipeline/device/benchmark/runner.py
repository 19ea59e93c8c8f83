"""Runs each measurement of a plan in a fresh process and builds the result."""

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.device.benchmark.plan import Plan
from pipeline.device.benchmark.rows import Collected, measured_row
from pipeline.device.benchmark.steps import Step, WorkerError, run_step, steps
from pipeline.device.benchmark.timing import WallClock
from pipeline.device.errors import BenchmarkError, PlanError
from pipeline.device.machine.power import find_meter
from pipeline.device.machine.probe import describe_machine, device_name
from pipeline.device.machine.tuning import tuned
from pipeline.portable.accuracy import Expected
from pipeline.portable.documents import Result

Progress = Callable[[int, int, str], None]  # finished workers, all workers (0: unknown yet), label of the next
Samples = dict[str, NDArray[np.int64]]


def run_benchmark(plan: Plan, on_progress: Progress | None = None) -> tuple[Result, Samples]:
    """Measure all variants of a plan.

    If accuracy or latency of a variant fails, the variant keeps its earlier rounds, ``error`` gives the reason, and its
    other steps are skipped. If another measurement fails, its value is None and ``notes`` gives the reason.

    Returns:
        The result with the paths of the plan, and the samples: "<variant>/round<r>" -> nanoseconds int64 [M] in time
        order.

    Raises:
        PlanError: inputs or expected outputs of a variant are missing, or their numbers of images differ.
        BenchmarkError: no variant could be measured.
    """
    _check_files(plan)
    started, begin = time.time(), time.monotonic()
    with tuned(plan.allow_device_tuning) as tuning:
        machine = describe_machine()
        collected = {variant.name: Collected() for variant in plan.variants}
        reasons = {gpu: find_meter(gpu=gpu)[1] for gpu in {variant.on_gpu for variant in plan.variants}}
        for variant in plan.variants:
            if reason := reasons[variant.on_gpu]:
                collected[variant.name].missing["power"] = reason
        metered = frozenset(name for name, values in collected.items() if not values.missing)
        planned = steps(plan, metered, machine["state"])
        notes = _run_all(plan, planned, collected, on_progress or (lambda done, total, label: None))
    if not any(values.rounds for values in collected.values()):
        error = next(values.error for values in collected.values())
        raise BenchmarkError(" ".join([str(error), *tuning["notes"]]))
    result = Result(
        device=device_name(),
        machine=machine,
        tuning=tuning,
        plan=dataclasses.asdict(plan),
        started_at=started,
        seconds=time.monotonic() - begin,
        notes=[*tuning["notes"], *notes],
        rows=[measured_row(plan, variant, collected[variant.name], machine) for variant in plan.variants],
    )
    samples = {
        f"{name}/round{number}": np.asarray(timed.samples_ns, dtype=np.int64)
        for name, values in collected.items()
        for number, timed in enumerate(values.rounds)
    }
    return result, samples


def _check_files(plan: Plan) -> None:
    for inputs, expected in dict.fromkeys((variant.inputs, variant.expected) for variant in plan.variants):
        for path, content in ((inputs, "the preprocessed images"), (expected, "the expected answers")):
            if path is not None and not Path(path).is_file():
                raise PlanError(f"{path} does not exist; write {content} first.")
        if expected is None:
            continue
        try:
            answers = len(Expected.load(Path(expected)).labels)
            images = len(np.load(inputs, mmap_mode="r", allow_pickle=False))
        except (ValueError, OSError, EOFError, TypeError) as error:
            raise PlanError(f"{inputs} or {expected} cannot be read ({error}); write them again.") from error
        if answers != images:
            counts = f"has answers for {answers} images, but {inputs} has {images}"
            raise PlanError(f"{expected} {counts}; write them again.")


def _run_all(plan: Plan, planned: list[Step], collected: dict[str, Collected], report: Progress) -> list[str]:
    """Run the steps and collect their results; returns a sentence for each step during which the clock was set."""
    notes = []
    with tempfile.TemporaryDirectory() as folder:
        for done, step in enumerate(planned):
            report(done, len(planned), step.label)
            values = collected[step.variant.name]
            if values.error is not None or step.kind in values.missing:
                continue
            clock = WallClock()
            try:
                values.add(step, run_step(plan, step, Path(folder) / "result.json"))
            except WorkerError as failure:
                values.add_failure(step, failure)
            if (jump := clock.jump()) is not None:
                cause = "was set back" if jump < 0 else "was set forward, or the device slept,"
                effect = "durations are not affected."
                notes.append(f"the wall clock {cause} by {abs(jump):.0f} s during {step.label}; {effect}")
                values.notes.append(notes[-1])
    report(len(planned), len(planned), "done")
    return notes
