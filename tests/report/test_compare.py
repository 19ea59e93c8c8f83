from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report import Inputs
from pipeline.report.compare import compare, newcombe_interval, round_medians, verdict_sentence, wilson_interval

TIMES, MINUS = "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}"
Rows = list[dict[str, Any]]


Rounds = dict[tuple[str, str], list[float]]


@pytest.fixture
def rounds(inputs: Inputs) -> Rounds:
    return {key: list(medians) for key, medians in round_medians(inputs.benchmark).items()}


def of(rows: Rows, name: str) -> dict[str, Any]:
    return next(row for row in rows if row["name"] == name and row["runtime"] != "tensorrt")


def test_intervals_match_published_examples() -> None:
    # Newcombe 1998: 81/263 (part I, method 3) and 56/70 against 48/80 (part II, method 10).
    assert wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert newcombe_interval(56 / 70, 70, 48 / 80, 80) == pytest.approx((0.0524, 0.3339), abs=5e-5)


@given(st.integers(1, 500), st.data())
def test_interval_contains_the_difference_and_stays_in_range(count: int, data: st.DataObject) -> None:
    share, other = (data.draw(st.integers(0, count)) / count for _ in range(2))
    low, high = newcombe_interval(share, count, other, count)
    assert -1 - 1e-9 <= low <= share - other <= high <= 1 + 1e-9


def test_sentence_claims_size_speed_and_accuracy_with_interval(rows: Rows, rounds: Rounds) -> None:
    row = of(rows, "student_int8.onnx")
    sentence = verdict_sentence(row, compare(row, rows, images=360, rounds=rounds), 1)
    assert sentence == (
        f"Deploy student_int8.onnx with ONNX Runtime: 11{TIMES} smaller and 4.4{TIMES} faster than the teacher, at "
        f"{MINUS}1.4 points of top-1 accuracy (95 % interval {MINUS}3.8 to +0.8)."
    )


def test_no_speed_is_claimed_where_intervals_overlap(rows: Rows, rounds: Rounds) -> None:
    row = of(rows, "student_int8.onnx")
    rounds["student_int8.onnx", "onnxruntime"][-2:] = [1.3, 1.4]
    comparison = compare(row, rows, images=360, rounds=rounds)
    assert comparison.speed_ratio is None
    sentence = verdict_sentence(row, comparison, 1)
    assert "faster" not in sentence
    assert "no speed-up is claimed, because the intervals over rounds overlap" in sentence


@pytest.mark.parametrize("verdict", ["throttled", "too_few_samples"])
@pytest.mark.parametrize("name", ["student_int8.onnx", "teacher_fp32.onnx"])
def test_no_speed_is_claimed_from_an_unusable_latency(rows: Rows, rounds: Rounds, verdict: str, name: str) -> None:
    of(rows, name)["verdict"] = verdict
    comparison = compare(of(rows, "student_int8.onnx"), rows, images=360, rounds=rounds)
    assert comparison.speed_ratio is None
    assert verdict.replace("_", " ") in comparison.speed_reason


def test_slower_file_is_called_slower(rows: Rows, rounds: Rounds) -> None:
    row = of(rows, "student_int8.onnx")
    row["latency_p50_ms"] = 2.62
    rounds["student_int8.onnx", "onnxruntime"] = [2.6, 2.6, 2.62, 2.63, 2.7]
    assert f"2.0{TIMES} slower" in verdict_sentence(row, compare(row, rows, images=360, rounds=rounds), 1)


def test_other_runtime_of_the_teacher_is_named(rows: Rows, rounds: Rounds) -> None:
    row = of(rows, "student_int8.xml")
    assert "faster than the teacher in ONNX Runtime," in verdict_sentence(
        row, compare(row, rows, images=360, rounds=rounds), 1
    )


def test_missing_teacher_leaves_the_cost_open(rows: Rows, rounds: Rounds) -> None:
    rows = [row for row in rows if row["role"] == "student"]
    row = of(rows, "student_int8.onnx")
    comparison = compare(row, rows, images=360, rounds=rounds)
    assert comparison.size_ratio is None
    assert "is not known, because no file of the teacher was exported" in verdict_sentence(row, comparison, 1)


@pytest.mark.parametrize("count", [0, 3])
def test_no_speed_is_claimed_from_too_few_rounds(rows: Rows, rounds: Rounds, count: int) -> None:
    row = of(rows, "student_int8.onnx")
    del rounds["student_int8.onnx", "onnxruntime"][count:]
    comparison = compare(row, rows, images=360, rounds=rounds)
    assert comparison.speed_ratio is None
    assert comparison.speed_reason == (
        "a comparison needs 4 rounds of each" if count else "the latency of the file was not measured"
    )
