from __future__ import annotations

import pytest

from pipeline.errors import DataError, LineageError, ParamsError
from pipeline.evaluation.candidates import candidates, check_available
from pipeline.runtimes import runtime_class
from tests.conftest import write_manifest


@pytest.fixture
def manifest(tmp_path):
    (tmp_path / "a.onnx").write_text("onnx")
    (tmp_path / "a.pt2").write_text("torch")
    write_manifest(tmp_path / "export.json", "a.onnx", "a.pt2")
    return tmp_path / "export.json"


def test_each_file_meets_the_runtimes_that_read_its_format(manifest):
    found = candidates(manifest, ["torch", "onnxruntime"], "params.yaml: evaluate.runtimes")
    assert [candidate.name for candidate in found] == ["a.onnx-onnxruntime", "a.pt2-torch"]
    assert found[0].path == manifest.parent / "a.onnx"


def test_tensorrt_reads_the_onnx_files(manifest):
    assert [candidate.name for candidate in candidates(manifest, ["tensorrt"], "params.yaml: k")] == ["a.onnx-tensorrt"]


def test_a_runtime_that_is_not_here_names_the_parameter(manifest, monkeypatch):
    monkeypatch.setattr(runtime_class("tensorrt"), "unavailable", staticmethod(lambda: "it is not installed."))
    with pytest.raises(
        ParamsError, match=r"^params\.yaml: benchmark\.runtimes asks for tensorrt: it is not installed; "
    ):
        check_available(["tensorrt"], "params.yaml: benchmark.runtimes")


def test_only_the_wanted_files_are_taken(manifest):
    assert [candidate.name for candidate in candidates(manifest, ["torch"], "k", ["a.pt2"])] == ["a.pt2-torch"]
    with pytest.raises(
        ParamsError, match=r"^d\.yaml: files asks for b\.onnx; choose of .*export\.json: a\.onnx, a\.pt2"
    ):
        candidates(manifest, ["torch"], "d.yaml: benchmark.runtimes", ["b.onnx"])


def test_a_runtime_without_a_file_names_the_parameter(manifest):
    with pytest.raises(ParamsError, match=r"evaluate\.runtimes asks for openvino, but .* holds no file for it"):
        candidates(manifest, ["openvino"], "params.yaml: evaluate.runtimes")


def test_a_file_that_is_not_the_listed_one_is_never_loaded(manifest):
    (manifest.parent / "a.pt2").write_text("something else")
    with pytest.raises(LineageError, match=r"a\.pt2 has hash \w{12}, but .*export\.json lists it with \w{12}"):
        candidates(manifest, ["torch"], "params.yaml: evaluate.runtimes")


def test_a_listed_file_that_is_missing_is_named(manifest):
    (manifest.parent / "a.onnx").unlink()
    with pytest.raises(DataError, match=r"a\.onnx does not exist"):
        candidates(manifest, ["onnxruntime"], "params.yaml: evaluate.runtimes")
