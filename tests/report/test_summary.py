from __future__ import annotations

from typing import Any

import pytest

from pipeline.report.build import Report, build_report
from pipeline.report.inputs import Inputs
from pipeline.report.rows import Row, best_student
from pipeline.store.documents import ShotAccuracy
from tests.report.conftest import TEACHER, build_inputs, changed, row_of, with_rows, without

KEYS_OF_DESIGN = {
    *("name", "format", "precision", "precision_executed", "runtime", "device", "top1", "top1_low_energy"),
    *("top1_mid_energy", "top1_high_energy", "delta_top1", "delta_ci_low", "delta_ci_high", "parity_max_abs"),
    *("parity_top1_agreement", "latency_p50_ms", "latency_p90_ms", "latency_p99_ms", "throughput_ips", "verdict"),
    *("size_bytes", "sha256"),
}
ADDED_KEYS = {"role", "notes", "batch", "target", "images", "latency_ci_low_ms", "latency_ci_high_ms"}
ADDED_KEYS |= {"delta_top1_high_energy", "delta_high_energy_ci_low", "delta_high_energy_ci_high"}
ADDED_KEYS |= {"energy_threshold", "on_device_coverage", "on_device_top1", "student", "val_top1"}
ADDED_KEYS |= {"delta_reference", "delta_reference_ci_low", "delta_reference_ci_high", "delta_reference_high_energy"}
# What a note on a null must name.
SUBJECTS = {
    "images": "accuracy",
    "top1": "accuracy",
    "top1_low_energy": "low-energy",
    "top1_mid_energy": "middle-energy",
    "top1_high_energy": "high-energy",
    "delta_top1": "accuracy|difference",
    "delta_ci_low": "accuracy|difference",
    "delta_ci_high": "accuracy|difference",
    "delta_top1_high_energy": "high-energy",
    "delta_high_energy_ci_low": "high-energy",
    "delta_high_energy_ci_high": "high-energy",
    "energy_threshold": "energy threshold",
    "on_device_coverage": "accuracy",
    "on_device_top1": "on the device",
    "parity_max_abs": "parity",
    "parity_top1_agreement": "parity",
    "latency_p50_ms": "p50|latency",
    "latency_p90_ms": "p90|latency",
    "latency_p99_ms": "p99|latency",
    "latency_ci_low_ms": "latency",
    "latency_ci_high_ms": "latency",
    "throughput_ips": "throughput|latency",
    "verdict": "verdict|latency",
    "precision_executed": "precision",
}
INT8 = ("student_int8.onnx", "onnxruntime")


def int8_row(inputs: Inputs) -> Row:
    return row_of(build_report(inputs).rows, *INT8)


def assert_nulls_are_explained(row: Row) -> None:
    notes = " ".join(row.notes)
    for key, value in row.entry().items():
        if (
            key not in ("batch", "target")
            and value is None
            and "not measured on this machine" not in notes
            and "accuracy not measured" not in notes
        ):
            assert any(subject in notes for subject in SUBJECTS[key].split("|")), (key, row.notes)


@pytest.fixture
def report(inputs: Inputs) -> Report:
    return build_report(inputs)


def test_every_row_has_exactly_the_flat_keys(report: Report) -> None:
    summary = report.summary()
    assert set(summary) == {"schema", "students", "teacher", "rows", "cascades", "recommended", "devices"}
    assert summary["schema"] == 3
    for row in summary["rows"]:
        assert set(row) == KEYS_OF_DESIGN | ADDED_KEYS
        assert not any(isinstance(row[key], dict | list) for key in set(row) - {"notes"})


def test_row_joins_manifest_accuracy_and_latency_of_one_file_and_runtime(report: Report) -> None:
    row = row_of(report.rows, *INT8)
    assert row.size_bytes == 97_861
    assert row.parity_top1_agreement == 0.9931
    assert row.top1 == pytest.approx(350 / 360)
    assert row.delta_top1_high_energy == 0
    assert row.latency_p50_ms == 0.298
    assert row.verdict == "stable"
    assert row.device == "Example CPU"
    assert row.notes == []


