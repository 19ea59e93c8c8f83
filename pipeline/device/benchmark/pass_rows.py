"""What the passes beside the latency add to the row of a variant; null where not measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from pipeline.device.benchmark.collected import Collected, Json, samples_ns
from pipeline.device.benchmark.plan import Plan, Variant
from pipeline.device.benchmark.statistics import drift, percentile
from pipeline.device.benchmark.steps import takes_batch

_COLD = ("import_ms", "load_ms", "first_inference_ms")
_MEMORY = ("peak_rss_kb", "model_rss_kb")
_POWER = ("meter", "idle_watts", "watts", "seconds", "inferences")


def pass_rows(plan: Plan, variant: Variant, collected: Collected) -> tuple[Json, list[str]]:
    """``accuracy``, ``cold``, ``memory``, ``sustained``, ``throughput``, ``joules_per_inference``, ``meter`` and
    ``power`` of a variant, and a sentence for each of them that was asked for and is missing."""
    last = {kind: found[-1] for kind, found in collected.results.items() if found}
    joules, joules_note = _joules(last.get("power"))
    throughput = _throughput(plan, variant, collected)
    notes = [
        *_accuracy_notes(plan, last, collected),
        *(collected.reasons[kind] for kind in ("cold", "memory", "power", "sustained") if kind in collected.reasons),
        *([joules_note] if joules_note else []),
        *_sustained_notes(last.get("sustained")),
        *(f"throughput {point['note']}" for point in throughput if point["note"] is not None),
    ]
    if "memory" in last and last["memory"]["model_rss_kb"] is None:
        notes.append("memory of the model not measured: this system cannot tell it from that of the runtime.")
    values = {
        "accuracy": last["accuracy"]["accuracy"] if "accuracy" in last else None,
        "cold": _cold(collected.results["cold"]),
        "memory": _picked(last.get("memory"), _MEMORY),
        "sustained": _without(last.get("sustained"), ("batch", "threads")),
        "throughput": throughput,
        "joules_per_inference": joules,
        "meter": None if "power" not in last else last["power"]["meter"],
        "power": _picked(last.get("power"), _POWER),
    }
    return values, notes


def _picked(result: Mapping[str, Any] | None, keys: tuple[str, ...]) -> Json | None:
    return None if result is None else {key: result[key] for key in keys}


def _without(result: Mapping[str, Any] | None, keys: tuple[str, ...]) -> Json | None:
    return None if result is None else {key: value for key, value in result.items() if key not in keys}


def _accuracy_notes(plan: Plan, last: Mapping[str, Json], collected: Collected) -> list[str]:
    if plan.expected is None:
        return ["accuracy not measured here: the plan has no expected answers."]
    if "accuracy" not in last:
        return [f"accuracy not measured here: {collected.error}"]
    if "round" not in last:
        return []
    engines = [last[kind]["executed"]["detail"].get("engine_sha256") for kind in ("accuracy", "round")]
    if engines[0] == engines[1]:
        return []
    return [f"accuracy is that of engine {str(engines[0])[:12]}, but engine {str(engines[1])[:12]} was timed."]


def _cold(rounds: list[Json]) -> Json | None:
    """Medians over the fresh processes; the cache counts as dropped where it was in all of them."""
    if not rounds:
        return None
    dropped = [result["dropped_cache"] for result in rounds]
    return {
        "rounds": len(rounds),
        **{key: statistics.median(result[key] for result in rounds) for key in _COLD},
        "dropped_cache": None if None in dropped else all(dropped),
    }


def _joules(power: Json | None) -> tuple[float | None, str | None]:
    if power is None:
        return None, None
    over = power["watts"] - power["idle_watts"]
    if over <= 0:
        watts = f"{power['watts']:.2f} W against {power['idle_watts']:.2f} W"
        return None, f"energy per inference not measured: {power['meter']} shows no more than when idle, {watts}."
    return over * power["seconds"] / power["inferences"], None


def _sustained_notes(sustained: Json | None) -> list[str]:
    if sustained is None:
        return []
    notes = [f"sustained load: {sentence}" for sentence in sustained["evidence"]]
    if sustained["plateau_ms"] is None:
        notes.append(f"sustained latency not settled: the time limit came first, after {sustained['seconds']:.0f} s.")
    return notes


def _throughput(plan: Plan, variant: Variant, collected: Collected) -> list[Json]:
    """One entry for each point of the plan, in its order."""
    found = {(result["batch"], result["threads"]): result for result in collected.results["throughput"]}
    return [_point(variant, batch, threads, found.get((batch, threads))) for batch, threads in plan.throughput]


def _point(variant: Variant, batch: int, threads: int, result: Json | None) -> Json:
    where = f"at batch {batch} with {threads} threads not measured"
    point: Json = {
        "batch": batch,
        "threads": threads,
        "images_per_second": None,
        "latency_p50_ms": None,
        "samples": 0,
        "drift": None,
        "cut_short": None,
        "note": None,
    }
    if not takes_batch(variant, batch):
        return point | {"note": f"{where}: the file takes batches of {variant.batch} only."}
    if result is None:
        return point | {"note": f"{where}: the variant failed before."}
    if "error" in result:
        return point | {"note": f"{where}: {result['error']}"}
    samples = samples_ns(result)
    return point | {
        "images_per_second": float(batch * samples.size / (samples.sum() / 1e9)),
        "latency_p50_ms": percentile(samples / 1e6, 0.5).value,
        "samples": int(samples.size),
        "drift": drift(samples),
        "cut_short": result["cut_short"],
    }
