from __future__ import annotations

import pytest

from pipeline.artifacts import write_json
from pipeline.candidates import candidates
from pipeline.errors import ParamsError
from pipeline.runtimes import runtime_class


@pytest.fixture
def manifest(tmp_path):
    path = tmp_path / "export.json"
    write_json(path, {"files": [{"name": "a.onnx", "format": "onnx"}, {"name": "a.pt2", "format": "torch"}]})
    return path


def test_each_file_meets_the_runtimes_that_read_its_format(manifest):
    found = candidates(manifest, ["torch", "onnxruntime"], "evaluate.runtimes")
    assert [candidate.name for candidate in found] == ["a.onnx-onnxruntime", "a.pt2-torch"]
    assert found[0].path == manifest.parent / "a.onnx"


def test_tensorrt_reads_the_onnx_files(manifest, monkeypatch):
    monkeypatch.setattr(runtime_class("tensorrt"), "unavailable", staticmethod(lambda: None))
    assert [candidate.name for candidate in candidates(manifest, ["tensorrt"], "k")] == ["a.onnx-tensorrt"]


def test_a_runtime_that_is_not_here_names_the_parameter(manifest, monkeypatch):
    monkeypatch.setattr(runtime_class("tensorrt"), "unavailable", staticmethod(lambda: "it is not installed."))
    with pytest.raises(
        ParamsError, match=r"^params\.yaml: benchmark\.runtimes asks for tensorrt: it is not installed; "
    ):
        candidates(manifest, ["tensorrt"], "benchmark.runtimes")


def test_a_runtime_without_a_file_names_the_parameter(manifest):
    with pytest.raises(ParamsError, match=r"evaluate\.runtimes asks for openvino, but .* holds no file for it"):
        candidates(manifest, ["openvino"], "evaluate.runtimes")