def test_parity_that_the_export_stage_did_not_measure_is_that_of_the_benchmark(inputs: Inputs) -> None:
    files = inputs.run.network("student").exported.files
    files[2] = changed(files[2], parity=changed(files[2].parity, runtime="tensorrt"))
    assert "parity not measured" in " ".join(int8_row(inputs).notes)
    evaluated = inputs.run.network("student").evaluation.rows[2]
    timed = changed(evaluated.accuracy, parity_max_abs=0.3, parity_top1_agreement=0.98)
    inputs.run.benchmark = with_rows(inputs.run.benchmark, lambda row: changed(row, accuracy=timed), INT8[0])
    row = int8_row(inputs)
    assert (row.parity_max_abs, row.parity_top1_agreement) == (0.3, 0.98)
    assert "parity" not in " ".join(row.notes)


@pytest.mark.parametrize(
    ("coverage", "top1", "notes"),
    [
        (1.0, 0.98, ["no energy threshold: all of its answers are 99 % right on the validation split"]),
        (
            0.0,
            None,
            [
                "no energy threshold: no share of its most certain answers is 99 % right on the validation split",
                "accuracy on the device not measured: no test image is kept there",
            ],
        ),
    ],
)
def test_missing_threshold_says_whether_all_or_none_is_kept(
    inputs: Inputs, coverage: float, top1: float | None, notes: list[str]
) -> None:
    student = inputs.run.network("student")
    routing = student.evaluation.rows[0].routing
    routing = changed(routing, energy=changed(routing.energy, threshold=None, coverage=coverage, top1=top1))
    student.evaluation = with_rows(student.evaluation, lambda row: changed(row, routing=routing))
    row = int8_row(inputs)
    assert (row.energy_threshold, row.on_device_coverage, row.on_device_top1) == (None, coverage, top1)
    assert row.notes == notes


def test_file_without_tensorrt_result_has_a_row_of_nulls_with_the_reason(report: Report) -> None:
    tensorrt = [row for row in report.rows if row.runtime == "tensorrt"]
    assert [row.name for row in tensorrt] == ["student_fp32.onnx", "student_fp16.onnx"]
    for row in tensorrt:
        given = {key for key, value in row.entry().items() if value is not None}
        known = {"name", "role", "student", "format", "precision", "runtime", "device", "size_bytes", "sha256"}
        assert given == known | {"notes"}
        assert row.notes == [
            "not measured on this machine: tensorrt is not installed; install it with `pip install tensorrt`"
        ]


def test_available_but_unused_tensorrt_is_said_to_be_so() -> None:
    row = row_of(build_report(build_inputs(tensorrt_unavailable=None)).rows, "student_fp32.onnx", "tensorrt")
    assert "TensorRT is not among evaluate.runtimes" in row.notes[0]


def test_measured_tensorrt_takes_the_place_of_the_row_of_nulls(inputs: Inputs) -> None:
    student = inputs.run.network("student")
    rows, answers = student.evaluation.rows, student.answers
    of_onnxruntime = answers.files["student_fp16.onnx", "onnxruntime"]
    student.answers = changed(answers, files={**answers.files, ("student_fp16.onnx", "tensorrt"): of_onnxruntime})
    evaluated = changed(next(row for row in rows if row.name == "student_fp16.onnx"), runtime="tensorrt")
    rows.append(evaluated)
    row = row_of(build_report(inputs).rows, "student_fp16.onnx", "tensorrt")
    assert row.top1 == evaluated.accuracy.top1
    assert row.latency_p50_ms is None
    assert "latency not measured: TensorRT is not among benchmark.runtimes" in row.notes
    assert "parity not measured in TensorRT: the export stage compared in ONNX Runtime" in row.notes
    assert_nulls_are_explained(row)


def test_unmeasured_percentile_keeps_the_reason_of_the_benchmark(report: Report) -> None:
    row = row_of(report.rows, "student_fp32.pt2", "torch")
    assert row.latency_p99_ms is None
    assert row.notes == ["p99 not measured: 540 samples, 662 needed", "latency noisy: round medians differ by 14%"]


@pytest.mark.parametrize(
    "key",
    ["latency_p50_ms", "latency_p90_ms", "latency_p99_ms", "latency_ci_low_ms", "throughput_ips", "verdict"],
)
def test_null_in_the_benchmark_without_a_reason_gets_one(inputs: Inputs, key: str) -> None:
    inputs.run.benchmark.rows[0] = changed(inputs.run.benchmark.rows[0], **{key: None})
    row = build_report(inputs).rows[0]
    assert getattr(row, key) is None
    assert_nulls_are_explained(row)


