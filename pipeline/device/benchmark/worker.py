"""The worker process, which makes one measurement of one file: ``python -m pipeline.device.benchmark.worker``.

It reads a job as JSON from standard input and writes the result as JSON to the job's ``output``, atomically. An error
is one sentence on standard error and an exit code.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import runtimes
from pipeline.device.benchmark.plan import Plan, Variant
from pipeline.device.benchmark.statistics import drift
from pipeline.device.benchmark.sustained import cool_down, sustain
from pipeline.device.benchmark.timing import make_batches, measure
from pipeline.device.errors import DeviceError
from pipeline.device.machine import memory
from pipeline.device.machine.power import IDLE_SECONDS, SETTLE_SECONDS, MeterError, find_meter
from pipeline.device.machine.sensors import Reading, sensors
from pipeline.portable.accuracy import Accuracy, Expected, score
from pipeline.portable.documents import ColdStart, Memory, Power, Round, Sustained
from pipeline.portable.files import write_object
from pipeline.portable.text import brief
from pipeline.runtimes import Executed

EXIT_FAILED, EXIT_UNAVAILABLE, EXIT_MODEL_FILE = 2, 3, 4
_EXITS: dict[type, int] = {runtimes.RuntimeUnavailableError: EXIT_UNAVAILABLE}
_EXITS |= {runtimes.ModelFileError: EXIT_MODEL_FILE, runtimes.PrecisionError: EXIT_MODEL_FILE}
_MEMORY_INFERENCES = 10
LONGEST_SENTENCE = 1000  # characters


@dataclass(frozen=True)
class Job:
    """The job of a worker.

    Attributes:
        kind: kind of the measurement; a key of MEASUREMENTS.
        plan: plan with one variant and absolute paths.
        idle: sensor reading of the idle device, the target of cooling before sustained load.
    """

    kind: str
    plan: Plan
    idle: Reading

    @property
    def variant(self) -> Variant:
        return self.plan.variants[0]

    def batches(self) -> list[NDArray[np.float32]]:
        images = np.load(self.variant.inputs, mmap_mode="r", allow_pickle=False)
        return make_batches(images[: self.plan.timing_images], self.variant.batch)

    def import_runtime(self) -> None:
        """Import the runtime. A missing runtime is reported later by ``load``."""
        runtimes.runtime_class(self.variant.runtime).unavailable()

    def load(self) -> runtimes.Runtime:
        file, settings = self.variant, {"threads": self.plan.threads, "batch": self.variant.batch}
        return runtimes.load(file.runtime, Path(file.path), precision=file.precision, device=file.device, **settings)

    def sensors(self) -> Reading:
        return sensors(gpu=self.variant.on_gpu)


class Model:
    """A loaded model after its first inference, with the durations of the start in milliseconds."""

    def __init__(self, job: Job) -> None:
        self._plan = job.plan
        self.batches = job.batches()
        begin = time.perf_counter()
        job.import_runtime()
        imported = time.perf_counter()
        self.runtime = job.load()
        loaded = time.perf_counter()
        self.runtime.run(self.batches[0])
        self.first_inference_ms = (time.perf_counter() - loaded) * 1e3
        self.import_ms, self.load_ms = (imported - begin) * 1e3, (loaded - imported) * 1e3

    def measure(self, *, warm_up: bool = False) -> tuple[list[int], bool]:
        """Call :func:`pipeline.device.benchmark.timing.measure` with the plan's limits for warm-up or measurement."""
        plan = self._plan
        seconds, count = (plan.warmup_seconds, plan.warmup_count) if warm_up else (plan.min_seconds, plan.min_count)
        limits = {"min_seconds": seconds, "max_seconds": plan.max_seconds}
        return measure(self.runtime.run, self.batches, min_count=count, **limits)


@dataclass(frozen=True)
class Timed:
    """A round, the nanoseconds of its inferences in time order, and the runtime's report."""

    round: Round
    samples_ns: list[int]
    executed: Executed

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Timed:
        return cls(Round(**values["round"]), values["samples_ns"], Executed(**values["executed"]))


@dataclass(frozen=True)
class Scored:
    """The accuracy of a file, and the runtime's report."""

    accuracy: Accuracy
    executed: Executed

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Scored:
        return cls(Accuracy(**values["accuracy"]), Executed(**values["executed"]))


