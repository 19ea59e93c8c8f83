"""Fields of a row for the measurements besides the latency; None where not measured, with the reason."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from pipeline.device.benchmark.plan import Plan, Variant
from pipeline.device.benchmark.rows import Collected, measured_row
from pipeline.device.benchmark.steps import Step, WorkerError
from pipeline.device.benchmark.worker import Scored, Timed
from pipeline.portable.accuracy import Accuracy
from pipeline.portable.documents import ColdStart, MeasuredRow, Memory, Power, Round, Sustained, Throughput
from pipeline.runtimes import Executed

VARIANT = Variant("ort", "onnxruntime", "ort.onnx", "fp32", "x.npy", "x.npz")
PLAN = Plan((VARIANT,))
POWER = Power("RAPL package-0", 10.0, 14.0, 5.0, 100)
MACHINE: dict[str, Any] = {"affinity": [0], "logical_cores": 1, "emulated": None, "state": {"load_average": None}}
NO_LATENCY = "latency not measured: None"
ACCURACY = Accuracy(**dict.fromkeys(Accuracy.__dataclass_fields__, 0) | {"images": 1, "correct": "00"})  # type: ignore[arg-type]


def executed(engine: str | None = None) -> Executed:
    return Executed("fp32", "CPU", "1", 1, {} if engine is None else {"engine_sha256": engine})


def timed(engine: str | None = None, milliseconds: int = 2) -> Timed:
    times = {"median_ms": milliseconds, "mean_ms": milliseconds, "min_ms": milliseconds, "drift": 0.0}
    start = {"started_at": 1e9, "warmup_count": 1, "import_ms": 1.0, "load_ms": 1.0, "first_inference_ms": 1.0}
    sensors: dict[str, Any] = {"sensors_before": {}, "sensors_after": {}}
    values = Round(samples=100, cut_short=False, peak_rss_kb=1, **times, **start, **sensors)
    return Timed(values, [milliseconds * 1_000_000] * 100, executed(engine))


def row(collected: Collected, plan: Plan = PLAN, variant: Variant = VARIANT) -> MeasuredRow:
    return measured_row(plan, variant, collected, MACHINE)


def test_what_was_not_asked_for_is_none() -> None:
    found = row(Collected(error="it ended."), variant=dataclasses.replace(VARIANT, expected=None))
    numbers = (found.accuracy, found.cold, found.memory, found.sustained, found.joules_per_inference, found.power)
    assert set(numbers) == {None}
    assert (found.samples, found.latency_p50_ms, found.verdict, found.throughput) == (0, None, None, [])
    no_accuracy = "accuracy not measured here: the plan has no expected answers for this file."
    assert found.notes == ["latency not measured: it ended.", no_accuracy]


def test_energy_is_that_beyond_the_idle_device() -> None:
    found = row(Collected(power=POWER))
    assert found.joules_per_inference == pytest.approx(4 * 5 / 100)
    assert found.power == POWER


@pytest.mark.parametrize("watts", [10.0, 9.0])
def test_energy_not_above_idle_is_none_with_the_reason(watts: float) -> None:
    found = row(Collected(power=dataclasses.replace(POWER, watts=watts)))
    assert found.joules_per_inference is None
    assert found.power is not None
    shown = f"RAPL package-0 shows no more power than when idle, {watts:.2f} W against 10.00 W."
    assert f"energy per inference not measured: {shown}" in found.notes


def test_a_cold_start_is_the_median_of_its_rounds() -> None:
    starts = [ColdStart(1, i, 10 * i, 1, dropped_cache=True) for i in (1, 5, 3)]
    assert row(Collected(cold=starts)).cold == ColdStart(3, 3, 30, 1, dropped_cache=True)
    for other in (False, None):
        cold = row(Collected(cold=[*starts, dataclasses.replace(starts[0], dropped_cache=other)])).cold
        assert cold is not None
        assert cold.dropped_cache is other


def test_throughput_has_an_entry_for_each_point_with_the_reason_where_there_is_none() -> None:
    plan = dataclasses.replace(PLAN, throughput=((4, 1), (1, 1), (8, 2)))
    variant = dataclasses.replace(VARIANT, batch=4, fixed_batch=True)
    found = row(Collected(throughput={(4, 1): timed()}, accuracy=Scored(ACCURACY, executed())), plan, variant)
    sentences = [
        "at batch 1 with 1 threads not measured: the file takes batches of 4 only.",
        "at batch 8 with 2 threads not measured: the file takes batches of 4 only.",
    ]
    assert found.throughput == [
        Throughput(4, 1, pytest.approx(2000), 2.0, 100, 0.0, cut_short=False),
        Throughput(1, 1, note=sentences[0]),
        Throughput(8, 2, note=sentences[1]),
    ]
    assert found.notes == [NO_LATENCY, *(f"throughput {sentence}" for sentence in sentences)]


def test_a_point_that_failed_carries_the_reason_of_its_worker() -> None:
    plan = dataclasses.replace(PLAN, throughput=((8, 1), (9, 1)))
    found = row(Collected(throughput={(8, 1): "out of memory."}), plan)
    assert [point.note for point in found.throughput] == [
        "at batch 8 with 1 threads not measured: out of memory.",
        "at batch 9 with 1 threads not measured: an earlier measurement of the variant failed.",
    ]


def test_another_engine_than_the_one_whose_accuracy_is_known_is_said() -> None:
    scored = Scored(ACCURACY, executed("aaa"))
    differs = "accuracy is that of engine aaa, but engine bbb was timed."
    assert differs not in row(Collected(accuracy=scored, rounds=[timed("aaa")])).notes
    assert differs in row(Collected(accuracy=scored, rounds=[timed("bbb")])).notes


def test_reasons_of_measurements_that_failed_are_notes() -> None:
    collected = Collected(accuracy=Scored(ACCURACY, executed()), memory=Memory(5, None))
    collected.add_failure(Step("cold", VARIANT, 1, "", ""), WorkerError("it ended.", "failed"))
    collected.missing["power"] = "energy per inference not measured: no meter."
    found = row(collected)
    assert (found.cold, found.memory) == (None, Memory(5, None))
    assert found.notes == [
        NO_LATENCY,
        "cold start not measured: it ended.",
        "energy per inference not measured: no meter.",
        "memory of the model not measured: this system cannot separate it from the runtime's memory.",
    ]


def test_sustained_load_without_a_plateau_is_said_with_the_evidence() -> None:
    sustained = Sustained([], "time limit", None, None, 600.0, ["the clock fell."])
    found = row(Collected(sustained=sustained))
    assert found.sustained == sustained
    assert found.notes[-2:] == [
        "sustained load: the clock fell.",
        "sustained latency not settled: the time limit came first, after 600 s.",
    ]
