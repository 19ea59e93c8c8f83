from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.errors import LineageError
from pipeline.report import Inputs, Recommendation

Summarise = Callable[[Inputs], tuple[dict[str, Any], Recommendation]]

KEYS_OF_DESIGN = {
    *("name", "format", "precision", "precision_executed", "runtime", "device", "top1", "top1_low_energy"),
    *("top1_mid_energy", "top1_high_energy", "delta_top1", "delta_ci_low", "delta_ci_high", "parity_max_abs"),
    *("parity_top1_agreement", "latency_p50_ms", "latency_p90_ms", "latency_p99_ms", "throughput_ips", "verdict"),
    *("size_bytes", "sha256"),
}
ADDED_KEYS = {"role", "notes", "batch", "target", "images", "latency_ci_low_ms", "latency_ci_high_ms"}
ADDED_KEYS |= {"delta_top1_high_energy", "delta_high_energy_ci_low", "delta_high_energy_ci_high"}
ADDED_KEYS |= {"energy_threshold", "on_device_coverage", "on_device_top1"}
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


def row_of(summary: dict[str, Any], name: str, runtime: str) -> dict[str, Any]:
    (row,) = [row for row in summary["rows"] if (row["name"], row["runtime"]) == (name, runtime)]
    assert isinstance(row, dict)
    return row


def assert_nulls_are_explained(row: dict[str, Any]) -> None:
    notes = " ".join(row["notes"])
    for key, value in row.items():
        if (
            key not in ("batch", "target")
            and value is None
            and "not measured on this machine" not in notes
            and "accuracy not measured" not in notes
        ):
            assert any(subject in notes for subject in SUBJECTS[key].split("|")), (key, row["notes"])


def test_every_row_has_exactly_the_flat_keys(summarise: Summarise, inputs: Inputs) -> None:
    summary = summarise(inputs)[0]
    assert set(summary) == {"schema", "student", "teacher", "rows", "recommended", "devices"}
    assert summary["schema"] == 1
    for row in summary["rows"]:
        assert set(row) == KEYS_OF_DESIGN | ADDED_KEYS
        assert not any(isinstance(row[key], dict | list) for key in set(row) - {"notes"})


def test_row_joins_manifest_accuracy_and_latency_of_one_file_and_runtime(summarise: Summarise, inputs: Inputs) -> None:
    row = row_of(summarise(inputs)[0], "student_int8.onnx", "onnxruntime")
    assert row["size_bytes"] == 97_861
    assert row["parity_top1_agreement"] == 0.9931
    assert row["top1"] == pytest.approx(350 / 360)
    assert row["latency_p50_ms"] == 0.298
    assert row["verdict"] == "stable"
    assert row["device"] == "Example CPU"
    assert row["notes"] == []


def test_parity_that_the_export_stage_did_not_measure_is_that_of_the_benchmark(
    summarise: Summarise, inputs: Inputs
) -> None:
    entry = next(file for file in inputs.export["files"] if file["name"] == "student_int8.onnx")
    entry["parity"]["runtime"] = "tensorrt"
    timed = next(row for row in inputs.benchmark["rows"] if row["name"] == "student_int8.onnx")
    assert "parity not measured" in " ".join(row_of(summarise(inputs)[0], "student_int8.onnx", "onnxruntime")["notes"])
    timed["accuracy"] = {"parity_max_abs": 0.3, "parity_top1_agreement": 0.98}
    row = row_of(summarise(inputs)[0], "student_int8.onnx", "onnxruntime")
    assert (row["parity_max_abs"], row["parity_top1_agreement"]) == (0.3, 0.98)
    assert "parity" not in " ".join(row["notes"])


@pytest.mark.parametrize(
    ("coverage", "top1", "notes"),
    [
        (1.0, 0.98, ["no energy threshold: all of its answers are 99 % right on the validation split"]),
        (
            0.0,
            None,
            [
                "no energy threshold: no share of its surest answers is 99 % right on the validation split",
                "accuracy on the device not measured: no test image is kept there",
            ],
        ),
    ],
)
def test_missing_threshold_says_whether_all_or_none_is_kept(
    summarise: Summarise, inputs: Inputs, coverage: float, top1: float | None, notes: list[str]
) -> None:
    for row in inputs.evaluation["rows"]:
        row["routing"]["energy"].update(threshold=None, coverage=coverage, top1=top1)
    row = row_of(summarise(inputs)[0], "student_int8.onnx", "onnxruntime")
    assert (row["energy_threshold"], row["on_device_coverage"], row["on_device_top1"]) == (None, coverage, top1)
    assert row["notes"] == notes


