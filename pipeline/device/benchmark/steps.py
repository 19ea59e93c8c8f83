"""The order of a benchmark: which worker runs when, with which job, and for how long at most."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.device.benchmark.plan import Plan, Variant
from pipeline.device.benchmark.sustained import COOL_LIMIT_SECONDS
from pipeline.device.machine.power import IDLE_SECONDS, SETTLE_SECONDS

Json = dict[str, Any]

# A variant that fails in one of these has no later steps; a failure in the other passes leaves their numbers out.
REQUIRED = frozenset({"accuracy", "round"})
_TIMED = frozenset({"round", "throughput", "power"})
_JOB_KEYS = (
    "threads",
    "timing_images",
    "warmup_seconds",
    "warmup_count",
    "min_seconds",
    "min_count",
    "max_seconds",
    "sustained_seconds",
)


@dataclass(frozen=True)
class Step:
    """One worker.

    Attributes:
        kind: of the pass; a key of ``pipeline.device.benchmark.passes.PASSES``.
        label: what a progress bar shows.
        worker: name of the worker in messages.
        changes: to the job that variant and plan give.
    """

    kind: str
    variant: Variant
    label: str
    worker: str
    changes: Json = field(default_factory=dict)


def shuffled_rounds(plan: Plan) -> list[list[Variant]]:
    generator = np.random.default_rng(plan.seed)
    return [[plan.variants[i] for i in generator.permutation(len(plan.variants))] for _ in range(plan.rounds)]


def steps(plan: Plan, order: list[list[Variant]], metered: frozenset[str], idle: Json) -> list[Step]:
    """All workers of a plan. What is compared among variants is interleaved; sustained load, which warms up, is last.

    Args:
        order: of ``shuffled_rounds``.
        metered: names of the variants for whose device there is a power meter.
        idle: sensors of the device before anything ran.
    """
    found = []
    if plan.expected is not None:
        found += [_step("accuracy", variant) for variant in plan.variants]
    for number, variants in enumerate(order, 1):
        where = f"the benchmark worker of {{}} in round {number}"
        found += [_step("round", variant, f"round {number}/{plan.rounds}", where) for variant in variants]
    for number in range(1, plan.cold_rounds + 1):
        found += [_step("cold", variant, f"cold start {number}/{plan.cold_rounds}") for variant in plan.variants]
    if plan.memory_pass:
        found += [_step("memory", variant) for variant in plan.variants]
    found += _throughput_steps(plan)
    found += [_step("power", variant) for variant in plan.variants if variant.name in metered]
    if plan.sustained_seconds > 0:
        sustained = {"idle": idle, "cool_limit_seconds": cool_limit_seconds(plan)}
        found += [_step("sustained", variant, changes=sustained) for variant in plan.variants]
    return found


def _step(
    kind: str, variant: Variant, label: str | None = None, worker: str | None = None, changes: Json | None = None
) -> Step:
    named = (worker or f"the {kind} worker of {{}}").format(variant.name)
    return Step(kind, variant, f"{label or kind} {variant.name}", named, changes or {})


def _throughput_steps(plan: Plan) -> list[Step]:
    found = [
        _step(
            "throughput",
            variant,
            f"batch {batch}, {threads} threads",
            f"the throughput worker of {{}} at batch {batch} with {threads} threads",
            {"batch": batch, "threads": threads},
        )
        for variant in plan.variants
        for batch, threads in plan.throughput
        if takes_batch(variant, batch)
    ]
    return [found[i] for i in np.random.default_rng(plan.seed).permutation(len(found))]


def takes_batch(variant: Variant, batch: int) -> bool:
    return not variant.fixed_batch or batch == variant.batch


def cool_limit_seconds(plan: Plan) -> float:
    """How long a device may take to cool down before sustained load: no longer than the load itself."""
    return min(COOL_LIMIT_SECONDS, plan.sustained_seconds)


def job_of(plan: Plan, step: Step, output: Path) -> Json:
    """What the worker of a step reads."""
    return {
        **dataclasses.asdict(step.variant),
        "pass": step.kind,
        "path": str(Path(step.variant.path).resolve()),
        "inputs": str(Path(plan.inputs).resolve()),
        "expected": None if plan.expected is None else str(Path(plan.expected).resolve()),
        "output": str(output),
        **{key: getattr(plan, key) for key in _JOB_KEYS},
        **step.changes,
    }


def limit_seconds(plan: Plan, step: Step) -> float:
    limit = plan.timeout_seconds
    if step.kind in _TIMED:
        limit += 2 * plan.max_seconds  # the warm-up and the measurement
    if step.kind == "power":
        limit += SETTLE_SECONDS + IDLE_SECONDS
    if step.kind == "sustained":
        limit += cool_limit_seconds(plan) + plan.sustained_seconds
    return limit