def measure_latency(job: Job) -> Timed:
    """Load, warm up and measure latency. Sensors are read after the warm-up and after the measurement, never within."""
    started_at = time.time()
    model = Model(job)
    warmup, _ = model.measure(warm_up=True)
    before = job.sensors()
    samples, cut_short = model.measure()
    after = job.sensors()
    timed = Round(
        samples=len(samples),
        median_ms=float(np.median(samples)) / 1e6,
        mean_ms=float(np.mean(samples)) / 1e6,
        min_ms=min(samples) / 1e6,
        drift=drift(samples),
        started_at=started_at,
        cut_short=cut_short,
        warmup_count=len(warmup),
        import_ms=model.import_ms,
        load_ms=model.load_ms,
        first_inference_ms=model.first_inference_ms,
        peak_rss_kb=memory.peak_memory_kb(),
        sensors_before=before,
        sensors_after=after,
    )
    return Timed(timed, samples, model.runtime.executed())  # last: some runtimes load the model again for it


def measure_accuracy(job: Job) -> Scored:
    """Accuracy and parity of the file on all its images, with the same batch size and settings as the latency."""
    images = np.load(job.variant.inputs, mmap_mode="r", allow_pickle=False)
    expected = Expected.load(Path(str(job.variant.expected)))
    runtime, size = job.load(), job.variant.batch
    # copies, because the images may be a read-only map of their file
    parts = (np.array(images[start : start + size]) for start in range(0, len(images), size))
    outputs = runtimes.joined(runtimes.run_padded(runtime, part, size) for part in parts)
    return Scored(score(outputs, expected), runtime.executed())


def measure_cold_start(job: Job) -> ColdStart:
    """Durations of import, load and first inference, after asking the kernel to drop the files from its cache."""
    path = Path(job.variant.path)
    memory.drop_from_cache(memory.files_of_cold_start(path, job.variant.runtime))
    cached = memory.is_cached(path)
    model = Model(job)
    dropped = None if cached is None else not cached
    return ColdStart(1, model.import_ms, model.load_ms, model.first_inference_ms, dropped)


def measure_memory(job: Job) -> Memory:
    """Peak memory of a process that does not measure latency, and the model's share of it without the runtime."""
    batch = job.batches()[0]
    job.import_runtime()
    imported, before = memory.current_memory_kb(), memory.peak_memory_kb()
    was_reset = memory.reset_peak()
    runtime = job.load()
    for _ in range(_MEMORY_INFERENCES):
        runtime.run(batch)
    peak = memory.peak_memory_kb()
    if imported is None or before is None or peak is None:
        raise ValueError("this system does not report the memory of a process")
    # Without a reset, the earlier peak hides the model unless the model exceeded it.
    return Memory(max(peak, before), max(peak - imported, 0) if was_reset or peak > before else None)


def measure_power(job: Job) -> Power:
    """Power under load and when idle. Idle power is measured before the runtime is imported."""
    meter, reason = find_meter(gpu=job.variant.on_gpu)
    if meter is None:
        raise MeterError(reason)
    time.sleep(SETTLE_SECONDS)
    idle, _ = meter.measure(lambda: time.sleep(IDLE_SECONDS))
    model = Model(job)
    model.measure(warm_up=True)
    busy, (samples, _) = meter.measure(model.measure)
    return Power(meter.name, idle.watts, busy.watts, busy.seconds, len(samples))


def measure_sustained(job: Job) -> Sustained:
    """Latency under sustained load from a cool start. The model is loaded before the device cools down."""
    model, plan = Model(job), job.plan

    def time_window(seconds: float) -> list[int]:
        return measure(model.runtime.run, model.batches, min_seconds=seconds, min_count=1, max_seconds=seconds)[0]

    cool_start = cool_down(job.idle, limit_seconds=plan.cool_limit_seconds, read_sensors=job.sensors)
    sustained = sustain(time_window, limit_seconds=plan.sustained_seconds, read_sensors=job.sensors)
    return dataclasses.replace(sustained, cool_start=cool_start)


MEASUREMENTS: dict[str, Callable[[Job], Any]] = {
    "accuracy": measure_accuracy,
    "round": measure_latency,
    "cold": measure_cold_start,
    "memory": measure_memory,
    "throughput": measure_latency,
    "power": measure_power,
    "sustained": measure_sustained,
}


def main() -> int:
    """Run the job on standard input; returns 0, or an EXIT_ code after one sentence on standard error."""
    try:
        values = json.load(sys.stdin)
        job = Job(values["kind"], Plan.from_json(values["plan"]), values["idle"])
        write_object(Path(values["output"]), dataclasses.asdict(MEASUREMENTS[job.kind](job)))
        return 0
    except (runtimes.RuntimesError, DeviceError) as error:
        sentence, code = str(error), _EXITS.get(type(error), EXIT_FAILED)
    except (OSError, ValueError) as error:
        sentence, code = f"{type(error).__name__}: {error}", EXIT_FAILED
    sys.stderr.write(brief(sentence, LONGEST_SENTENCE) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
