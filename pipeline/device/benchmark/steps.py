"""The steps of a benchmark: order, jobs and time limits of the workers, and their errors."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.device.benchmark.plan import Plan, Variant
from pipeline.device.benchmark.worker import EXIT_MODEL_FILE, EXIT_UNAVAILABLE, LONGEST_SENTENCE
from pipeline.device.errors import DeviceError
from pipeline.device.machine.power import IDLE_SECONDS, SETTLE_SECONDS
from pipeline.device.machine.sensors import Reading
from pipeline.device.machine.system import PACKAGE_ROOT, package_environment
from pipeline.portable.files import read_object
from pipeline.portable.text import brief

# If one of these fails, the later steps of the variant are skipped. Other failures only leave their numbers out.
REQUIRED = frozenset({"accuracy", "round"})
_TIMED = frozenset({"round", "throughput", "power"})
_UNTIMED = frozenset({"accuracy", "memory"})
_KIND_OF_EXIT = {EXIT_UNAVAILABLE: "unavailable", EXIT_MODEL_FILE: "model_file"}


class WorkerError(DeviceError):
    """A worker failed; ``kind`` is "unavailable", "model_file", "timeout" or "failed"."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Step:
    """One measurement of one variant in a worker.

    Attributes:
        kind: kind of the measurement; a key of MEASUREMENTS.
        variant: variant with the batch size of this step.
        threads: threads of one inference.
        label: text of the progress bar.
        worker: name of the worker in messages.
        idle: sensor reading of the idle device before the first step.
    """

    kind: str
    variant: Variant
    threads: int
    label: str
    worker: str
    idle: Reading = field(default_factory=dict)


def shuffled_rounds(plan: Plan) -> list[list[Variant]]:
    """Return the variants in a new random order for each round."""
    generator = np.random.default_rng(plan.seed)
    return [[plan.variants[i] for i in generator.permutation(len(plan.variants))] for _ in range(plan.rounds)]


def steps(plan: Plan, metered: frozenset[str], idle: Reading) -> list[Step]:
    """List all steps of a plan. Variants alternate within a measurement; sustained load is last, because it heats the
    device. Energy is measured for the variants in ``metered``."""

    def step(kind: str, variant: Variant, label: str = "", worker: str = "", threads: int = plan.threads) -> Step:
        worker = (worker or f"the {kind} worker of {{}}").format(variant.name)
        return Step(kind, variant, threads, f"{label or kind} {variant.name}", worker, idle)

    def throughput(variant: Variant, batch: int, threads: int) -> Step:
        point = f"batch {batch}, {threads} threads"
        worker = f"the throughput worker of {{}} at batch {batch} with {threads} threads"
        return step("throughput", dataclasses.replace(variant, batch=batch), point, worker, threads)

    variants = plan.variants
    planned = [step("accuracy", variant) for variant in variants if variant.expected is not None]
    for number, shuffled in enumerate(shuffled_rounds(plan), 1):
        label, worker = f"round {number}/{plan.rounds}", f"the benchmark worker of {{}} in round {number}"
        planned += [step("round", variant, label, worker) for variant in shuffled]
    for number in range(1, plan.cold_rounds + 1):
        planned += [step("cold", variant, f"cold start {number}/{plan.cold_rounds}") for variant in variants]
    planned += [step("memory", variant) for variant in variants if plan.memory_pass]
    points = [
        throughput(variant, *point) for variant in variants for point in plan.throughput if variant.takes(point[0])
    ]
    planned += [points[i] for i in np.random.default_rng(plan.seed).permutation(len(points))]
    planned += [step("power", variant) for variant in variants if variant.name in metered]
    return planned + [step("sustained", variant) for variant in variants if plan.sustained_seconds > 0]


def limit_seconds(plan: Plan, kind: str) -> float:
    """Time limit of a worker."""
    limit = plan.timeout_seconds
    if kind in _TIMED:
        limit += 2 * plan.max_seconds  # the warm-up and the measurement
    if kind == "power":
        limit += SETTLE_SECONDS + IDLE_SECONDS
    if kind == "sustained":
        limit += plan.cool_limit_seconds + plan.sustained_seconds
    return limit


def run_step(plan: Plan, step: Step, output: Path) -> dict[str, Any]:
    """Run a step in a fresh process and return its result.

    Raises:
        WorkerError: the worker failed; the sentence ends with the last line of its standard error.
    """
    job_plan = dataclasses.replace(plan, variants=(step.variant,), threads=step.threads)
    job_plan = job_plan.map_paths(lambda path: str(Path(path).resolve()))
    job = {"kind": step.kind, "plan": job_plan.to_json(), "idle": step.idle, "output": str(output)}
    output.unlink(missing_ok=True)
    limit = limit_seconds(plan, step.kind)
    try:
        process = subprocess.run(
            [sys.executable, "-m", "pipeline.device.benchmark.worker"],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=limit,
            check=False,
            # Python imports from here first, so not from the present folder, in which a file json.py may lie.
            cwd=PACKAGE_ROOT if PACKAGE_ROOT.is_dir() else output.parent,
            env=_environment(step.kind),
        )
    except subprocess.TimeoutExpired:
        remedy = "give the measurement more time or use a smaller model"
        raise WorkerError(f"{step.worker} did not end within {limit:g} s; {remedy}.", "timeout") from None
    if code := process.returncode:
        # Linux ends a process that runs out of memory with signal 9.
        manner = f"with exit code {code}" if code > 0 else f"by signal {-code} ({signal.strsignal(-code)})"
        lines = [line for line in process.stderr.splitlines() if line.strip()]
        last = brief(lines[-1], LONGEST_SENTENCE) if lines else "it wrote nothing to standard error."
        raise WorkerError(f"{step.worker} ended {manner}: {last}", _KIND_OF_EXIT.get(code, "failed"))
    if (result := read_object(output)) is None:
        raise WorkerError(f"{step.worker} wrote no result that can be read.", "failed")
    return result


def _environment(kind: str) -> dict[str, str]:
    """Environment variables of a worker, with a short GNU OpenMP spin for measurements that are not timed.

    By default idle OpenMP threads spin for milliseconds. Beside another program they block the core of the working
    thread, and one second of work takes minutes. Timed measurements keep the default of the runtime.
    """
    spin = {"GOMP_SPINCOUNT": "1000"} if kind in _UNTIMED else {}
    return {**spin, **os.environ, **package_environment()}
