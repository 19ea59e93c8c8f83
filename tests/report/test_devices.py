from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import BudgetParams
from pipeline.errors import DataError
from pipeline.report.build import Report, build_report
from pipeline.report.devices import Device, OnDevice, on_device, read_devices
from pipeline.store.documents import Measurement
from pipeline.store.json_files import write_json
from pipeline.store.paths import TARGET_INDEX
from tests.report.conftest import TEACHER, build_inputs, changed, device, device_result, row_of, with_rows

NO_LIMITS = dict.fromkeys(BudgetParams.model_fields) | {"choose": "smallest", "cascades": False}
NO_LIMITS |= {"reference": "best_student"}


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_device(text: str, listed: str | None = None) -> Path:
    """targets/board/result.json, listed in the index by its own hash or another."""
    path = Path("targets/board/result.json")
    path.parent.mkdir(parents=True)
    path.write_text(text)
    sha256 = hashlib.sha256(text.encode()).hexdigest() if listed is None else listed
    write_json(TARGET_INDEX, {"board": {"result_sha256": sha256, "budget": NO_LIMITS}})
    return path


def shown(found: Device, *students: str) -> OnDevice:
    """A device beside a run of these students, by default of one."""
    report = build_report(build_inputs(*students))
    return on_device(found, report.inputs.run, report.rows)


def on_board(measured: Measurement | None = None, **limits: Any) -> OnDevice:
    return shown(device("board", measured, **limits))


def entry_of(*arguments: Any, **limits: Any) -> dict[str, Any]:
    """The summary's entry of a device."""
    return on_board(*arguments, **limits).entry()


def with_board(*arguments: Any, **limits: Any) -> Report:
    return build_report(build_inputs(devices=[device("board", *arguments, **limits)]))


def test_rows_of_a_device_follow_those_of_this_machine_and_leave_them_as_they_are() -> None:
    alone = build_report(build_inputs())
    report = with_board(max_latency_p50_ms=0.001)
    rows = report.summary()["rows"]
    here = [row for row in rows if row["target"] is None]
    there = rows[len(here) :]
    assert here == alone.summary()["rows"]
    assert {row["target"] for row in there} == {"board"}
    assert [row["name"] for row in there] == [f"student_{p}.onnx" for p in ("fp32", "fp16", "int8")] + [
        "teacher_fp32.onnx"
    ]
    assert all(row.keys() == here[0].keys() for row in there)
    assert report.recommendation == alone.recommendation
    assert report.summary()["recommended"] == alone.summary()["recommended"]
    assert report.students == alone.students


def test_a_row_has_the_accuracy_parity_and_latency_of_the_device() -> None:
    row = row_of(on_board().rows, "student_int8.onnx", "onnxruntime")
    assert row.device == "Example Board"
    assert (row.images, row.top1) == (256, 248 / 256)
    assert row.delta_top1_high_energy == 0
    assert row.val_top1 == row_of(build_report(build_inputs()).rows, "student_int8.onnx", "onnxruntime").val_top1
    assert row.latency_p50_ms == pytest.approx(2.98)
    assert row.parity_max_abs == 5.1e-6
    assert "energy threshold not measured on the device: the stage evaluate sets it, on this machine" in row.notes


def test_the_smallest_file_within_the_devices_own_budget_is_recommended() -> None:
    assert entry_of()["recommended"]["name"] == "student_int8.onnx"
    entry = entry_of(max_top1_drop=0.001)
    assert entry["recommended"]["name"] == "student_fp32.onnx"
    assert entry["broken"] == {
        "student_int8.onnx": ["it loses 0.39 points of top-1 accuracy, 0.1 allowed (max_top1_drop)"]
    }
    assert entry["slower_than_fp32"] == {
        "student_fp16.onnx": ["in ONNX Runtime it takes 5.33 ms, the fp32 file 4.12"],
    }


def test_files_of_all_students_are_judged_on_the_images_that_were_sent() -> None:
    measured = device_result("student", "wide", TEACHER)
    found = shown(device("board", measured, max_top1_drop=0.001), "student", "wide")
    row = row_of(found.rows, "student_int8.onnx", "onnxruntime")
    wide = row_of(found.rows, "wide_fp32.onnx", "onnxruntime")
    assert wide.delta_reference == 0, "the reference is the torch network of the best student"
    assert row.correct is not None
    assert wide.correct is not None
    assert row.delta_reference == pytest.approx(row.correct.mean() - wide.correct.mean())
    assert found.recommendation.row is not None
    assert found.recommendation.row.student == "wide"


def test_a_budget_that_no_file_keeps_leaves_no_recommendation_and_names_each_limit() -> None:
    found = on_board(max_latency_p50_ms=0.5)
    entry = found.entry()
    assert entry["recommended"] is None
    assert entry["not_recommended"] == "each file breaks a limit of its budget"
    assert found.in_short() == "no file is recommended: each file breaks a limit of its budget"
    assert set(entry["broken"]) == {"student_fp32.onnx", "student_fp16.onnx", "student_int8.onnx"}
    assert entry["broken"]["student_int8.onnx"] == ["its p50 is 2.98 ms, 0.500 allowed (max_latency_p50_ms)"]