@pytest.mark.parametrize("group", ["low", "mid", "high"])
def test_energy_group_without_images_gets_a_reason(inputs: Inputs, group: str) -> None:
    keys = (f"top1_{group}_energy", f"delta_top1_{group}_energy")
    keys += (f"delta_{group}_energy_ci_low", f"delta_{group}_energy_ci_high")
    rows = inputs.run.network("student").evaluation.rows
    rows[0] = changed(rows[0], accuracy=changed(rows[0].accuracy, **dict.fromkeys(keys)))
    row = build_report(inputs).rows[0]
    assert getattr(row, keys[0]) is None
    assert_nulls_are_explained(row)


def test_file_that_was_not_evaluated_has_nulls_with_reasons(inputs: Inputs) -> None:
    del inputs.run.network("student").evaluation.rows[0]
    row = build_report(inputs).rows[0]
    assert row.top1 is None
    assert row.notes[0] == "accuracy not measured: ONNX Runtime is not among evaluate.runtimes"
    assert_nulls_are_explained(row)


def test_requested_precision_that_was_not_executed_is_noted(report: Report) -> None:
    row = row_of(report.rows, "student_fp16.onnx", "onnxruntime")
    assert row.precision_executed == "fp32"
    assert row.notes == ["fp16 not executed: ONNX Runtime ran fp32"]


def test_accuracy_and_latency_in_different_precisions_have_no_common_precision(inputs: Inputs) -> None:
    timed = inputs.run.benchmark
    inputs.run.benchmark = with_rows(timed, lambda row: changed(row, precision_executed="bf16"), "student_fp32.xml")
    report = build_report(inputs)
    row = row_of(report.rows, "student_fp32.xml", "openvino")
    assert row.precision_executed is None
    assert row.notes == ["executed precision not unique: accuracy in fp32, latency in bf16"]
    assert row.name in report.recommendation.broken


def test_counts_of_a_mixed_precision_may_differ_between_batch_sizes(inputs: Inputs) -> None:
    mixed = "mixed:int8=8,fp32=2"
    timed = inputs.run.benchmark
    inputs.run.benchmark = with_rows(timed, lambda row: changed(row, precision_executed=mixed), "student_int8.xml")
    row = row_of(build_report(inputs).rows, "student_int8.xml", "openvino")
    assert row.precision_executed == mixed


def test_file_that_failed_in_the_benchmark_keeps_its_accuracy(inputs: Inputs) -> None:
    row = inputs.run.benchmark.rows[2]
    unmeasured = [key for key in vars(row) if key.startswith(("latency", "throughput_", "verdict", "precision_"))]
    failed: dict[str, Any] = {"rounds": [], "error": "timed out.", "notes": ["latency not measured: timed out."]}
    inputs.run.benchmark.rows[2] = changed(row, **dict.fromkeys(unmeasured), **failed)
    found = int8_row(inputs)
    assert found.notes == ["latency not measured: timed out"]
    assert found.precision_executed == "int8"
    assert_nulls_are_explained(found)


def test_row_names_the_device_of_its_runtime(inputs: Inputs) -> None:
    inputs.run.benchmark.rows[2] = changed(inputs.run.benchmark.rows[2], device_name="Example GPU")
    assert int8_row(inputs).device == "Example GPU"


def test_networks_have_their_own_test_accuracy_and_the_difference_to_the_best_student() -> None:
    inputs = build_inputs("student", "wide")
    summary = build_report(inputs).summary()
    student, wide, teacher = summary["students"]["student"], summary["students"]["wide"], summary["teacher"]
    assert (student["top1"], wide["top1"], teacher["top1"]) == pytest.approx((351 / 360, 354 / 360, 355 / 360))
    assert (student["network"], teacher["network"]) == ("resnet8", "resnet20")
    assert student["weights_sha256"] == inputs.run.network("student").card.weights_sha256
    assert wide["difference_to_best_student"] is None, "it has the best validation top-1"
    difference = student["difference_to_best_student"]
    assert difference["value"] == pytest.approx(-3 / 360)
    assert difference["low"] < difference["value"] < difference["high"]


