from __future__ import annotations

import pytest

from pipeline.report.build import build_report
from pipeline.report.recommend import budget_sentence, recommend
from pipeline.report.rows import Row
from tests.report.conftest import STUDENTS, budget, build_inputs, changed, row_of

Rows = list[Row]
INT8 = ("student_int8.onnx", "onnxruntime")


@pytest.fixture(scope="module")
def of_eight() -> Rows:
    """Rows of eight students with the differences to the best of them, wide."""
    return list(build_report(build_inputs(*STUDENTS)).rows)


@pytest.mark.parametrize(
    ("choose", "name"),
    [("smallest", "quarter_int8.onnx"), ("fastest", "quarter_int8.xml"), ("most_accurate", "wide_int8.onnx")],
)
def test_budget_chooses_among_the_files_of_all_students(of_eight: Rows, choose: str, name: str) -> None:
    found = recommend(of_eight, budget(choose=choose))
    assert found.row is not None
    assert found.row.name == name


def test_a_small_student_must_keep_the_drop_to_the_best_one(of_eight: Rows) -> None:
    found = recommend(of_eight, budget(max_top1_drop=0.01))
    assert found.row is not None
    assert found.row.name == "deep_int8.onnx"
    assert found.broken["quarter_int8.onnx"] == [
        "it loses 7.22 points of top-1 accuracy, 1 allowed (max_top1_drop)",
    ]


def test_steps_are_to_the_next_cheaper_and_the_next_better_file(of_eight: Rows) -> None:
    found = recommend(of_eight, budget(max_top1_drop=0.01))
    assert found.row is not None
    assert found.cheaper is not None
    assert found.better is not None
    assert found.cheaper.row.name == "student_int8.onnx"
    assert found.cheaper.size_bytes == found.cheaper.row.size_bytes - found.row.size_bytes < 0
    assert found.cheaper.difference is not None
    assert found.cheaper.difference.value == pytest.approx(-1 / 360)
    assert found.cheaper.broken == ["it loses 1.11 points of top-1 accuracy, 1 allowed (max_top1_drop)"]
    assert found.better.row.name == "deep_fp16.xml", "deep_fp16.onnx is smaller, but slower than its fp32 file"
    assert found.better.broken == []


def test_nothing_is_cheaper_than_the_smallest_or_better_than_the_most_accurate(of_eight: Rows) -> None:
    assert recommend(of_eight, budget()).cheaper is None
    best = recommend([row for row in of_eight if row.name == "wide_fp32.xml"], budget())
    assert (best.cheaper, best.better) == (None, None)


def test_smallest_student_file_is_recommended(rows: Rows) -> None:
    found = recommend(rows, budget())
    assert found.row is not None
    assert (found.row.name, found.row.runtime) == ("student_int8.onnx", "onnxruntime")
    assert found.broken == {}


def test_of_equal_sizes_the_faster_is_recommended(rows: Rows) -> None:
    for row in rows:
        row.size_bytes = 100_000
    found = recommend(rows, budget())
    assert found.row is not None
    assert found.row.name == "student_int8.xml"


def test_measured_runtime_wins_over_the_same_file_without_latency(rows: Rows) -> None:
    row = row_of(rows, *INT8)
    rows.insert(0, changed(row, runtime="tensorrt", latency_p50_ms=None))
    found = recommend(rows, budget())
    assert found.row is not None
    assert found.row.runtime == "onnxruntime"


def test_torch_programs_and_teachers_are_no_candidates(rows: Rows) -> None:
    rows = [row for row in rows if row.format == "torch" or row.role == "teacher"]
    found = recommend(rows, budget())
    assert found.row is None
    assert found.broken == {}
    assert budget_sentence(found).startswith("no ONNX or OpenVINO file of a student was measured")
    assert "add onnxruntime or openvino to evaluate.runtimes" in budget_sentence(found)


@pytest.mark.parametrize(
    ("limit", "value", "clause"),
    [
        ("minimum_top1", 0.985, "its top-1 accuracy is 97.22 %, 98.5 required (minimum_top1)"),
        ("max_top1_drop", 0.001, "it loses 0.28 points of top-1 accuracy, 0.1 allowed (max_top1_drop)"),
        (
            "max_high_energy_drop",
            0.001,
            "it loses 1.39 points of high-energy accuracy, 0.1 allowed (max_high_energy_drop)",
        ),
        ("max_latency_p50_ms", 0.25, "its p50 is 0.262 ms, 0.250 allowed (max_latency_p50_ms)"),
        ("max_latency_p90_ms", 0.25, "its p90 is 0.299 ms, 0.250 allowed (max_latency_p90_ms)"),
        ("max_latency_p99_ms", 0.25, "its p99 is 0.398 ms, 0.250 allowed (max_latency_p99_ms)"),
        ("max_size_mb", 0.1, "it has 0.171 MB, 0.100 allowed (max_size_mb)"),
    ],
)
def test_each_limit_excludes_and_is_named(rows: Rows, limit: str, value: float, clause: str) -> None:
    rows = [row for row in rows if row.name == "student_int8.xml"]
    found = recommend(rows, budget(**{limit: value}))
    assert found.row is None
    assert found.broken == {"student_int8.xml": [clause]}


