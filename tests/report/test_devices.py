from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import BudgetParams
from pipeline.errors import DataError
from pipeline.report import Device, Inputs, Recommendation, on_device
from pipeline.report.devices import read_devices
from pipeline.report.rows import ROW_KEYS
from pipeline.store.tables import write_json

Summarise = Callable[[Inputs], tuple[dict[str, Any], Recommendation]]
NO_LIMITS = dict.fromkeys(BudgetParams.model_fields)


def write_device(root: Path, text: str, listed: str | None = None) -> Path:
    """targets/board/result.json, listed in the index by its own hash or another."""
    path = root / "targets/board/result.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    sha256 = hashlib.sha256(text.encode()).hexdigest() if listed is None else listed
    write_json(root / "targets/results.json", {"board": {"result_sha256": sha256, "budget": NO_LIMITS}})
    return path


@pytest.fixture
def on_board(make_device: Callable[..., Device], inputs: Inputs) -> Callable[..., dict[str, Any]]:
    """The summary's entry of a device."""
    return lambda *arguments, **limits: on_device(make_device(*arguments, **limits), inputs.export["files"]).entry


def test_rows_of_a_device_follow_those_of_this_machine_and_leave_them_as_they_are(
    summarise: Summarise, make_inputs: Callable[..., Inputs], make_device: Callable[..., Device]
) -> None:
    alone = summarise(make_inputs())
    summary, recommendation = summarise(make_inputs(devices=[make_device(max_latency_p50_ms=0.001)]))
    here = [row for row in summary["rows"] if row["target"] is None]
    there = summary["rows"][len(here) :]
    assert here == alone[0]["rows"]
    assert {row["target"] for row in there} == {"board"}
    assert [row["name"] for row in there] == [f"student_{p}.onnx" for p in ("fp32", "fp16", "int8")] + [
        "teacher_fp32.onnx"
    ]
    assert all(tuple(row) == ROW_KEYS for row in there)
    assert recommendation == alone[1]
    assert summary["recommended"] == alone[0]["recommended"]
    assert summary["student"] == alone[0]["student"]


def test_a_row_has_the_accuracy_parity_and_latency_of_the_device(
    summarise: Summarise, make_inputs: Callable[..., Inputs], make_device: Callable[..., Device]
) -> None:
    summary = summarise(make_inputs(devices=[make_device()]))[0]
    (row,) = [row for row in summary["rows"] if row["target"] and row["name"] == "student_int8.onnx"]
    assert row["device"] == "Example Board"
    assert (row["images"], row["top1"]) == (256, 246 / 256)
    assert row["latency_p50_ms"] == pytest.approx(2.98)
    assert row["parity_max_abs"] == 5.1e-6
    assert "energy threshold not measured on the device: the stage evaluate sets it, on this machine" in row["notes"]


def test_the_smallest_file_within_the_devices_own_budget_is_recommended(on_board: Callable[..., Any]) -> None:
    assert on_board()["recommended"]["name"] == "student_int8.onnx"
    entry = on_board(max_top1_drop=0.001)
    assert entry["recommended"]["name"] == "student_fp32.onnx"
    assert entry["broken"] == {
        "student_int8.onnx": ["it loses 0.39 points of top-1 accuracy, 0.1 allowed (max_top1_drop)"]
    }
    assert entry["unprofitable"] == {
        "student_fp16.onnx": ["in ONNX Runtime it takes 5.33 ms, the fp32 file 4.12"],
    }


def test_a_budget_that_no_file_keeps_leaves_no_recommendation_and_names_each_limit(
    on_board: Callable[..., Any],
) -> None:
    entry = on_board(max_latency_p50_ms=0.5)
    assert entry["recommended"] is None
    assert entry["not_recommended"] == "each file breaks a limit of its budget"
    assert set(entry["broken"]) == {"student_fp32.onnx", "student_fp16.onnx", "student_int8.onnx"}
    assert entry["broken"]["student_int8.onnx"] == ["its p50 is 2.98 ms of 0.500 (max_latency_p50_ms)"]


def test_an_emulated_device_is_shown_and_never_recommended_from(
    on_board: Callable[..., Any],
    summarise: Summarise,
    make_inputs: Callable[..., Inputs],
    make_device: Callable[..., Device],
    measured: dict[str, Any],
) -> None:
    measured["machine"]["emulated"] = True
    entry = on_board("board", measured)
    assert entry["emulated"] is True
    assert entry["recommended"] is None
    assert "it is emulated" in entry["not_recommended"]
    summary = summarise(make_inputs(devices=[make_device("board", measured)]))[0]
    rows = [row for row in summary["rows"] if row["target"]]
    assert len(rows) == 4
    assert all("latency emulated: it says nothing about a real processor" in row["notes"] for row in rows)


