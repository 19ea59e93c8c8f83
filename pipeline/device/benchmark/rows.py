"""Collects the worker results of one variant and computes its row of the result."""

import dataclasses
import statistics as means
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.device.benchmark import statistics
from pipeline.device.benchmark.plan import Plan, Variant
from pipeline.device.benchmark.steps import REQUIRED, Step, WorkerError
from pipeline.device.benchmark.worker import Scored, Timed
from pipeline.device.machine.probe import device_name
from pipeline.device.machine.sensors import Reading, slowdown, throttling
from pipeline.portable.documents import ColdStart, MeasuredRow, Memory, Minute, Power, Round, Sustained, Throughput
from pipeline.runtimes import check_executed

_EMULATED = "the processor is emulated, so this latency is not that of a real device."
_MEASURED_BY = {"cold": "cold start", "memory": "peak memory", "power": "energy", "sustained": "sustained latency"}


@dataclass
class Collected:
    """Worker results of one variant.

    Attributes:
        cold: one cold start for each process.
        throughput: result by batch and threads; a sentence with the reason if it is missing.
        missing: reason in one sentence for each optional measurement without a result.
        error: reason why accuracy or later rounds are missing.
        notes: sentences about conditions such as a changed clock.
    """

    rounds: list[Timed] = field(default_factory=list)
    accuracy: Scored | None = None
    cold: list[ColdStart] = field(default_factory=list)
    memory: Memory | None = None
    throughput: dict[tuple[int, int], Timed | str] = field(default_factory=dict)
    power: Power | None = None
    sustained: Sustained | None = None
    missing: dict[str, str] = field(default_factory=dict)
    error: str | None = None
    error_kind: str | None = None
    notes: list[str] = field(default_factory=list)

    def add(self, step: Step, values: Mapping[str, Any]) -> None:
        """Add the result of a worker."""
        match step.kind:
            case "accuracy":
                self.accuracy = Scored.read(values)
            case "round":
                self.rounds.append(Timed.read(values))
            case "cold":
                self.cold.append(ColdStart(**values))
            case "memory":
                self.memory = Memory(**values)
            case "throughput":
                self.throughput[step.variant.batch, step.threads] = Timed.read(values)
            case "power":
                self.power = Power(**values)
            case "sustained":
                self.sustained = Sustained(**{**values, "minutes": [Minute(**minute) for minute in values["minutes"]]})

    def add_failure(self, step: Step, failure: WorkerError) -> None:
        """Add the error of a worker that gave no result."""
        if step.kind in REQUIRED:
            self.error, self.error_kind = str(failure), failure.kind
        elif step.kind == "throughput":  # the next point may still succeed
            self.throughput[step.variant.batch, step.threads] = str(failure)
        else:
            self.missing[step.kind] = f"{_MEASURED_BY[step.kind]} not measured: {failure}"


def measured_row(plan: Plan, variant: Variant, collected: Collected, machine: Mapping[str, Any]) -> MeasuredRow:
    """Compute the row of a variant: requested and executed precision, the numbers, and the verdict.

    Percentiles are over the samples of all rounds. The interval ``latency_ci_*`` is over rounds and belongs to
    ``latency_median_ms``, the median of the round medians; with up to five rounds it contains ``latency_p50_ms`` too.
    """
    row = MeasuredRow(
        name=variant.name,
        runtime=variant.runtime,
        precision=variant.precision,
        batch=variant.batch,
        device_name=device_name(gpu=variant.on_gpu),
        error=collected.error,
        error_kind=collected.error_kind,
        notes=[f"latency not measured: {collected.error}"],
        accuracy=collected.accuracy.accuracy if collected.accuracy else None,
        cold=_cold(collected.cold),
        memory=collected.memory,
        sustained=collected.sustained,
        throughput=[_throughput(variant, collected, batch, threads) for batch, threads in plan.throughput],
        power=collected.power,
        joules_per_inference=_joules(collected.power),
    )
    if collected.rounds:
        row = _with_latency(row, plan, collected, machine)
    return dataclasses.replace(row, notes=[*row.notes, *_notes(variant, collected, row)])


def _with_latency(row: MeasuredRow, plan: Plan, collected: Collected, machine: Mapping[str, Any]) -> MeasuredRow:
    """Add the latency in milliseconds to the row, and a note for each number with too few samples."""
    rounds, executed = [timed.round for timed in collected.rounds], collected.rounds[0].executed
    pooled = np.concatenate([timed.samples_ns for timed in collected.rounds]) / 1e6
    p50, p90, p95, p99 = (statistics.percentile(pooled, p) for p in (0.5, 0.9, 0.95, 0.99))
    notes = [number.reason for number in (p50, p90, p95, p99) if number.reason is not None]
    median = statistics.median_of_rounds([round_.median_ms for round_ in rounds], plan.seed)
    if len(rounds) < 2:
        notes.append("interval of the latency not measured: 1 round, 2 needed.")
    if collected.error is not None:
        notes.append(f"only {len(rounds)} of {plan.rounds} rounds measured: {collected.error}")
    verdict = _verdict(collected.rounds, machine)

    def median_of(number: Callable[[Round], float]) -> float:
        return means.median(map(number, rounds))

    return dataclasses.replace(
        row,
        samples=int(pooled.size),
        rounds=rounds,
        latency_p50_ms=p50.value,
        latency_p90_ms=p90.value,
        latency_p95_ms=p95.value,
        latency_p99_ms=p99.value,
        latency_mean_ms=float(pooled.mean()),
        latency_min_ms=float(pooled.min()),
        latency_max_ms=float(pooled.max()),
        latency_median_ms=median.value,
        latency_ci_low_ms=median.low if len(rounds) > 1 else None,
        latency_ci_high_ms=median.high if len(rounds) > 1 else None,
        throughput_ips=row.batch * 1e3 / float(pooled.mean()),
        drift=median_of(lambda round_: round_.drift),
        import_ms=median_of(lambda round_: round_.import_ms),
        load_ms=median_of(lambda round_: round_.load_ms),
        first_inference_ms=median_of(lambda round_: round_.first_inference_ms),
        peak_rss_kb=max(round_.peak_rss_kb or 0 for round_ in rounds) or None,
        precision_executed=executed.precision,
        precision_mismatch=check_executed(row.precision, executed),
        provider=executed.provider,
        runtime_version=executed.version,
        threads=executed.threads,
        executed_detail=executed.detail,
        verdict=verdict.name,
        reasons=list(verdict.reasons),
        notes=notes,
    )


