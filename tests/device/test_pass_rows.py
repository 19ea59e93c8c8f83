from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from pipeline.device.benchmark.collected import Collected
from pipeline.device.benchmark.pass_rows import pass_rows
from pipeline.device.benchmark.plan import Plan, Variant

VARIANT = Variant("ort", "onnxruntime", "ort.onnx", "fp32")
PLAN = Plan((VARIANT,), "x.npy", expected="x.npz")
POWER = {"meter": "RAPL package-0", "idle_watts": 10.0, "watts": 14.0, "seconds": 5.0, "inferences": 100}
EXECUTED = {"executed": {"detail": {}}}
KEYS = {"accuracy", "cold", "memory", "sustained", "throughput", "joules_per_inference", "meter", "power"}


def collected(**results: Any) -> Collected:
    found = Collected()
    for kind, values in results.items():
        found.results[kind] = values
    return found


def test_what_was_not_asked_for_is_null() -> None:
    values, notes = pass_rows(dataclasses.replace(PLAN, expected=None), VARIANT, Collected())
    assert set(values) == KEYS
    assert values.pop("throughput") == []
    assert set(values.values()) == {None}
    assert notes == ["accuracy not measured here: the plan has no expected answers."]


def test_energy_is_that_beyond_the_idle_device() -> None:
    values, _ = pass_rows(PLAN, VARIANT, collected(power=[POWER]))
    assert values["joules_per_inference"] == pytest.approx(4 * 5 / 100)
    assert (values["meter"], values["power"]["idle_watts"]) == ("RAPL package-0", 10.0)


@pytest.mark.parametrize("watts", [10.0, 9.0])
def test_energy_not_above_idle_is_null_with_the_reason(watts: float) -> None:
    values, notes = pass_rows(PLAN, VARIANT, collected(power=[POWER | {"watts": watts}]))
    assert (values["joules_per_inference"], values["meter"]) == (None, "RAPL package-0")
    shown = f"RAPL package-0 shows no more than when idle, {watts:.2f} W against 10.00 W."
    assert f"energy per inference not measured: {shown}" in notes


def test_a_cold_start_is_the_median_of_its_rounds() -> None:
    rounds = [{"import_ms": i, "load_ms": 10 * i, "first_inference_ms": 1, "dropped_cache": True} for i in (1, 5, 3)]
    values, _ = pass_rows(PLAN, VARIANT, collected(cold=rounds))
    expected = {"rounds": 3, "import_ms": 3, "load_ms": 30, "first_inference_ms": 1, "dropped_cache": True}
    assert values["cold"] == expected
    for other, dropped in ((False, False), (None, None)):
        changed = collected(cold=[*rounds, rounds[0] | {"dropped_cache": other}])
        assert pass_rows(PLAN, VARIANT, changed)[0]["cold"]["dropped_cache"] is dropped


def test_throughput_has_an_entry_for_each_point_with_the_reason_where_there_is_none() -> None:
    plan = dataclasses.replace(PLAN, throughput=((4, 1), (1, 1), (8, 2)))
    variant = dataclasses.replace(VARIANT, batch=4, fixed_batch=True)
    measured = {"batch": 4, "threads": 1, "samples_ns": [2_000_000] * 100, "cut_short": False}
    values, notes = pass_rows(plan, variant, collected(throughput=[measured], accuracy=[{"accuracy": {}} | EXECUTED]))
    points = values["throughput"]
    assert [(point["batch"], point["threads"]) for point in points] == [(4, 1), (1, 1), (8, 2)]
    assert (points[0]["images_per_second"], points[0]["latency_p50_ms"]) == (pytest.approx(2000), 2.0)
    assert [point["images_per_second"] for point in points[1:]] == [None, None]
    sentences = [
        "at batch 1 with 1 threads not measured: the file takes batches of 4 only.",
        "at batch 8 with 2 threads not measured: the file takes batches of 4 only.",
    ]
    assert [point["note"] for point in points] == [None, *sentences]
    assert notes == [f"throughput {sentence}" for sentence in sentences]


def test_a_point_that_failed_carries_the_reason_of_its_worker() -> None:
    plan = dataclasses.replace(PLAN, throughput=((8, 1), (9, 1)))
    values, _ = pass_rows(plan, VARIANT, collected(throughput=[{"batch": 8, "threads": 1, "error": "out of memory."}]))
    assert [point["note"] for point in values["throughput"]] == [
        "at batch 8 with 1 threads not measured: out of memory.",
        "at batch 9 with 1 threads not measured: the variant failed before.",
    ]


def test_another_engine_than_the_one_whose_accuracy_is_known_is_said() -> None:
    def with_engine(digest: str) -> dict[str, Any]:
        return {"accuracy": {"top1": 0.5}, "executed": {"detail": {"engine_sha256": digest}}}

    same = collected(accuracy=[with_engine("aaa")], round=[with_engine("aaa")])
    assert pass_rows(PLAN, VARIANT, same)[1] == []
    other = collected(accuracy=[with_engine("aaa")], round=[with_engine("bbb")])
    assert pass_rows(PLAN, VARIANT, other)[1] == ["accuracy is that of engine aaa, but engine bbb was timed."]


def test_reasons_of_passes_that_failed_are_notes() -> None:
    found = collected(accuracy=[{"accuracy": {}} | EXECUTED], memory=[{"peak_rss_kb": 5, "model_rss_kb": None}])
    found.reasons = {"cold": "cold not measured: it ended.", "power": "energy per inference not measured: no meter."}
    values, notes = pass_rows(PLAN, VARIANT, found)
    assert values["cold"] is None
    assert values["memory"] == {"peak_rss_kb": 5, "model_rss_kb": None}
    assert notes == [
        "cold not measured: it ended.",
        "energy per inference not measured: no meter.",
        "memory of the model not measured: this system cannot tell it from that of the runtime.",
    ]


def test_sustained_load_without_a_plateau_is_said_with_the_evidence() -> None:
    sustained = {"minutes": [], "plateau_ms": None, "seconds": 600.0, "evidence": ["the clock fell."], "batch": 1}
    values, notes = pass_rows(PLAN, VARIANT, collected(sustained=[sustained]))
    assert "batch" not in values["sustained"]
    assert notes[-2:] == [
        "sustained load: the clock fell.",
        "sustained latency not settled: the time limit came first, after 600 s.",
    ]
