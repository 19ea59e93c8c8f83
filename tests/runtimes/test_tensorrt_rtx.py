"""Exported files in NVIDIA's own parser and builder: TensorRT for RTX plans engines ahead of time, without a GPU.

The wheels are fetched when the tests run, for NVIDIA's licence allows no copy; without them the tests are skipped.
Whether an engine is right or fast, only a GPU can show.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from bench.tensorrt_plans import NETWORKS, source, write_files
from pipeline.config import Params
from pipeline.export.structure import inspect
from pipeline.runtimes.cuda_driver import device_problem
from tests.conftest import ROOT, made_once
from tests.runtimes.tensorrt_bindings import MissingPartError, install

WHEELS = ("tensorrt-rtx-cu12-bindings==1.7.1.116", "tensorrt-rtx-cu12-libs==1.7.1.116")
# what NVIDIA's package tensorrt-rtx-cu12 has beside the two, which is no wheel
PACKAGE = "from tensorrt_rtx_bindings import *\nfrom tensorrt_rtx_bindings import __version__\n"
# the plan of each file, or why there is none
PLANS = """
import json, sys
from pathlib import Path
from pipeline.runtimes import RuntimesError
from pipeline.runtimes.tensorrt_rtx_runtime import TensorRtRtxRuntime

for path, precision in zip(sys.argv[1::2], sys.argv[2::2]):
    try:
        print(json.dumps(TensorRtRtxRuntime.plan(Path(path), precision=precision).detail))
    except RuntimesError as error:
        print(json.dumps({"error": str(error)}))
"""
# the plans of a file for GPUs of some kinds
TARGETS = """
import json, sys
from pathlib import Path
import tensorrt_rtx
from bench.tensorrt_plans import plan

for target in sys.argv[2:]:
    print(json.dumps(plan(tensorrt_rtx, Path(sys.argv[1]), target)))
"""


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the wheels are installed in."""

    def fetch(folder: Path) -> None:
        try:
            install(folder, *WHEELS)
            (folder / "tensorrt_rtx.py").write_text(PACKAGE, encoding="utf-8")
        except MissingPartError as error:
            (folder / "missing").write_text(str(error), encoding="utf-8")

    found = made_once(tmp_path_factory, "tensorrt_rtx", fetch)
    if (missing := found / "missing").exists():
        pytest.skip(f"nothing built with TensorRT for RTX: {missing.read_text(encoding='utf-8')}")
    return found


def python(packages: Path, *arguments: object) -> str:
    """What Python says beside the packages."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(packages), str(ROOT)))}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def objects(lines: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.splitlines()]


def quantised(path: Path) -> int:
    """Number of convolutions and matrix products in a file that compute with bytes."""
    structure = inspect(onnx.load(path))
    return structure.count - len(structure.fp32_layers)


@pytest.mark.parametrize(("name", "size"), NETWORKS)
def test_every_layer_of_an_engine_computes_in_the_precision_of_its_file(
    packages: Path, params: Params, tmp_path: Path, name: str, size: int
) -> None:
    paths = write_files(source(name, size, params), tmp_path)
    words = [word for precision, path in paths.items() for word in (path, precision)]
    for precision, found in zip(paths, objects(python(packages, "-c", PLANS, *words)), strict=True):
        assert found["layers_not_judged"] == []
        layers = Counter(found["compute_layers"].values())
        if precision == "int8":
            assert layers["int8"] == quantised(paths["int8"])
            assert set(layers) <= {"int8", "fp32"}
        else:
            assert set(layers) == {precision}


def model(path: Path, operator: str, shape: list[Any], **of_node: Any) -> None:
    """A file with one operator between an input and an output of this shape."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("input", "logits")]
    node = helper.make_node(operator, ["input"], ["logits"], **of_node)
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:]), opset_imports=opset), path)


def test_files_without_a_network_for_images_are_refused_in_one_sentence(packages: Path, tmp_path: Path) -> None:
    cases = {
        "empty": "it has 0 inputs and 0 outputs",
        "text": "it has 0 inputs and 0 outputs",
        "cut": "Failed to parse the ONNX model",
        "scalar": "its input has 0 axes, not 4",
        "row": "its input has 1 axes, not 4",
        "open": "leaves the image size open",
        "unknown": "node odd, operator NoSuchOperator",
    }
    paths = {name: tmp_path / f"{name}.onnx" for name in cases}
    paths["empty"].touch()
    paths["text"].write_text("hello world\n", encoding="utf-8")
    model(paths["scalar"], "Relu", [])
    model(paths["row"], "Relu", ["batch"])
    model(paths["open"], "Relu", ["batch", 3, "height", "width"])
    model(paths["unknown"], "NoSuchOperator", [1, 3, 4, 4], name="odd")
    paths["cut"].write_bytes(paths["unknown"].read_bytes()[:-9])
    words = [word for path in paths.values() for word in (path, "fp32")]
    for (name, reason), found in zip(cases.items(), objects(python(packages, "-c", PLANS, *words)), strict=True):
        assert reason in found["error"]
        assert str(paths[name]) in found["error"]


def test_an_engine_can_be_built_for_one_kind_of_gpu(packages: Path, params: Params, tmp_path: Path) -> None:
    path = write_files(source("resnet8", 32, params), tmp_path)["fp32"]
    turing, ada, blackwell = objects(python(packages, "-c", TARGETS, path, "SM75", "SM89", "SM120"))
    assert set(ada["compute"]) == set(blackwell["compute"]) == {"fp32"}
    assert "FP32" in turing["error"]


def test_a_plan_of_another_precision_is_refused(packages: Path, params: Params, tmp_path: Path) -> None:
    path = write_files(source("resnet8", 32, params), tmp_path)["fp16"]
    [found] = objects(python(packages, "-c", PLANS, path, "int8"))
    assert found["error"] == (
        f"{path}: int8 was asked for but the plan of tensorrt_rtx executed fp16; "
        "export it again, or request another precision."
    )


@pytest.mark.skipif(device_problem() is None, reason="there is a GPU here")
def test_without_a_gpu_the_plan_is_told_and_the_latency_is_not(packages: Path, params: Params, tmp_path: Path) -> None:
    path = write_files(source("resnet8", 32, params), tmp_path)["fp16"]
    said = python(packages, "-m", "pipeline.device.profile", path, "--runtime", "tensorrt_rtx", "--precision", "fp16")
    first, *_, last = said.splitlines()
    assert first == "the plan of tensorrt_rtx, version 1.7.1.116, executes fp16"
    assert last == f"latency not measured: {device_problem()}"
