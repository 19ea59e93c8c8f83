from __future__ import annotations

import dataclasses

import pytest

from pipeline.portable.documents import MeasuredRow
from pipeline.report.compare import compare, verdict_sentence, wilson_interval
from pipeline.report.rows import Row
from tests.report.conftest import benchmark, changed, rounds, row_of

TIMES, MINUS = "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}"
INT8 = ("student_int8.onnx", "onnxruntime")


@pytest.fixture
def timed() -> list[MeasuredRow]:
    """Rows of the benchmark, free to change; the third is that of INT8."""
    return benchmark().rows


def test_interval_matches_a_published_example() -> None:
    # Newcombe 1998, part I, method 3: 81/263.
    assert wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_sentence_claims_size_speed_and_accuracy_with_interval(rows: list[Row], timed: list[MeasuredRow]) -> None:
    row = row_of(rows, *INT8)
    assert verdict_sentence(row, compare(row, rows, timed), 1, several=False) == (
        f"Deploy student_int8.onnx with ONNX Runtime: 11{TIMES} smaller and 4.4{TIMES} faster than the teacher, at "
        f"{MINUS}1.4 points of top-1 accuracy (95 % interval {MINUS}3.1 to +0.3)."
    )


def test_sentence_names_the_student_where_there_are_several(rows: list[Row], timed: list[MeasuredRow]) -> None:
    row = row_of(rows, *INT8)
    sentence = verdict_sentence(row, compare(row, rows, timed), 1, several=True)
    assert sentence.startswith("Deploy the student student as student_int8.onnx with ONNX Runtime: 11")


def test_no_speed_is_claimed_where_intervals_overlap(rows: list[Row], timed: list[MeasuredRow]) -> None:
    row = row_of(rows, *INT8)
    timed[2] = changed(timed[2], rounds=rounds(0.29, 0.295, 0.298, 1.3, 1.4))
    comparison = compare(row, rows, timed)
    assert comparison.speed_ratio is None
    sentence = verdict_sentence(row, comparison, 1, several=False)
    assert "faster" not in sentence
    assert "no speed-up is claimed, because the intervals over rounds overlap" in sentence


@pytest.mark.parametrize("verdict", ["throttled", "too_few_samples"])
@pytest.mark.parametrize("name", ["student_int8.onnx", "teacher_fp32.onnx"])
def test_no_speed_is_claimed_from_an_unusable_latency(
    rows: list[Row], timed: list[MeasuredRow], verdict: str, name: str
) -> None:
    row_of(rows, name, "onnxruntime").verdict = verdict
    comparison = compare(row_of(rows, *INT8), rows, timed)
    assert comparison.speed_ratio is None
    assert verdict.replace("_", " ") in comparison.speed_reason


def test_slower_file_is_called_slower(rows: list[Row], timed: list[MeasuredRow]) -> None:
    row = row_of(rows, *INT8)
    row.latency_p50_ms = 2.62
    timed[2] = changed(timed[2], rounds=rounds(2.6, 2.6, 2.62, 2.63, 2.7))
    assert f"2.0{TIMES} slower" in verdict_sentence(row, compare(row, rows, timed), 1, several=False)


def test_a_file_of_the_teachers_size_is_called_as_large_and_not_one_time_larger(
    rows: list[Row], timed: list[MeasuredRow]
) -> None:
    row = row_of(rows, *INT8)
    comparison = dataclasses.replace(compare(row, rows, timed), size_ratio=0.98)
    sentence = verdict_sentence(row, comparison, 1, several=False)
    assert f": as large as the teacher and 4.4{TIMES} faster than it, at" in sentence
    same_speed = dataclasses.replace(comparison, speed_ratio=1.04)
    assert ": as large and as fast as the teacher, at" in verdict_sentence(row, same_speed, 1, several=False)


def test_other_runtime_of_the_teacher_is_named(rows: list[Row], timed: list[MeasuredRow]) -> None:
    row = row_of(rows, "student_int8.xml", "openvino")
    assert "faster than the teacher in ONNX Runtime," in verdict_sentence(
        row, compare(row, rows, timed), 1, several=False
    )


def test_missing_teacher_leaves_the_cost_open(rows: list[Row], timed: list[MeasuredRow]) -> None:
    row = row_of(rows, *INT8)
    comparison = compare(row, [row for row in rows if row.role == "student"], timed)
    assert comparison.size_ratio is None
    sentence = verdict_sentence(row, comparison, 1, several=False)
    assert "it was not compared with the teacher, because no file of the teacher was exported" in sentence


@pytest.mark.parametrize("count", [0, 3])
def test_no_speed_is_claimed_from_too_few_rounds(rows: list[Row], timed: list[MeasuredRow], count: int) -> None:
    timed[2] = changed(timed[2], rounds=timed[2].rounds[:count])
    comparison = compare(row_of(rows, *INT8), rows, timed)
    assert comparison.speed_ratio is None
    assert comparison.speed_reason == (
        "a comparison needs 4 rounds of each" if count else "the latency of the file was not measured"
    )


def test_a_latency_of_zero_is_no_measurement(rows: list[Row], timed: list[MeasuredRow]) -> None:
    row_of(rows, *INT8).latency_p50_ms = 0.0
    comparison = compare(row_of(rows, *INT8), rows, timed)
    assert (comparison.speed_ratio, comparison.speed_reason) == (None, "the latency of the file was not measured")
