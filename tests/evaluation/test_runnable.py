from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import TEACHER
from pipeline.errors import DataError, LineageError, ParamsError
from pipeline.evaluation.runnable import check_available, runnable_files
from pipeline.lineage import NetworkRun, Run
from pipeline.runtimes import runtime_class
from pipeline.store.documents import ExportManifest
from pipeline.store.paths import MANIFEST
from tests.conftest import places_in, write_manifest

KEY = "params.yaml: evaluate.runtimes"


def listing(network: NetworkRun, *names: str, **changes: object) -> NetworkRun:
    """The network with these files; what they were made from is not asked for here."""
    folder = network.places.export
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(f"{network.name} {name}")
    write_manifest(folder / MANIFEST, *names, **changes)
    network.exported = ExportManifest.read(folder / MANIFEST)
    return network


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(places_in(tmp_path))


@pytest.fixture
def small(run) -> NetworkRun:
    return listing(run.network("small"), "small_fp32.onnx", "small_fp32.pt2")


@pytest.fixture
def teacher(run) -> NetworkRun:
    return listing(run.network(TEACHER), "teacher_fp32.onnx", role="teacher", student=None)


def folder_of(network: NetworkRun) -> Path:
    return network.places.export


def test_each_file_meets_the_runtimes_that_read_its_format(small):
    found = runnable_files([small], ["torch", "onnxruntime"], KEY)
    assert [each.name for each in found] == ["small_fp32.onnx-onnxruntime", "small_fp32.pt2-torch"]
    assert [each.path for each in found] == [folder_of(small) / name for name in ("small_fp32.onnx", "small_fp32.pt2")]
    assert [each.name for each in runnable_files([small], ["tensorrt"], KEY)] == ["small_fp32.onnx-tensorrt"]


def test_files_of_several_networks_keep_their_networks(run, small, teacher):
    large = listing(run.network("large"), "large_fp32.onnx")
    found = runnable_files([small, large, teacher], ["onnxruntime"], KEY)
    assert [(each.network, each.path) for each in found] == [
        (network, folder_of(network) / f"{network.name}_fp32.onnx") for network in (small, large, teacher)
    ]


def test_the_teacher_alone_need_not_have_a_file_for_a_runtime(run, small, teacher):
    assert runnable_files([teacher], ["torch"], KEY) == []
    assert [each.network for each in runnable_files([small, teacher], ["torch"], KEY)] == [small]
    assert runnable_files([listing(run.network(TEACHER))], ["onnxruntime"], KEY) == []
    with pytest.raises(ParamsError, match=r"evaluate\.runtimes asks for openvino, but no selected file is for it"):
        runnable_files([small, teacher], ["openvino"], KEY)


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
def test_int8_in_tensorrt_without_its_file_is_said(small, caplog, name):
    runnable_files([small], [name], KEY)
    assert not caplog.text
    listing(small, "small_int8.onnx", precision="int8")
    runnable_files([small], ["onnxruntime"], KEY)
    assert not caplog.text
    with pytest.raises(ParamsError, match="no selected file is for it"):
        runnable_files([small], [name], KEY)
    assert f"asks for {name}, but no int8 file is for it; export.tensorrt: true writes one" in caplog.text


def test_a_runtime_that_is_not_here_names_the_parameter(monkeypatch):
    monkeypatch.setattr(runtime_class("tensorrt"), "unavailable", staticmethod(lambda: "it is not installed."))
    with pytest.raises(
        ParamsError, match=r"^params\.yaml: benchmark\.runtimes asks for tensorrt: it is not installed; "
    ):
        check_available(["tensorrt"], "params.yaml: benchmark.runtimes")


def test_only_the_wanted_files_are_taken(small, teacher):
    found = runnable_files([small, teacher], ["torch"], "k", ["small_fp32.pt2"])
    assert [each.name for each in found] == ["small_fp32.pt2-torch"]
    names = r"small_fp32\.onnx, small_fp32\.pt2, teacher_fp32\.onnx"
    with pytest.raises(
        ParamsError, match=rf"^d\.yaml: files asks for b\.onnx; choose from the exported files: {names}$"
    ):
        runnable_files([small, teacher], ["torch"], "d.yaml: benchmark.runtimes", ["b.onnx"])


def test_a_file_that_is_not_the_listed_one_is_never_loaded(small):
    (folder_of(small) / "small_fp32.pt2").write_text("something else")
    with pytest.raises(
        LineageError, match=r"small_fp32\.pt2 has hash \w{12}, but the export manifest lists it with \w{12}; run `dvc"
    ):
        runnable_files([small], ["torch"], KEY)


def test_a_listed_file_that_is_missing_is_named(small):
    (folder_of(small) / "small_fp32.onnx").unlink()
    with pytest.raises(DataError, match=r"small_fp32\.onnx does not exist"):
        runnable_files([small], ["onnxruntime"], KEY)