def test_file_without_tensorrt_result_has_a_row_of_nulls_with_the_reason(summarise: Summarise, inputs: Inputs) -> None:
    summary = summarise(inputs)[0]
    tensorrt = [row for row in summary["rows"] if row["runtime"] == "tensorrt"]
    assert [row["name"] for row in tensorrt] == ["student_fp32.onnx", "student_fp16.onnx", "student_int8.onnx"]
    for row in tensorrt:
        given = {key for key, value in row.items() if value is not None}
        assert given == {"name", "role", "format", "precision", "runtime", "device", "size_bytes", "sha256", "notes"}
        assert row["notes"] == [
            "not measured on this machine: tensorrt is not installed; install it with `pip install tensorrt`"
        ]


def test_available_but_unused_tensorrt_is_said_to_be_so(
    summarise: Summarise, make_inputs: Callable[..., Inputs]
) -> None:
    row = row_of(summarise(make_inputs(tensorrt_unavailable=None))[0], "student_fp32.onnx", "tensorrt")
    assert "TensorRT is not among evaluate.runtimes" in row["notes"][0]


def test_measured_tensorrt_takes_the_place_of_the_row_of_nulls(summarise: Summarise, inputs: Inputs) -> None:
    evaluated = copy.deepcopy(inputs.evaluation["rows"][2]) | {"runtime": "tensorrt"}
    inputs.evaluation["rows"].append(evaluated)
    row = row_of(summarise(inputs)[0], "student_int8.onnx", "tensorrt")
    assert row["top1"] == evaluated["top1"]
    assert row["latency_p50_ms"] is None
    assert "latency not measured: TensorRT is not among benchmark.runtimes" in row["notes"]
    assert "parity not measured in TensorRT: the export stage compared in ONNX Runtime" in row["notes"]
    assert_nulls_are_explained(row)


def test_unmeasured_percentile_keeps_the_reason_of_the_benchmark(summarise: Summarise, inputs: Inputs) -> None:
    row = row_of(summarise(inputs)[0], "student_fp32.pt2", "torch")
    assert row["latency_p99_ms"] is None
    assert row["notes"] == ["p99 not measured: 540 samples, 662 needed", "latency noisy: round medians differ by 14%"]


@pytest.mark.parametrize(
    "key",
    ["latency_p50_ms", "latency_p90_ms", "latency_p99_ms", "latency_ci_low_ms", "throughput_ips", "verdict"],
)
def test_null_in_the_benchmark_without_a_reason_gets_one(summarise: Summarise, inputs: Inputs, key: str) -> None:
    inputs.benchmark["rows"][0][key] = None
    row = summarise(inputs)[0]["rows"][0]
    assert row[key] is None
    assert_nulls_are_explained(row)


@pytest.mark.parametrize("key", ["top1_low_energy", "top1_mid_energy", "top1_high_energy", "delta_ci_low"])
def test_null_in_the_evaluation_gets_a_reason(summarise: Summarise, inputs: Inputs, key: str) -> None:
    inputs.evaluation["rows"][0][key] = None
    assert_nulls_are_explained(summarise(inputs)[0]["rows"][0])


def test_file_that_was_not_evaluated_or_not_compared_has_nulls_with_reasons(
    summarise: Summarise, inputs: Inputs
) -> None:
    del inputs.evaluation["rows"][0]
    del inputs.export["files"][0]["parity"]
    row = summarise(inputs)[0]["rows"][0]
    assert row["top1"] is None
    assert row["parity_max_abs"] is None
    assert row["notes"][0] == "accuracy not measured: ONNX Runtime is not among evaluate.runtimes"
    assert_nulls_are_explained(row)


def test_requested_precision_that_was_not_executed_is_noted(summarise: Summarise, inputs: Inputs) -> None:
    row = row_of(summarise(inputs)[0], "student_fp16.onnx", "onnxruntime")
    assert row["precision_executed"] == "fp32"
    assert row["notes"] == ["fp16 not executed: ONNX Runtime ran fp32"]


