"""What the rounds of a variant add up to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from pipeline.device.benchmark import statistics
from pipeline.device.benchmark.collected import Collected, Json, samples_ns
from pipeline.device.benchmark.pass_rows import pass_rows
from pipeline.device.benchmark.plan import Plan, Variant
from pipeline.device.machine.probe import device_name
from pipeline.device.machine.sensors import slowdown, throttling
from pipeline.runtimes.base import Executed, check_executed

_PERCENTILES = {"latency_p50_ms": 0.5, "latency_p90_ms": 0.9, "latency_p95_ms": 0.95, "latency_p99_ms": 0.99}
_ROUND_KEYS = (
    "started_at",
    "cut_short",
    "warmup_count",
    "import_ms",
    "load_ms",
    "first_inference_ms",
    "peak_rss_kb",
    "sensors_before",
    "sensors_after",
)
_EMULATED = "the processor is emulated, so this latency is not that of a real device."
_EMPTY = (
    *_PERCENTILES,
    "latency_mean_ms",
    "latency_min_ms",
    "latency_max_ms",
    "latency_median_ms",
    "latency_ci_low_ms",
    "latency_ci_high_ms",
    "throughput_ips",
    "drift",
    "import_ms",
    "load_ms",
    "first_inference_ms",
    "peak_rss_kb",
    "precision_executed",
    "precision_mismatch",
    "provider",
    "runtime_version",
    "threads",
    "executed_detail",
    "verdict",
)


def _round_medians(rounds: Sequence[Json]) -> list[float]:
    return [float(np.median(samples_ns(result))) / 1e6 for result in rounds]


def summarise(plan: Plan, variant: Variant, collected: Collected, machine: Json) -> Json:
    """One row: what was asked for, what was executed, the numbers, and what they can carry.

    Beside the keys of the latency there are those of ``pass_rows``.

    Percentiles are over the samples of all rounds; the interval ``latency_ci_*`` is over rounds and belongs to
    ``latency_median_ms``, the median of the round medians. With up to five rounds it holds ``latency_p50_ms`` as well.

    Args:
        machine: ``provenance`` before the first round.
    """
    summary: Json = {
        **dataclasses.asdict(variant),
        "device_name": device_name(gpu=variant.device != "cpu" or variant.runtime == "tensorrt"),
        **dict.fromkeys(_EMPTY),
        "samples": 0,
        "rounds": [],
        "reasons": [],
        "notes": [],
        "error": collected.error,
        "error_kind": collected.error_kind,
    }
    values, pass_notes = pass_rows(plan, variant, collected)
    summary.update(values)
    pass_notes += collected.notes
    if not collected.rounds:
        summary["notes"] = [f"latency not measured: {collected.error}", *pass_notes]
        return summary
    summary.update(_executed(variant, collected.rounds[0]))
    latency, notes = _latency(plan, variant, collected.rounds)
    summary.update(latency)
    if collected.error is not None:
        notes.append(f"only {len(collected.rounds)} of {plan.rounds} rounds measured: {collected.error}")
    summary["notes"] = [*notes, *pass_notes]
    verdict = _verdict(collected.rounds, machine)
    summary.update(verdict=verdict.name, reasons=list(verdict.reasons))
    return summary


def _executed(variant: Variant, result: Json) -> Json:
    executed = Executed(**result["executed"])
    return {
        "precision_executed": executed.precision,
        "precision_mismatch": check_executed(variant.precision, executed),
        "provider": executed.provider,
        "runtime_version": executed.version,
        "threads": executed.threads,
        "executed_detail": executed.detail,
    }


def _latency(plan: Plan, variant: Variant, rounds: Sequence[Json]) -> tuple[Json, list[str]]:
    """Numbers over all rounds, in milliseconds, and a sentence for each that the samples do not carry."""
    pooled = np.concatenate([samples_ns(result) for result in rounds]) / 1e6
    notes = []
    values: Json = {"samples": int(pooled.size)}
    for key, p in _PERCENTILES.items():
        found = statistics.percentile(pooled, p)
        values[key] = found.value
        if found.reason is not None:
            notes.append(found.reason)
    median = statistics.median_of_rounds(_round_medians(rounds), plan.seed)
    values["latency_median_ms"] = median.value
    if len(rounds) > 1:
        values.update(latency_ci_low_ms=median.low, latency_ci_high_ms=median.high)
    else:
        notes.append("interval of the latency not measured: 1 round, 2 needed.")
    values.update(
        latency_mean_ms=float(pooled.mean()),
        latency_min_ms=float(pooled.min()),
        latency_max_ms=float(pooled.max()),
        throughput_ips=float(variant.batch * pooled.size / (pooled.sum() / 1e3)),
        drift=float(np.median([statistics.drift(samples_ns(result)) for result in rounds])),
        rounds=[_round(result) for result in rounds],
    )
    for key in ("import_ms", "load_ms", "first_inference_ms"):
        values[key] = float(np.median([result[key] for result in rounds]))
    values["peak_rss_kb"] = max((result["peak_rss_kb"] or 0 for result in rounds), default=0) or None
    return values, notes


def _round(result: Json) -> Json:
    samples = samples_ns(result)
    return {
        "samples": int(samples.size),
        "median_ms": float(np.median(samples)) / 1e6,
        "mean_ms": float(samples.mean()) / 1e6,
        "min_ms": float(samples.min()) / 1e6,
        "drift": statistics.drift(samples),
        **{key: result[key] for key in _ROUND_KEYS},
    }


def _verdict(rounds: Sequence[Json], machine: Json) -> statistics.Verdict:
    readings = [(result["sensors_before"], result["sensors_after"]) for result in rounds]
    cores = len(machine["affinity"] or []) or machine["logical_cores"] or 1
    load = (machine["state"]["load_average"] or [0.0])[0]
    busy = [f"the load average was {load:.1f} on {cores} cores before measuring."] if load > cores / 2 else []
    return statistics.judge(
        [samples_ns(result) for result in rounds],
        cut_short=any(result["cut_short"] for result in rounds),
        throttling=_once(sentence for reading in readings for sentence in throttling(*reading)),
        slowdown=_once(sentence for reading in readings for sentence in slowdown(*reading)),
        circumstances=busy,
        provisos=[_EMULATED] if machine["emulated"] else [],
    )


def _once(sentences: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(sentences))


def compare_with_first(plan: Plan, collected: Mapping[str, Collected]) -> list[Json]:
    """Every measured variant against the plan's first, if that one was measured."""
    baseline, *others = plan.variants
    if not collected[baseline.name].rounds:
        return []
    compared = []
    for variant in others:
        if collected[variant.name].rounds:
            mine, base = (_round_medians(collected[name].rounds) for name in (variant.name, baseline.name))
            found = statistics.compare(mine, base, plan.seed)
            compared.append(
                {
                    "name": variant.name,
                    "baseline": baseline.name,
                    "ratio": found.ratio.value,
                    "ratio_low": found.ratio.low,
                    "ratio_high": found.ratio.high,
                    "verdict": found.verdict,
                    "reason": found.reason,
                }
            )
    return compared
