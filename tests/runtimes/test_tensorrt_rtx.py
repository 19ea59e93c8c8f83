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

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import models
from pipeline.config import Params
from pipeline.export.formats import FORMATS, ExportSource
from pipeline.export.structure import inspect
from tests.conftest import ROOT, made_once
from tests.runtimes.tensorrt_bindings import MissingPartError, install

WHEELS = ("tensorrt-rtx-cu12-bindings==1.7.1.116", "tensorrt-rtx-cu12-libs==1.7.1.116")
# of each file: how many layers its engine has, and what is known of those that compute, or why there is no engine
PROGRAM = """
import json, sys
from pathlib import Path
import tensorrt_rtx_bindings as tensorrt
from pipeline.runtimes import ModelFileError
from pipeline.runtimes.tensorrt_builder import build_engine, make_log
from pipeline.runtimes.tensorrt_layers import judge

for path in map(Path, sys.argv[1:]):
    log = make_log(tensorrt)
    try:
        build_engine(tensorrt, path, (1, 8, 64), log)
    except ModelFileError as error:
        print(json.dumps({"error": str(error)}))
    else:
        judged = judge(log.layers())
        print(json.dumps({"count": judged.count, "compute": judged.compute, "unclear": judged.unclear}))
"""
NETWORKS = (
    *(("resnet8", 32), ("wrn_16_1", 32), ("vgg8", 32), ("MobileNetV2", 32), ("ShuffleV2", 32)),
    *(("timm:test_resnet", 64), ("timm:test_byobnet", 64), ("timm:test_efficientnet", 64), ("timm:test_mambaout", 64)),
    *(("timm:test_convnext", 64), ("timm:test_vit", 160), ("timm:test_nfnet", 64)),
)
FILES = (("onnx", "fp32"), ("onnx", "fp16"), ("tensorrt", "int8"))


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the wheels are installed in."""

    def fetch(folder: Path) -> None:
        try:
            install(folder, *WHEELS)
        except MissingPartError as error:
            (folder / "missing").write_text(str(error), encoding="utf-8")

    found = made_once(tmp_path_factory, "tensorrt_rtx", fetch)
    if (missing := found / "missing").exists():
        pytest.skip(f"nothing built with TensorRT for RTX: {missing.read_text(encoding='utf-8')}")
    return found


def build(packages: Path, *files: Path) -> list[dict[str, Any]]:
    """What PROGRAM says of each file."""
    libraries = packages / "tensorrt_rtx_libs"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join((str(packages), str(ROOT))),
        "LD_LIBRARY_PATH": str(libraries),
    }
    command = [sys.executable, "-c", PROGRAM, *map(str, files)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in result.stdout.splitlines()]


def quantised(path: Path) -> int:
    """Number of convolutions and matrix products in a file that compute with bytes."""
    structure = inspect(onnx.load(path))
    return structure.count - len(structure.fp32_layers)


def source(name: str, size: int, params: Params) -> ExportSource:
    """A network with weights as they are drawn, whose int8 numbers are chosen in the fastest way."""
    torch.manual_seed(0)
    network = models.build(name, 10, shape=(3, size, size)).eval()
    quick = params.export.int8.model_copy(update={"ranges": "minmax", "rounding": False, "bias_correction": False})
    settings = params.export.model_copy(update={"int8": quick})
    images = np.random.default_rng(0).standard_normal((4, 3, size, size)).astype(np.float32)
    return ExportSource(network, "student", settings, 4.0, images, images, np.zeros(4, np.int64))


@pytest.mark.parametrize(("name", "size"), NETWORKS)
def test_every_layer_of_an_engine_computes_in_the_precision_of_its_file(
    packages: Path, params: Params, tmp_path: Path, name: str, size: int
) -> None:
    exported = source(name, size, params)
    paths = {}
    for form, precision in FILES:
        paths[precision] = tmp_path / f"{precision}{FORMATS[form].suffix}"
        FORMATS[form].write(exported, precision, paths[precision], {})
    for precision, found in zip(paths, build(packages, *paths.values()), strict=True):
        assert found["unclear"] == []
        layers = Counter(precision for _, precision in found["compute"])
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
    for (name, words), found in zip(cases.items(), build(packages, *paths.values()), strict=True):
        assert words in found["error"]
        assert str(paths[name]) in found["error"]