def test_an_emulated_device_is_shown_and_never_recommended_from(measured: Measurement) -> None:
    measured.machine["emulated"] = True
    entry = entry_of(measured)
    assert entry["emulated"] is True
    assert entry["recommended"] is None
    assert "it is emulated" in entry["not_recommended"]
    rows = [row for row in with_board(measured).summary()["rows"] if row["target"]]
    assert len(rows) == 4
    assert all("latency emulated: it does not predict the latency of a real processor" in row["notes"] for row in rows)


def test_results_of_older_files_are_left_out_with_the_command_that_makes_new_ones(measured: Measurement) -> None:
    entry = entry_of(with_rows(measured, lambda row: changed(row, sha256="0" * 64) if row.role == "student" else row))
    assert [row["name"] for row in entry["measurements"]] == ["teacher_fp32.onnx"]
    assert entry["recommended"] is None
    assert entry["notes"] == [
        "results of board belong to older files and are left out "
        "(student_fp32.onnx 000000000000, now e51a709177a5; student_fp16.onnx 000000000000, now "
        "f1db94072d46; student_int8.onnx 000000000000, now 6f710b6ed123); "
        "run `dvc repro targets/board/dvc.yaml`"
    ]


def test_what_was_noted_of_the_whole_run_and_changed_on_the_device_is_told(measured: Measurement) -> None:
    measured.notes.append("the wall clock was set back by 3 s meanwhile.")
    measured.tuning["changed"] = {"/sys/governor": ["ondemand", "performance"]}
    entry = entry_of(measured)
    assert entry["notes"] == ["the wall clock was set back by 3 s meanwhile"]
    assert entry["tuning"] == {"/sys/governor": ["ondemand", "performance"]}


def test_verdicts_are_counted_and_the_machine_has_no_more_than_is_asked_for(measured: Measurement) -> None:
    measured.machine["hostname"] = "secret-host"
    entry = entry_of(measured)
    assert entry["verdicts"] == {"stable": 3, "throttled": 1}
    assert entry["machine"]["board"] == "Example Board"
    assert "secret-host" not in json.dumps(entry)


def test_a_file_that_failed_on_the_device_says_why(measured: Measurement) -> None:
    row = measured.rows[2]
    reason = "the benchmark worker of student_int8.onnx-onnxruntime ended with exit code 3: numpy is missing."
    gone = [key for key in vars(row) if key.startswith(("latency", "throughput_ips", "precision_executed"))]
    gone += ["verdict", "accuracy", "cold", "memory", "sustained"]
    left = {"throughput": [], "rounds": [], "error": reason, "notes": [f"latency not measured: {reason}"]}
    measured.rows[2] = changed(row, **dict.fromkeys(gone), **left)
    found = on_board(measured)
    failed = row_of(found.rows, "student_int8.onnx", "onnxruntime")
    assert failed.top1 is None
    assert f"accuracy not measured: {reason}" in failed.notes
    assert "executed precision not measured: the file did not run" in failed.notes
    assert found.entry()["recommended"]["name"] == "student_fp32.onnx"


@pytest.mark.usefixtures("repository")
def test_a_listed_result_is_read(measured: Measurement) -> None:
    write_device(json.dumps(measured.content()))
    (found,) = read_devices()
    assert (found.name, found.measured) == ("board", measured)
    assert shown(found).in_short() == "deploy student_int8.onnx with onnxruntime"


@pytest.mark.usefixtures("repository")
def test_a_result_that_was_not_shown_is_left_out_with_the_command_that_shows_it(measured: Measurement) -> None:
    text = json.dumps(measured.content())
    write_device(text, listed="0" * 64)
    (found,) = read_devices()
    entry = shown(found).entry()
    assert entry["recommended"] is None
    now = hashlib.sha256(text.encode()).hexdigest()[:12]
    assert entry["notes"] == [
        f"the result of board has hash {now}, but the index has 000000000000, so it is left out; "
        "run `dvc repro targets/board/dvc.yaml`"
    ]


@pytest.mark.usefixtures("repository")
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"format": 3, "rows": [', "result.json is not readable as JSON"),
        ("[]", "result.json has format None, but this version reads 3"),
        ('{"format": 99}', "result.json has format 99, but this version reads 3"),
        ('{"format": 3}', "result.json is not what it should be (device is missing"),
        (None, "result.json does not exist, but targets/results.json lists board"),
    ],
)
def test_a_damaged_result_is_one_sentence_with_both_remedies(text: str | None, words: str) -> None:
    path = write_device(text or "{}")
    if text is None:
        path.unlink()
    with pytest.raises(DataError) as caught:
        read_devices()
    message = str(caught.value)
    assert words in message
    assert message.endswith("; run `dvc repro targets/board/dvc.yaml`, or remove board from targets/results.json")
    assert "\n" not in message


@pytest.mark.parametrize(
    "text",
    ["<<<<<<< HEAD", "[]", '{"board": "abc"}', '{"../x": {"result_sha256": "a", "budget": {}}}', None],
)
def test_a_damaged_index_is_one_sentence(repository: Path, text: str | None) -> None:
    (repository / "targets").mkdir()
    if text is not None:
        (repository / TARGET_INDEX).write_text(text)
    with pytest.raises(DataError, match=r"targets/results\.json .*; restore it with `git checkout"):
        read_devices()


def test_what_a_device_changed_and_set_may_be_any_json(measured: Measurement) -> None:
    odd = changed(measured, tuning={"changed": [1]}, settings={"images": "many"}, machine={"emulated": 0})
    assert json.dumps(entry_of(odd))
    assert asdict(on_board(changed(measured, tuning={})).rows[0])