def test_accuracy_and_latency_in_different_precisions_have_no_common_precision(
    summarise: Summarise, inputs: Inputs
) -> None:
    inputs.benchmark["rows"][3]["precision_executed"] = "bf16"
    summary, recommendation = summarise(inputs)
    row = row_of(summary, "student_fp32.xml", "openvino")
    assert row["precision_executed"] is None
    assert row["notes"] == ["executed precision not one: accuracy in fp32, latency in bf16"]
    assert row["name"] in recommendation.broken


def test_counts_of_a_mixed_precision_may_differ_between_batch_sizes(summarise: Summarise, inputs: Inputs) -> None:
    inputs.benchmark["rows"][5]["precision_executed"] = "mixed:int8=8,fp32=2"
    row = row_of(summarise(inputs)[0], "student_int8.xml", "openvino")
    assert row["precision_executed"] == "mixed:int8=8,fp32=2"


def test_file_that_failed_in_the_benchmark_keeps_its_accuracy(summarise: Summarise, inputs: Inputs) -> None:
    row = inputs.benchmark["rows"][2]
    row.update(dict.fromkeys([key for key in row if key.startswith(("latency", "throughput", "verdict", "precision"))]))
    row.update(rounds=[], samples=0, error="timed out.", notes=["latency not measured: timed out."], reasons=[])
    found = row_of(summarise(inputs)[0], "student_int8.onnx", "onnxruntime")
    assert found["notes"] == ["latency not measured: timed out"]
    assert found["precision_executed"] == "int8"
    assert_nulls_are_explained(found)


def test_row_names_the_device_of_its_runtime(summarise: Summarise, inputs: Inputs) -> None:
    inputs.benchmark["rows"][2]["device_name"] = "Example GPU"
    assert row_of(summarise(inputs)[0], "student_int8.onnx", "onnxruntime")["device"] == "Example GPU"


def test_networks_have_the_test_accuracy_of_their_reference_file(summarise: Summarise, inputs: Inputs) -> None:
    summary = summarise(inputs)[0]
    assert summary["student"]["top1"] == pytest.approx(351 / 360)
    assert summary["teacher"]["top1"] == pytest.approx(355 / 360)
    assert summary["teacher"]["network"] == "resnet20"
    assert summary["student"]["weights_sha256"] == inputs.student["weights_sha256"]


def test_teacher_that_was_not_exported_has_null_accuracy_with_a_note(summarise: Summarise, inputs: Inputs) -> None:
    inputs.export["files"].pop()
    inputs.evaluation["rows"].pop()
    inputs.benchmark["rows"].pop()
    teacher = summarise(inputs)[0]["teacher"]
    assert teacher["top1"] is None
    assert teacher["notes"] == ["test accuracy not measured: no file of this network was evaluated in fp32"]


@pytest.mark.parametrize("document", ["evaluation", "benchmark"])
def test_measurement_of_another_file_is_refused_with_both_hashes(
    summarise: Summarise, inputs: Inputs, document: str
) -> None:
    exported = inputs.export["files"][2]["sha256"]
    getattr(inputs, document)["rows"][2]["sha256"] = "f" * 64
    with pytest.raises(LineageError) as raised:
        summarise(inputs)
    assert "f" * 12 in str(raised.value)
    assert exported[:12] in str(raised.value)
    assert "student_int8.onnx" in str(raised.value)


def test_measurement_of_an_unknown_file_is_refused(summarise: Summarise, inputs: Inputs) -> None:
    inputs.benchmark["rows"][0]["name"] = "other.onnx"
    with pytest.raises(LineageError, match=r"other\.onnx, which the export manifest does not list"):
        summarise(inputs)


def test_rows_of_a_long_tail_have_the_accuracy_of_frequent_and_rare_classes(
    summarise: Summarise, inputs: Inputs
) -> None:
    shots = {"top1_many_shot": 0.9, "top1_medium_shot": None, "top1_few_shot": 0.4}
    inputs.evaluation["shot_classes"] = {"many": 5, "medium": 0, "few": 5}
    for row in inputs.evaluation["rows"]:
        row.update(shots)
    rows = summarise(inputs)[0]["rows"]
    measured = next(row for row in rows if row["name"] == "student_int8.onnx" and row["runtime"] == "onnxruntime")
    assert {key: measured[key] for key in shots} == shots
    assert measured["balanced_accuracy"] is not None
    assert "accuracy on medium-shot classes not measured: there is none" in measured["notes"]
    unmeasured = next(row for row in rows if row["runtime"] == "tensorrt")
    assert unmeasured["top1_few_shot"] is None
    assert set(unmeasured) == set(measured)