def _verdict(rounds: list[Timed], machine: Mapping[str, Any]) -> statistics.Verdict:
    def sentences(evidence: Callable[[Reading, Reading], Iterable[str]]) -> list[str]:
        readings = ((timed.round.sensors_before, timed.round.sensors_after) for timed in rounds)
        return list(dict.fromkeys(sentence for reading in readings for sentence in evidence(*reading)))

    cores = len(machine["affinity"] or []) or machine["logical_cores"] or 1
    load = (machine["state"]["load_average"] or [0.0])[0]
    busy = [f"the load average was {load:.1f} on {cores} cores before measuring."] if load > cores / 2 else []
    return statistics.judge(
        [timed.samples_ns for timed in rounds],
        cut_short=any(timed.round.cut_short for timed in rounds),
        throttling=sentences(throttling),
        slowdown=sentences(slowdown),
        circumstances=busy,
        provisos=[_EMULATED] if machine["emulated"] else [],
    )


def _notes(variant: Variant, collected: Collected, row: MeasuredRow) -> list[str]:
    """Sentences about requested numbers that are missing or doubtful, except the latency."""
    accuracy, power, sustained = collected.accuracy, collected.power, collected.sustained
    notes = []
    if variant.expected is None:
        notes.append("accuracy not measured here: the plan has no expected answers for this file.")
    elif accuracy is None:
        notes.append(f"accuracy not measured here: {collected.error}")
    elif collected.rounds:
        scored, timed = (part.executed.detail.get("engine_sha256") for part in (accuracy, collected.rounds[0]))
        if scored != timed:
            notes.append(f"accuracy is that of engine {str(scored)[:12]}, but engine {str(timed)[:12]} was timed.")
    notes += [collected.missing[kind] for kind in _MEASURED_BY if kind in collected.missing]
    if power is not None and row.joules_per_inference is None:
        watts = f"{power.watts:.2f} W against {power.idle_watts:.2f} W"
        notes.append(f"energy per inference not measured: {power.meter} shows no more power than when idle, {watts}.")
    if sustained is not None:
        notes += [f"sustained load: {sentence}" for sentence in sustained.evidence]
        if sustained.plateau_ms is None:
            notes.append(f"sustained latency not settled: the time limit came first, after {sustained.seconds:.0f} s.")
    notes += [f"throughput {point.note}" for point in row.throughput if point.note is not None]
    if row.memory is not None and row.memory.model_rss_kb is None:
        notes.append("memory of the model not measured: this system cannot separate it from the runtime's memory.")
    return [*notes, *collected.notes]


def _cold(starts: list[ColdStart]) -> ColdStart | None:
    """Medians over the fresh processes; ``dropped_cache`` is true if all of them started with the cache dropped."""
    if not starts:
        return None
    dropped = [start.dropped_cache for start in starts]
    return ColdStart(
        rounds=len(starts),
        import_ms=means.median(start.import_ms for start in starts),
        load_ms=means.median(start.load_ms for start in starts),
        first_inference_ms=means.median(start.first_inference_ms for start in starts),
        dropped_cache=None if None in dropped else all(dropped),
    )


def _joules(power: Power | None) -> float | None:
    """Energy of one inference above idle, in joules; None if the meter shows no more power than when idle."""
    if power is None or power.watts <= power.idle_watts:
        return None
    return (power.watts - power.idle_watts) * power.seconds / power.inferences


def _throughput(variant: Variant, collected: Collected, batch: int, threads: int) -> Throughput:
    timed = collected.throughput.get((batch, threads), "an earlier measurement of the variant failed.")
    if not variant.takes(batch):
        timed = f"the file takes batches of {variant.batch} only."
    if isinstance(timed, str):
        return Throughput(batch, threads, note=f"at batch {batch} with {threads} threads not measured: {timed}")
    return Throughput(
        batch,
        threads,
        images_per_second=batch * 1e3 / timed.round.mean_ms,
        latency_p50_ms=statistics.percentile(np.asarray(timed.samples_ns) / 1e6, 0.5).value,
        samples=timed.round.samples,
        drift=timed.round.drift,
        cut_short=timed.round.cut_short,
    )
