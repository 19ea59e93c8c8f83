"""The result document of a device: one row for each file and runtime.

The device writes these types and this machine reads them (:mod:`pipeline.store.documents`). A number that was not
measured is None, and ``notes`` gives the reason.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from pipeline.portable.accuracy import Accuracy

_WORD = re.compile(r"[A-Za-z0-9_.+-]{1,100}")
_LONGEST, _LARGEST = 2000, 1e12  # limits for the characters of a text, and for a number in any unit


class Checked:
    """Base class that validates the fields of a result, because a result file can come from anyone.

    Raises:
        ValueError: a text is too long or not printable, or a number is too large or, except for a drift or a
            temperature, negative.
    """

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            texts = value if isinstance(value, list) else [value]
            for text in texts:
                if isinstance(text, str) and not (text.isprintable() and len(text) <= _LONGEST):
                    raise ValueError(f"{name} is too long or has characters that cannot be shown")
            lowest = -_LARGEST if name in ("drift", "temperature_c") else 0
            if isinstance(value, (int, float)) and not lowest <= value <= _LARGEST:
                raise ValueError(f"{name} is {value}")


@dataclass(frozen=True)
class Round(Checked):
    """Latency of one file in one fresh process."""

    samples: int
    median_ms: float
    mean_ms: float
    min_ms: float
    drift: float
    started_at: float
    cut_short: bool
    warmup_count: int
    import_ms: float
    load_ms: float
    first_inference_ms: float
    peak_rss_kb: int | None
    sensors_before: dict[str, Any]
    sensors_after: dict[str, Any]


@dataclass(frozen=True)
class ColdStart(Checked):
    """Medians over fresh processes. ``dropped_cache`` is true if all processes started with the file cache dropped."""

    rounds: int
    import_ms: float
    load_ms: float
    first_inference_ms: float
    dropped_cache: bool | None


@dataclass(frozen=True)
class Memory(Checked):
    """Peak memory of a process that times nothing, and the model's share without the runtime; kB of 1024 bytes."""

    peak_rss_kb: int
    model_rss_kb: int | None


@dataclass(frozen=True)
class Minute(Checked):
    """One minute of sustained load: latency percentiles, and the state of the device at its end."""

    samples: int
    seconds: float
    whole: bool
    p50_ms: float | None
    p90_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    mean_ms: float
    max_ms: float
    notes: list[str]
    temperature_c: float | None
    clock_khz: float | None
    throttle_count: int | None
    raspberry_throttled: int | None
    nvidia: list[dict[str, str]] | None


@dataclass(frozen=True)
class Sustained(Checked):
    """Continuous load from a cool start until the latency is stable or the time limit ends it.

    Attributes:
        ended_by: "plateau" or "time limit".
        plateau_ms: median of the medians of the plateau.
        last_to_first: ratio of the last minute's median to the first's.
        evidence: sentences about throttling in any minute, or a slower clock at the end.
        cool_start: seconds of cooling before the load, and the reason why cooling ended.
    """

    minutes: list[Minute]
    ended_by: str
    plateau_ms: float | None
    last_to_first: float | None
    seconds: float
    evidence: list[str]
    cool_start: dict[str, Any] | None = None


@dataclass(frozen=True)
class Throughput(Checked):
    """Images per second at one batch size and number of threads, or a note with the reason why they are missing."""

    batch: int
    threads: int
    images_per_second: float | None = None
    latency_p50_ms: float | None = None
    samples: int = 0
    drift: float | None = None
    cut_short: bool | None = None
    note: str | None = None


@dataclass(frozen=True)
class Power(Checked):
    """Power of the device, idle and under load."""

    meter: str
    idle_watts: float
    watts: float
    seconds: float
    inferences: int


@dataclass(frozen=True)
class MeasuredRow(Checked):
    """One file in one runtime.

    Attributes:
        name: name of the variant in the plan; this machine replaces it by the name of the file.
        batch: images in one inference.
        device_name: name of the processor that ran the file.
        error: reason why accuracy or later rounds are missing, in one sentence.
        error_kind: "unavailable", "model_file", "timeout" or "failed".
        verdict: "stable", "noisy", "throttled" or "too_few_samples", with its ``reasons``.
        latency_ci_low_ms, latency_ci_high_ms: 95 % interval over rounds of ``latency_median_ms``, the median of the
            round medians. Percentiles are over the samples of all rounds.
        role, format, sha256, size_bytes: properties of the file from the export manifest; this machine adds them.
    """

    name: str
    runtime: str
    precision: str
    batch: int
    device_name: str
    error: str | None = None
    error_kind: str | None = None
    samples: int = 0
    rounds: list[Round] = field(default_factory=list)
    latency_p50_ms: float | None = None
    latency_p90_ms: float | None = None
    latency_p95_ms: float | None = None
    latency_p99_ms: float | None = None
    latency_mean_ms: float | None = None
    latency_min_ms: float | None = None
    latency_max_ms: float | None = None
    latency_median_ms: float | None = None
    latency_ci_low_ms: float | None = None
    latency_ci_high_ms: float | None = None
    throughput_ips: float | None = None
    drift: float | None = None
    import_ms: float | None = None
    load_ms: float | None = None
    first_inference_ms: float | None = None
    peak_rss_kb: int | None = None
    precision_executed: str | None = None
    precision_mismatch: str | None = None
    provider: str | None = None
    runtime_version: str | None = None
    threads: int | None = None
    executed_detail: dict[str, Any] | None = None
    verdict: str | None = None
    reasons: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    accuracy: Accuracy | None = None
    cold: ColdStart | None = None
    memory: Memory | None = None
    sustained: Sustained | None = None
    throughput: list[Throughput] = field(default_factory=list)
    power: Power | None = None
    joules_per_inference: float | None = None
    role: str | None = None
    format: str | None = None
    sha256: str | None = None
    size_bytes: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (self.name, self.runtime):  # plots and file names use both
            if not _WORD.fullmatch(name):
                raise ValueError(f"{name[:100]!r} is no name of a file or runtime")


@dataclass(frozen=True)
class Result(Checked):
    """The content of a device's result.json.

    Attributes:
        device: short name of the device.
        machine: hardware, operating system and settings of the device that affect latency.
        tuning: ``allowed``; ``changed``, path -> [previous value, value]; ``notes``.
        plan: the plan of the benchmark.
        started_at: seconds since 1970 by the device's clock.
        notes: sentences about the whole run.
        bundle_sha256: SHA-256 of the bundle.
        card: card of the bundle.
    """

    device: str
    machine: dict[str, Any]
    tuning: dict[str, Any]
    plan: dict[str, Any]
    started_at: float
    seconds: float
    notes: list[str]
    rows: list[MeasuredRow]
    bundle_sha256: str = ""
    card: dict[str, Any] = field(default_factory=dict)
