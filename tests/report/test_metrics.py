from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pipeline.report import Inputs, Recommendation, build_metrics, compare, round_medians

Summarise = Callable[[Inputs], tuple[dict[str, Any], Recommendation]]


def metrics_of(summarise: Summarise, inputs: Inputs) -> dict[str, float]:
    summary, recommendation = summarise(inputs)
    row = recommendation.row
    if row is None:
        return build_metrics(summary, None, None)
    rounds = round_medians(inputs.benchmark)
    return build_metrics(summary, row, compare(row, summary["rows"], images=360, rounds=rounds))


def test_metrics_are_flat_numbers_of_the_recommended_file(summarise: Summarise, inputs: Inputs) -> None:
    metrics = metrics_of(summarise, inputs)
    assert all(isinstance(value, int | float) for value in metrics.values())
    assert metrics["recommended_size_mb"] == 0.097861
    assert metrics["recommended_latency_p50_ms"] == 0.298
    assert metrics["student_top1_high_energy"] == 65 / 72
    assert round(metrics["compression_ratio"], 2) == 11.27
    assert round(metrics["speedup"], 2) == 4.40
    assert {"teacher_top1", "student_top1", "recommended_top1"} <= metrics.keys()


def test_number_that_was_not_measured_has_no_entry(summarise: Summarise, inputs: Inputs) -> None:
    inputs.export["files"].pop()
    inputs.evaluation["rows"].pop()
    inputs.benchmark["rows"].pop()
    metrics = metrics_of(summarise, inputs)
    assert "teacher_top1" not in metrics
    assert "speedup" not in metrics
    assert metrics["student_top1"] == 351 / 360


def test_nothing_is_recommended_outside_the_budget(summarise: Summarise, make_inputs: Callable[..., Inputs]) -> None:
    inputs = make_inputs()
    inputs = replace(inputs, budget=inputs.budget.model_copy(update={"max_size_mb": 0.001}))
    assert summarise(inputs)[0]["recommended"] is None
    assert not any(name.startswith("recommended") for name in metrics_of(summarise, inputs))
