"""What the report takes for granted of a measurement: of result.json, which a device wrote and anyone can have sent on,
and of benchmark.json of this machine.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field

from pipeline.store.documents import Share, printable

Difference = Annotated[float, Field(ge=-1, le=1)]
Measured = Annotated[float, Field(ge=0, le=1e12)]  # of any unit; above it there is no device
Count = Annotated[int, Field(ge=0, le=10**12)]


# notes are printed on the terminal too; the name of a runtime becomes part of a plot, whose text has a language
Text = Annotated[str, Field(max_length=2000), AfterValidator(printable)]
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.+-]{1,100}$")]


class Accuracy(BaseModel):
    images: Annotated[int, Field(ge=1, le=10**12)]
    top1: Share
    top1_low_energy: Share | None = None
    top1_mid_energy: Share | None = None
    top1_high_energy: Share | None = None
    delta_top1: Difference | None = None
    delta_ci_low: float | None = None
    delta_ci_high: float | None = None
    delta_top1_high_energy: Difference | None = None
    delta_high_energy_ci_low: float | None = None
    delta_high_energy_ci_high: float | None = None
    parity_max_abs: float | None
    parity_top1_agreement: float | None


class Round(BaseModel):
    median_ms: Measured


class Cold(BaseModel):
    import_ms: Measured | None = None
    load_ms: Measured | None = None
    first_inference_ms: Measured | None = None
    dropped_cache: bool | None = None


class Memory(BaseModel):
    peak_rss_kb: Measured | None = None
    model_rss_kb: Measured | None = None


class Minute(BaseModel):
    p50_ms: Measured | None


class Sustained(BaseModel):
    minutes: list[Minute] | None = None
    plateau_ms: Measured | None = None
    ended_by: Text | None = None


class Point(BaseModel):
    batch: Count
    threads: Count
    images_per_second: Measured | None


class Row(BaseModel):
    """One file in one runtime."""

    name: Word
    role: Text
    precision: Text
    runtime: Word
    sha256: Text
    device_name: Text | None = None
    samples: Count = 0
    rounds: list[Round]
    error: Text | None
    latency_p50_ms: Measured | None = None
    latency_p90_ms: Measured | None = None
    latency_p99_ms: Measured | None = None
    latency_ci_low_ms: Measured | None = None
    latency_ci_high_ms: Measured | None = None
    throughput_ips: Measured | None = None
    verdict: Text | None = None
    reasons: list[Text] = []
    precision_executed: Text | None
    notes: list[Text]
    accuracy: Accuracy | None = None
    cold: Cold | None = None
    memory: Memory | None = None
    sustained: Sustained | None = None
    throughput: list[Point] | None = None
    joules_per_inference: Measured | None = None
    meter: Text | None = None


class Tuning(BaseModel):
    changed: dict[str, Any]


class Result(BaseModel):
    """The whole of result.json but its schema, which decides whether this one applies."""

    device: Text
    machine: dict[str, Any]
    settings: dict[str, Any]
    tuning: Tuning
    notes: list[Text]
    rows: list[Row]


class Benchmark(Result):
    """The whole of benchmark.json."""

    lineage: dict[str, str]
