"""What a worker can be asked to do with one variant, one function each; they read a job and return ready for JSON.

A job has the fields of a ``Variant``, those of a ``Plan`` that concern it, and what the pass needs besides.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.device.benchmark.accuracy import Expected, answers_of, score
from pipeline.device.benchmark.sustained import cool_down, sustain
from pipeline.device.benchmark.timing import make_batches, measure
from pipeline.device.machine.memory import current_memory_kb, peak_memory_kb, reset_peak
from pipeline.device.machine.page_cache import drop_from_cache, files_of_cold_start, is_cached
from pipeline.device.machine.power import IDLE_SECONDS, SETTLE_SECONDS, MeterError, find_meter
from pipeline.device.machine.sensors import sensors
from pipeline.runtimes import Runtime, runtime_class
from pipeline.runtimes.errors import RuntimeUnavailableError

_MEMORY_INFERENCES = 10

Job = dict[str, Any]
Json = dict[str, Any]


def is_gpu(device: str, runtime: str) -> bool:
    return device != "cpu" or runtime == "tensorrt"


@dataclass(frozen=True)
class Started:
    """A loaded model that has run once, and how long that took in milliseconds."""

    runtime: Runtime
    import_ms: float
    load_ms: float
    first_inference_ms: float

    def durations(self) -> Json:
        return {key: getattr(self, key) for key in ("import_ms", "load_ms", "first_inference_ms")}


def time_round(job: Job) -> Json:
    """Load, warm up and measure; sensors are read after the warm-up and after the measurement, never within it."""
    batches = _batches(job)
    started_at = time.time()
    started = _start(job, batches[0])
    run = started.runtime.run
    warmup = _warm_up(job, started.runtime, batches)
    gpu = is_gpu(job["device"], job["runtime"])
    before = sensors(gpu=gpu)
    samples, cut_short = measure(run, batches, **_limits(job))
    after = sensors(gpu=gpu)
    return {
        "started_at": started_at,
        "samples_ns": samples,
        "cut_short": cut_short,
        "warmup_count": len(warmup),
        **started.durations(),
        "peak_rss_kb": peak_memory_kb(),
        "sensors_before": before,
        "sensors_after": after,
        # Last, because a runtime may load the model a second time to find out.
        "executed": asdict(started.runtime.executed()),
    }


def answer(job: Job) -> Json:
    """Accuracy and parity of the file on all images, with the batch size and the settings that are timed."""
    images = np.load(job["inputs"], mmap_mode="r", allow_pickle=False)
    expected = Expected.load(Path(job["expected"]))
    runtime = _load(job)
    scored = score(answers_of(runtime, images, job["batch"]), expected)
    return {"accuracy": scored, "executed": asdict(runtime.executed())}


def start_cold(job: Job) -> Json:
    """Import, load and first inference after the kernel was asked to forget the files."""
    batch = _batches(job)[0]
    model = Path(job["path"])
    drop_from_cache(files_of_cold_start(model, job["runtime"]))
    cached = is_cached(model)
    return {**_start(job, batch).durations(), "dropped_cache": None if cached is None else not cached}


def fill_memory(job: Job) -> Json:
    """Peak memory of a process that does not time, and what of it is due to the model and not to the runtime."""
    batch = _batches(job)[0]
    _import(job)
    imported, before = current_memory_kb(), peak_memory_kb()
    was_reset = reset_peak()
    runtime = _load(job)
    for _ in range(_MEMORY_INFERENCES):
        runtime.run(batch)
    peak = peak_memory_kb()
    if imported is None or before is None or peak is None:
        raise ValueError("this system does not tell how much memory a process has")
    # A peak that could not be reset says something about the model only where the model went beyond it.
    known = was_reset or peak > before
    return {"peak_rss_kb": max(peak, before), "model_rss_kb": peak - imported if known else None}


def consume(job: Job) -> Json:
    """Energy of an inference beyond that of the idle device, which is measured before the runtime is there."""
    meter, reason = find_meter(gpu=is_gpu(job["device"], job["runtime"]))
    if meter is None:
        raise MeterError(reason)
    time.sleep(SETTLE_SECONDS)
    idle, _ = meter.measure(lambda: time.sleep(IDLE_SECONDS))
    batches = _batches(job)
    runtime = _start(job, batches[0]).runtime
    _warm_up(job, runtime, batches)
    busy, (samples, _) = meter.measure(lambda: measure(runtime.run, batches, **_limits(job)))
    return {
        "meter": meter.name,
        "idle_watts": idle.watts,
        "watts": busy.watts,
        "seconds": busy.seconds,
        "inferences": len(samples),
    }


def run_on(job: Job) -> Json:
    """Sustained load from a cool start; the model is loaded before the device cools down."""
    gpu = is_gpu(job["device"], job["runtime"])
    batches = _batches(job)
    runtime = _start(job, batches[0]).runtime

    def read_sensors() -> Json:
        return sensors(gpu=gpu)

    def time_window(seconds: float) -> list[int]:
        samples, _ = measure(runtime.run, batches, min_seconds=seconds, min_count=1, max_seconds=seconds)
        return samples

    cool_start = cool_down(job["idle"], limit_seconds=job["cool_limit_seconds"], read_sensors=read_sensors)
    found = sustain(time_window, limit_seconds=job["sustained_seconds"], read_sensors=read_sensors)
    return {**found, "cool_start": cool_start}


PASSES: dict[str, Callable[[Job], Json]] = {
    "accuracy": answer,
    "round": time_round,
    "cold": start_cold,
    "memory": fill_memory,
    "throughput": time_round,
    "power": consume,
    "sustained": run_on,
}


def _batches(job: Job) -> list[NDArray[np.float32]]:
    images = np.load(job["inputs"], mmap_mode="r", allow_pickle=False)
    return make_batches(images[: job["timing_images"]], job["batch"])


def _import(job: Job) -> type[Runtime]:
    kind = runtime_class(job["runtime"])
    if reason := kind.unavailable():
        raise RuntimeUnavailableError(reason)
    return kind


def _load(job: Job) -> Runtime:
    settings = {key: job[key] for key in ("precision", "threads", "batch", "device")}
    return _import(job)(Path(job["path"]), **settings)


def _start(job: Job, batch: NDArray[np.float32]) -> Started:
    begin = time.perf_counter()
    _import(job)
    imported = time.perf_counter()
    runtime = _load(job)
    loaded = time.perf_counter()
    runtime.run(batch)
    first = time.perf_counter()
    return Started(runtime, (imported - begin) * 1e3, (loaded - imported) * 1e3, (first - loaded) * 1e3)


def _warm_up(job: Job, runtime: Runtime, batches: list[NDArray[np.float32]]) -> list[int]:
    limits = {"min_seconds": job["warmup_seconds"], "min_count": job["warmup_count"]}
    return measure(runtime.run, batches, **limits, max_seconds=job["max_seconds"])[0]


def _limits(job: Job) -> dict[str, Any]:
    return {key: job[key] for key in ("min_seconds", "min_count", "max_seconds")}
