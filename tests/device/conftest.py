"""A tiny model file and inputs, for workers in processes of their own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest


@dataclass(frozen=True)
class TinyModel:
    """An .onnx file that takes [N, 3, 8, 8], and a .npy file with 6 images."""

    path: Path
    inputs: Path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    folder = tmp_path_factory.mktemp("tiny")
    generator = np.random.default_rng(0)
    weights = generator.standard_normal((4, 3, 8, 8)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["input", "weights"], ["maps"]), helper.make_node("Flatten", ["maps"], ["logits"])],
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = TinyModel(folder / "tiny.onnx", folder / "inputs.npy")
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)]), model.path)
    np.save(model.inputs, generator.standard_normal((6, 3, 8, 8)).astype(np.float32))
    return model