def test_results_of_older_files_are_left_out_with_the_command_that_makes_new_ones(
    on_board: Callable[..., Any], measured: dict[str, Any]
) -> None:
    for row in measured["rows"]:
        if row["role"] == "student":
            row["sha256"] = "0" * 64
    entry = on_board("board", measured)
    assert [row["name"] for row in entry["measurements"]] == ["teacher_fp32.onnx"]
    assert entry["recommended"] is None
    assert entry["notes"] == [
        "results of board that belong to older files are left out "
        "(student_fp32.onnx 000000000000, which now is e51a709177a5; student_fp16.onnx 000000000000, which now is "
        "f1db94072d46; student_int8.onnx 000000000000, which now is 6f710b6ed123); "
        "run `dvc repro targets/board/dvc.yaml`"
    ]


def test_what_was_noted_of_the_whole_run_and_changed_on_the_device_is_told(
    on_board: Callable[..., Any], measured: dict[str, Any]
) -> None:
    measured["notes"] = ["the wall clock was set back by 3 s meanwhile."]
    measured["tuning"]["changed"] = {"/sys/governor": ["ondemand", "performance"]}
    entry = on_board("board", measured)
    assert entry["notes"] == ["the wall clock was set back by 3 s meanwhile"]
    assert entry["tuning"] == {"/sys/governor": ["ondemand", "performance"]}


def test_verdicts_are_counted_and_the_provenance_has_no_more_than_is_asked_for(
    on_board: Callable[..., Any], measured: dict[str, Any]
) -> None:
    measured["machine"]["hostname"] = "secret-host"
    entry = on_board("board", measured)
    assert entry["verdicts"] == {"stable": 3, "throttled": 1}
    assert entry["provenance"]["board"] == "Example Board"
    assert "secret-host" not in json.dumps(entry)


def test_a_file_that_failed_on_the_device_says_why(
    summarise: Summarise,
    make_inputs: Callable[..., Inputs],
    make_device: Callable[..., Device],
    measured: dict[str, Any],
) -> None:
    failed = measured["rows"][2]
    reason = "the benchmark worker of student_int8.onnx-onnxruntime ended with exit code 3: numpy is missing."
    for key in [key for key in failed if key.startswith(("latency", "throughput_ips", "precision_executed"))]:
        failed[key] = None
    failed.update(verdict=None, accuracy=None, cold=None, memory=None, sustained=None, throughput=[], rounds=[])
    failed.update(error=reason, notes=[f"latency not measured: {reason}"])
    summary = summarise(make_inputs(devices=[make_device("board", measured)]))[0]
    (row,) = [row for row in summary["rows"] if row["target"] and row["name"] == "student_int8.onnx"]
    assert row["top1"] is None
    assert f"accuracy not measured: {reason}" in row["notes"]
    assert "executed precision not measured: the file did not run" in row["notes"]
    assert summary["devices"][0]["recommended"]["name"] == "student_fp32.onnx"


def test_a_listed_result_is_read(tmp_path: Path, measured: dict[str, Any]) -> None:
    write_device(tmp_path, json.dumps(measured))
    (found,) = read_devices(tmp_path)
    assert (found.name, found.measured) == ("board", measured)


def test_a_result_that_was_not_shown_is_left_out_with_the_command_that_shows_it(
    tmp_path: Path, inputs: Inputs, measured: dict[str, Any]
) -> None:
    write_device(tmp_path, json.dumps(measured), listed="0" * 64)
    (found,) = read_devices(tmp_path)
    entry = on_device(found, inputs.export["files"]).entry
    assert entry["recommended"] is None
    now = hashlib.sha256(json.dumps(measured).encode()).hexdigest()[:12]
    assert entry["notes"] == [
        f"the result of board has hash {now}, but the one that was shown last has 000000000000, so it is left out; "
        "run `dvc repro targets/board/dvc.yaml`"
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"schema": 1, "rows": [', "result.json is not readable as JSON"),
        ("[]", "result.json is not a result that this version reads"),
        ('{"schema": 99}', "result.json is not a result that this version reads"),
        (None, "result.json does not exist, but targets/results.json lists board"),
    ],
)
def test_a_damaged_result_is_one_sentence_with_both_remedies(tmp_path: Path, text: str | None, words: str) -> None:
    path = write_device(tmp_path, text or "{}")
    if text is None:
        path.unlink()
    with pytest.raises(DataError) as caught:
        read_devices(tmp_path)
    message = str(caught.value)
    assert words in message
    assert message.endswith("; run `dvc repro targets/board/dvc.yaml`, or remove board from targets/results.json")
    assert "\n" not in message


@pytest.mark.parametrize(
    "text",
    ["<<<<<<< HEAD", "[]", '{"board": "abc"}', '{"../x": {"result_sha256": "a", "budget": {}}}', None],
)
def test_a_damaged_index_is_one_sentence(tmp_path: Path, text: str | None) -> None:
    (tmp_path / "targets").mkdir()
    if text is not None:
        (tmp_path / "targets/results.json").write_text(text)
    with pytest.raises(DataError, match=r"targets/results\.json .*; restore it with `git checkout"):
        read_devices(tmp_path)
