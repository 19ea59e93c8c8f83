"""The whole pipeline as a user runs it: `dvc repro` in a clone, with parameters small enough for a test."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.lineage import Places
from pipeline.training import checkpoint
from tests.conftest import ROOT, STUDENT, loss_params
from tests.e2e.conftest import SMALL, STAGES, STUDENTS, of
from tests.e2e.repository import (
    UP_TO_DATE,
    changed_stages,
    command,
    run_here,
    set_params,
    snapshot,
    stages_in,
    stages_run,
)

pytestmark = pytest.mark.e2e
THE_STUDENTS = Places().network(STUDENT)
DISTILL, EXPORT, EVALUATE = ({f"{stage}@{name}" for name in STUDENTS} for stage in ("distill", "export", "evaluate"))
# what decides no number
INFRASTRUCTURE = [
    *("pipeline/errors.py", "pipeline/config.py", "pipeline/store", "pipeline/portable", "pipeline/lineage.py"),
    *("pipeline/targets.py", "pipeline/report", "stages/common.py", "stages/environment_error.py"),
    *("stages/launcher.py", "stages/curves.py", "stages/output.py", "stages/progress.py", "stages/students.py"),
]


@pytest.fixture(scope="module")
def clone(finished) -> Path:
    return finished


def test_the_run_ends_in_a_summary_a_page_and_a_deploy_folder(clone):
    summary = json.loads((clone / "reports/summary.json").read_text())
    assert summary["schema"] == 3
    assert summary["recommended"]
    formats = {(row["format"], row["precision"], row["runtime"]) for row in summary["rows"] if row["top1"] is not None}
    assert {("onnx", "int8", "onnxruntime"), ("openvino", "int8", "openvino"), ("torch", "fp32", "torch")} <= formats
    measured = [row for row in summary["rows"] if row["top1"] is not None]
    assert all(row[f"top1_{shot}_shot"] is not None for row in measured for shot in ("many", "medium", "few"))
    assert 'id="long-tail"' in (clone / "reports/report.html").read_text()
    tensorrt = [row for row in summary["rows"] if row["runtime"] == "tensorrt"]
    assert tensorrt
    assert all(row["top1"] is None and "not measured on this machine" in row["notes"][0] for row in tensorrt)
    assert "not measured on this machine" in (clone / "reports/report.html").read_text()
    assert (clone / "artifacts/deploy/predict.py").exists()


def test_the_deployed_file_classifies_an_image_and_its_checksums_hold(clone, tmp_path):
    import numpy as np
    from PIL import Image

    deploy = clone / "artifacts/deploy"
    pixels = np.load(clone / "artifacts/data/test_images.npy")[0]
    Image.fromarray(pixels).save(tmp_path / "digit.png")
    answer = command(deploy, sys.executable, "predict.py", str(tmp_path / "digit.png")).stdout
    assert "digit.png" in answer
    command(deploy, "sha256sum", "--check", "SHA256SUMS")


def test_metrics_and_plots_are_shown_by_dvc(clone):
    metrics = json.loads(command(clone, "dvc", "metrics", "show", "--json").stdout)
    shown = metrics[""]["data"]["reports/metrics.json"]["data"]
    assert 0 <= shown["student_top1"] <= 1
    plots = json.loads(command(clone, "dvc", "plots", "show", "--json").stdout)["data"]
    assert set(plots) == {"learning curves", "training loss", "energy histogram"}
    for plot in plots.values():
        assert plot[0]["content"]["data"]["values"]


def test_a_second_repro_changes_nothing(clone):
    before = (clone / "dvc.lock").read_bytes()
    assert UP_TO_DATE in command(clone, "dvc", "repro").stdout
    assert (clone / "dvc.lock").read_bytes() == before


def add_comment(place: Path) -> None:
    """At the end of a file, or of each file of a package."""
    for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
        path.write_text(path.read_text() + "\n# a comment\n")


def copy_code(folder: Path) -> Path:
    """Copy the code that stages run into ``folder``, to change it there."""
    for name in ("models", "pipeline", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "dvc.yaml", folder)
    return folder


@contextlib.contextmanager
def edited(clone: Path, name: str) -> Iterator[None]:
    """A comment more in a file or package of the clone."""
    place = clone / name
    files = {path: path.read_text() for path in ([place] if place.is_file() else place.rglob("*.py"))}
    add_comment(place)
    try:
        yield
    finally:
        for path, text in files.items():
            path.write_text(text)


@pytest.mark.parametrize("name", INFRASTRUCTURE)
def test_a_comment_in_code_that_decides_no_number_changes_no_training_and_no_file(clone, name):
    with edited(clone, name):
        assert not changed_stages(clone) & {"prepare", "train_teacher", "score_energy", *DISTILL, *EXPORT}


@pytest.mark.parametrize(
    ("name", "changed", "first"),
    [
        ("pipeline/distillation/losses/dkd.py", DISTILL, f"distill@{STUDENT}"),
        ("pipeline/export/int8/quantize.py", EXPORT | {"export_teacher"}, f"export@{STUDENT}"),
        ("pipeline/energy/groups.py", None, "score_energy"),
        ("pipeline/training/optimizer.py", None, "train_teacher"),
        ("pipeline/data/store.py", None, "prepare"),
    ],
)
def test_a_comment_in_code_that_decides_numbers_changes_its_stage_and_none_before(clone, name, changed, first):
    with edited(clone, name):
        found = changed_stages(clone)
    assert min(found, key=STAGES.index) == first
    assert changed is None or found == changed


def test_a_parameter_of_a_loss_that_is_not_in_use_changes_nothing(clone):
    params = clone / "params.yaml"
    text = params.read_text()
    (unused,) = re.findall(r"^ *# \{name: dkd, .*\}$", text, re.MULTILINE)
    params.write_text(text.replace(unused, unused.replace("beta: 8", "beta: 2")))
    assert params.read_text() != text
    assert changed_stages(clone) == set()
    set_params(clone, {"distill.loss": loss_params("dkd").model_dump()})
    assert changed_stages(clone) == DISTILL
    params.write_text(text)


def test_a_temperature_reruns_distill_and_going_back_restores_the_student(clone):
    weights = clone / THE_STUDENTS.weights / "weights.safetensors"
    before = weights.read_bytes()
    set_params(clone, {"distill.temperatures.high_energy": 3.0})
    assert changed_stages(clone) == DISTILL
    assert stages_run(clone, f"distill@{STUDENT}") == [f"distill@{STUDENT}"]
    assert weights.read_bytes() != before
    followers = {*of(STUDENT)[1:], "benchmark", "report"}
    assert changed_stages(clone) == followers | DISTILL - {f"distill@{STUDENT}"}
    set_params(clone, {"distill.temperatures.high_energy": 2.0})
    output = command(clone, "dvc", "repro", "distill").stdout
    assert f"Stage 'distill@{STUDENT}' is cached" in output
    assert stages_in(output) == []
    assert weights.read_bytes() == before
    assert changed_stages(clone) == set()


@pytest.mark.parametrize("name", INFRASTRUCTURE)
def test_a_killed_training_goes_on_after_such_a_comment(code, tmp_path, monkeypatch, name):
    monkeypatch.setattr(checkpoint, "_CODE", code)
    for stage in ("train_teacher", "score_energy", "distill"):
        before = checkpoint.code_hash(stage)
        add_comment(code / name)
        assert checkpoint.code_hash(stage) == before


@pytest.mark.parametrize(
    ("name", "again"),
    [
        ("pipeline/distillation/losses/kd.py", {"distill"}),
        ("pipeline/energy/groups.py", {"score_energy", "distill"}),
        ("pipeline/training/loop.py", {"train_teacher", "score_energy", "distill"}),
    ],
)
def test_a_killed_training_begins_anew_after_a_comment_in_code_that_decides_its_numbers(
    code, tmp_path, monkeypatch, name, again
):
    monkeypatch.setattr(checkpoint, "_CODE", code)
    before = {stage: checkpoint.code_hash(stage) for stage in ("train_teacher", "score_energy", "distill")}
    add_comment(code / name)
    assert {stage for stage, found in before.items() if checkpoint.code_hash(stage) != found} == again


@pytest.fixture
def code(tmp_path) -> Path:
    return copy_code(tmp_path)


def test_a_device_is_measured_by_its_own_pipeline_and_the_root_report_shows_it(clone):
    def ran() -> list[str]:
        return stages_run(clone, device)

    device = "targets/here/dvc.yaml"
    command(clone, sys.executable, "-m", "stages.target", "here", "local")
    benchmark = {key: value for key, value in SMALL.items() if key.startswith("benchmark.")}
    files = [f"{STUDENT}_fp32.onnx", f"{STUDENT}_int8.onnx"]
    settings = benchmark | {"files": files, "benchmark.images": 64, "benchmark.sustained_minutes": 0}
    set_params(clone, settings, "targets/here/device.yaml")
    recommended = json.loads((clone / "reports/summary.json").read_text())["recommended"]
    assert ran() == [f"{device}:measure", f"{device}:show", "report"]
    summary = json.loads((clone / "reports/summary.json").read_text())
    (entry,) = summary["devices"]
    rows = [row for row in summary["rows"] if row["target"] == "here"]
    assert entry["name"] == "here"
    assert {row["name"] for row in rows} == {*files}
    assert all(row["images"] == 64 and row["latency_p50_ms"] is not None for row in rows)
    assert summary["recommended"] == recommended
    assert 'id="device-here"' in (clone / "reports/report.html").read_text()
    assert changed_stages(clone) == set()

    result = (clone / "targets/here/result.json").read_bytes()
    set_params(clone, {"address.python": "/nowhere/python3"}, "targets/here/device.yaml")
    failed = command(clone, "dvc", "repro", device, check=False)
    assert failed.returncode != 0
    assert "error: this machine has no program /nowhere/python3" in failed.stderr
    assert (clone / "targets/here/result.json").read_bytes() == result
    assert UP_TO_DATE in command(clone, "dvc", "repro").stdout, "no device is needed here"
    set_params(clone, {"address.python": None}, "targets/here/device.yaml")

    set_params(clone, {"budget.max_latency_p50_ms": 1e-6}, "targets/here/device.yaml")
    assert ran() == [f"{device}:show", "report"], "a budget is no reason to measure again"
    (entry,) = json.loads((clone / "reports/summary.json").read_text())["devices"]
    assert entry["recommended"] is None
    assert set(entry["broken"]) == {row["name"] for row in rows}


def test_a_benchmark_parameter_reruns_benchmark_and_report_only(clone):
    set_params(clone, {"benchmark.min_count": 41})
    assert stages_run(clone) == ["benchmark", "report"]


def test_no_file_within_the_budget_is_exit_code_2_with_the_broken_limits(clone):
    set_params(clone, {"budget.max_size_mb": 1e-6})
    said = run_here(clone, "report", expected=2)
    set_params(clone, {"budget.max_size_mb": None})
    assert said.startswith("error: ")
    assert "student_int8.onnx" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(("stage", "network"), [("evaluate", [STUDENT]), ("benchmark", [])])
def test_a_truncated_file_is_named_and_not_measured(clone, stage, network):
    path = clone / THE_STUDENTS.export / "student_int8.onnx"
    whole, before = path.read_bytes(), snapshot(clone)
    path.unlink()  # it may be a link into the cache
    path.write_bytes(whole[:-100])
    said = run_here(clone, stage, *network, expected=2)
    path.write_bytes(whole)
    assert said.startswith(f"error: {THE_STUDENTS.export}/student_int8.onnx has hash ")
    assert said.count("\n") == 1
    assert snapshot(clone) == before


def test_a_student_whose_weights_are_not_numbers_is_not_exported(clone):
    from safetensors.torch import load_file, save_file

    folder, before = clone / THE_STUDENTS.weights, snapshot(clone)
    weights, card = folder / "weights.safetensors", folder / "card.json"
    tensors = load_file(weights)
    tensors["fc.weight"].fill_(float("nan"))
    save_file(tensors, folder / "broken.safetensors")
    (folder / "broken.safetensors").replace(weights)
    content = json.loads(card.read_text())
    card.unlink()
    card.write_text(json.dumps(content | {"weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}))
    said = run_here(clone, "export", STUDENT, expected=2)
    for name in (weights, card):
        name.write_bytes(before[name.relative_to(clone).as_posix()])
    words = f"error: {THE_STUDENTS.weights}/weights.safetensors has values of fc.weight that are not finite"
    assert words in said
    assert snapshot(clone) == before


@pytest.mark.parametrize(("stage", "network"), [("evaluate", [STUDENT]), ("benchmark", [])])
def test_tensorrt_asked_for_without_it_is_one_sentence_and_exit_code_2(clone, stage, network):
    import importlib.util

    if importlib.util.find_spec("tensorrt"):
        pytest.skip("TensorRT is installed here")
    params, before = clone / "params.yaml", snapshot(clone)
    text = params.read_text()
    set_params(clone, {f"{stage}.runtimes": ["onnxruntime", "tensorrt"]})
    said = run_here(clone, stage, *network, expected=2)
    params.write_text(text)
    assert said.count("\n") == 1
    assert "tensorrt" in said
    assert snapshot(clone) == before
