from __future__ import annotations

import pytest

from pipeline.errors import DataError, LineageError, ParamsError
from pipeline.evaluation.runnable import check_available, runnable_files
from pipeline.lineage import Places, Run
from pipeline.runtimes import runtime_class
from pipeline.store.documents import ExportManifest
from tests.conftest import write_manifest

KEY = "params.yaml: evaluate.runtimes"


@pytest.fixture
def run(tmp_path):
    (tmp_path / "a.onnx").write_text("onnx")
    (tmp_path / "a.pt2").write_text("torch")
    write_manifest(tmp_path / "export.json", "a.onnx", "a.pt2")
    made = Run(Places(export=tmp_path))
    made.exported = ExportManifest.read(tmp_path / "export.json")  # what it was made from is not asked for here
    return made


def test_each_file_meets_the_runtimes_that_read_its_format(run, tmp_path):
    found = runnable_files(run, ["torch", "onnxruntime"], KEY)
    assert [each.name for each in found] == ["a.onnx-onnxruntime", "a.pt2-torch"]
    assert [each.path for each in found] == [tmp_path / "a.onnx", tmp_path / "a.pt2"]
    assert [each.name for each in runnable_files(run, ["tensorrt"], KEY)] == ["a.onnx-tensorrt"]


def test_int8_in_tensorrt_without_its_file_is_said(run, tmp_path, caplog):
    runnable_files(run, ["tensorrt"], KEY)
    assert not caplog.text
    write_manifest(tmp_path / "export.json", "a.onnx", precision="int8")
    run.exported = ExportManifest.read(tmp_path / "export.json")
    runnable_files(run, ["onnxruntime"], KEY)
    assert not caplog.text
    with pytest.raises(ParamsError, match="holds no file for it"):
        runnable_files(run, ["tensorrt"], KEY)
    assert "asks for tensorrt, but no int8 file is for it; export.tensorrt: true writes one" in caplog.text


def test_a_runtime_that_is_not_here_names_the_parameter(monkeypatch):
    monkeypatch.setattr(runtime_class("tensorrt"), "unavailable", staticmethod(lambda: "it is not installed."))
    with pytest.raises(
        ParamsError, match=r"^params\.yaml: benchmark\.runtimes asks for tensorrt: it is not installed; "
    ):
        check_available(["tensorrt"], "params.yaml: benchmark.runtimes")


def test_only_the_wanted_files_are_taken(run, tmp_path):
    assert [each.name for each in runnable_files(run, ["torch"], "k", ["a.pt2"])] == ["a.pt2-torch"]
    with pytest.raises(
        ParamsError, match=rf"^d\.yaml: files asks for b\.onnx; choose from the files in {tmp_path}: a\.onnx, a\.pt2$"
    ):
        runnable_files(run, ["torch"], "d.yaml: benchmark.runtimes", ["b.onnx"])


def test_a_runtime_without_a_file_names_the_parameter(run):
    with pytest.raises(ParamsError, match=r"evaluate\.runtimes asks for openvino, but .* holds no file for it"):
        runnable_files(run, ["openvino"], KEY)


def test_a_file_that_is_not_the_listed_one_is_never_loaded(run, tmp_path):
    (tmp_path / "a.pt2").write_text("something else")
    with pytest.raises(LineageError, match=r"a\.pt2 has hash \w{12}, but the export manifest lists it with \w{12}"):
        runnable_files(run, ["torch"], KEY)


def test_a_listed_file_that_is_missing_is_named(run, tmp_path):
    (tmp_path / "a.onnx").unlink()
    with pytest.raises(DataError, match=r"a\.onnx does not exist"):
        runnable_files(run, ["onnxruntime"], KEY)