@pytest.mark.parametrize("order", [("wide", "student", "deep"), ("deep", "student", "wide")])
def test_of_students_of_equal_validation_top1_the_one_with_fewest_parameters_is_best(order: tuple[str, ...]) -> None:
    run = build_inputs(*order).run
    for student in run.students:
        student.card = changed(student.card, val_top1=0.98)
    assert best_student(run).name == "student"
    run.network("deep").card = changed(run.network("deep").card, parameters=run.network("student").card.parameters)
    assert best_student(run).name == "deep", "of equal sizes too, the first by name"


def test_rows_have_the_difference_to_the_reference_of_the_budget() -> None:
    inputs = build_inputs("student", "wide")
    row = row_of(build_report(inputs).rows, *INT8)
    assert row.delta_top1 == pytest.approx(-1 / 360)
    assert row.delta_reference == pytest.approx(-4 / 360)
    to_teacher = changed(inputs, budget=changed(inputs.budget, reference="teacher"))
    assert row_of(build_report(to_teacher).rows, *INT8).delta_reference == pytest.approx(-5 / 360)


def test_rows_of_a_long_tail_have_the_accuracy_of_frequent_and_rare_classes(inputs: Inputs) -> None:
    shots = {"top1_many_shot": 0.9, "top1_medium_shot": None, "top1_few_shot": 0.4}
    for network in inputs.run.networks:
        evaluation = with_rows(network.evaluation, lambda row: changed(row, shots=ShotAccuracy(**shots)))
        network.evaluation = changed(evaluation, shot_classes={"many": 5, "medium": 0, "few": 5})
    rows = build_report(inputs).summary()["rows"]
    measured = next(row for row in rows if (row["name"], row["runtime"]) == INT8)
    assert {key: measured[key] for key in shots} == shots
    assert measured["balanced_accuracy"] is not None
    assert "accuracy on medium-shot classes not measured: there is none" in measured["notes"]
    unmeasured = next(row for row in rows if row["runtime"] == "tensorrt")
    assert unmeasured["top1_few_shot"] is None
    assert set(unmeasured) == set(measured)


def test_metrics_are_numbers_of_the_recommended_file_and_of_each_student() -> None:
    metrics = build_report(build_inputs("student", "wide", "slim")).metrics()
    students = metrics.pop("students")
    assert all(isinstance(value, int | float) for value in metrics.values())
    assert metrics["recommended_size_mb"] == 0.209334
    assert metrics["recommended_latency_p50_ms"] == 0.374
    assert metrics["student_top1_high_energy"] == 65 / 72
    assert round(metrics["compression_ratio"], 2) == 5.27
    assert round(metrics["speedup"], 2) == 3.50
    assert {"teacher_top1", "student_top1", "recommended_top1"} <= metrics.keys()
    assert students["wide"]["size_mb"] == pytest.approx(0.303369)
    assert "size_mb" not in students["slim"], "none of its files is within the budget"
    assert students["slim"]["student_top1"] == pytest.approx(344 / 360)


def test_metric_that_was_not_measured_has_no_entry(inputs: Inputs) -> None:
    without(inputs.run, "teacher_fp32.onnx")
    metrics = build_report(inputs).metrics()
    assert "speedup" not in metrics
    assert metrics["student_top1"] == 351 / 360


def test_curves_are_a_row_for_each_epoch_of_each_network_and_begin_with_the_teacher() -> None:
    report = build_report(build_inputs("student", "wide"))
    curves = report.curves()
    assert {"epoch", "student", "val_top1", "train_loss"} == curves[0].keys()
    epochs = {name: [row["epoch"] for row in curves if row["student"] == name] for name in ("student", "wide")}
    assert epochs == {"student": list(range(1, 31)), "wide": list(range(1, 61))}
    assert (curves[0]["student"], curves[0]["epoch"]) == (TEACHER, 1)
    assert curves[-1]["val_top1"] == report.inputs.curves["wide"]["val_top1"].values[-1]


def test_nothing_is_recommended_outside_the_budget(inputs: Inputs) -> None:
    report = build_report(changed(inputs, budget=changed(inputs.budget, max_size_mb=0.001)))
    assert report.summary()["recommended"] is None
    assert not any(name.startswith("recommended") for name in report.metrics())