def test_loss_of_exactly_the_limit_is_within_the_budget(rows: Rows) -> None:
    rows = [row for row in rows if row.name == "student_int8.onnx"]
    assert recommend(rows, budget(max_top1_drop=1 / 360)).row is not None


@pytest.mark.parametrize(
    ("limit", "key", "clause"),
    [
        ("max_top1_drop", "delta_reference", "its loss of top-1 accuracy was not measured (max_top1_drop)"),
        (
            "max_high_energy_drop",
            "delta_reference_high_energy",
            "its loss of high-energy accuracy was not measured (max_high_energy_drop)",
        ),
        ("max_latency_p50_ms", "latency_p50_ms", "its p50 latency was not measured (max_latency_p50_ms)"),
    ],
)
def test_limit_on_what_was_not_measured_counts_as_broken(rows: Rows, limit: str, key: str, clause: str) -> None:
    rows = [row for row in rows if row.name == "student_fp32.xml"]
    setattr(rows[0], key, None)
    assert recommend(rows, budget()).row is not None
    assert recommend(rows, budget(**{limit: 0.9})).broken == {"student_fp32.xml": [clause]}


def test_file_without_measured_accuracy_is_never_recommended(rows: Rows) -> None:
    rows = [row for row in rows if row.runtime == "tensorrt"]
    found = recommend(rows, budget())
    assert found.row is None
    assert found.broken["student_fp16.onnx"] == ["its accuracy was not measured"]


def test_sentence_names_the_broken_limits_of_every_file(rows: Rows) -> None:
    found = recommend(rows, budget(max_size_mb=0.05, max_latency_p50_ms=0.4))
    sentence = budget_sentence(found)
    assert found.row is None
    assert "\n" not in sentence
    for name in ("student_fp32.onnx", "student_int8.onnx", "student_fp16.xml"):
        assert name in sentence
    assert "student_fp32.onnx: its p50 is 0.412 ms, 0.400 allowed (max_latency_p50_ms), it has 0.318 MB" in sentence
    assert "teacher" not in sentence
    assert "relax the block budget in params.yaml" in sentence


def test_limits_of_a_file_in_two_runtimes_name_the_runtime_where_they_differ(rows: Rows) -> None:
    row = row_of(rows, *INT8)
    rows = [row, changed(row, runtime="tensorrt", latency_p50_ms=0.05)]
    found = recommend(rows, budget(max_size_mb=0.05, max_latency_p50_ms=0.1))
    assert found.broken == {
        "student_int8.onnx": [
            "it has 0.0979 MB, 0.0500 allowed (max_size_mb)",
            "in ONNX Runtime its p50 is 0.298 ms, 0.100 allowed (max_latency_p50_ms)",
        ]
    }


def test_lower_precision_that_is_slower_than_fp32_is_passed_over_and_named(rows: Rows) -> None:
    rows = [row for row in rows if row.name in ("student_fp32.onnx", "student_int8.onnx")]
    rows = [row for row in rows if row.runtime == "onnxruntime"]
    slow = rows[1]
    slow.latency_p50_ms, slow.latency_ci_low_ms, slow.latency_ci_high_ms = 0.6, 0.58, 0.62
    found = recommend(rows, budget())
    assert found.row is not None
    assert found.row.name == "student_fp32.onnx"
    assert found.slower_than_fp32 == {
        "student_int8.onnx": ["in ONNX Runtime it takes 0.600 ms, the fp32 file 0.412"],
    }
    assert found.broken == {}


def test_slower_precision_is_recommended_where_the_fp32_file_breaks_the_budget_or_intervals_overlap(rows: Rows) -> None:
    rows = [row for row in rows if row.name in ("student_fp32.onnx", "student_int8.onnx")]
    rows = [row for row in rows if row.runtime == "onnxruntime"]
    slow = rows[1]
    slow.latency_p50_ms, slow.latency_ci_low_ms, slow.latency_ci_high_ms = 0.6, 0.58, 0.62
    assert recommend(rows, budget(max_size_mb=0.2)).row.name == "student_int8.onnx"
    slow.latency_ci_low_ms = 0.4
    assert recommend(rows, budget()).row.name == "student_int8.onnx"
