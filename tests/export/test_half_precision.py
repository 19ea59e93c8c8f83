"""Conversion of graphs to float16, on graphs made by hand."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pipeline.export.graph import element_types
from pipeline.export.half_precision import to_fp16


def _model(nodes: list[onnx.NodeProto], **constants: NDArray[np.float32]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3, None, None])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def _run(model: onnx.ModelProto, images: NDArray[np.float32]) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"input": images})[0]


def _halved(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, NDArray]]:
    half = to_fp16(model)
    onnx.checker.check_model(half, full_check=True)
    return half, {tensor.name: numpy_helper.to_array(tensor) for tensor in half.graph.initializer}


def test_scales_of_resize_stay_float32() -> None:
    nodes = [
        helper.make_node("Mul", ["input", "factor"], ["scaled"]),
        helper.make_node("Resize", ["scaled", "", "scales"], ["logits"], mode="nearest"),
    ]
    model = _model(nodes, factor=np.float32([0.5]), scales=np.float32([1, 1, 2, 2]))
    half, constants = _halved(model)
    assert constants["factor"].dtype == np.float16
    assert constants["scales"].dtype == np.float32
    types = element_types(half)
    assert [types[node.output[0]] for node in half.graph.node if node.op_type == "Resize"] == [TensorProto.FLOAT16]
    images = np.random.default_rng(0).standard_normal((2, 3, 4, 4), dtype=np.float32)
    np.testing.assert_allclose(_run(half, images), _run(model, images), rtol=1e-3)


def test_a_tiny_constant_stays_positive_and_a_huge_one_finite() -> None:
    nodes = [
        helper.make_node("Max", ["input", "epsilon"], ["positive"]),
        helper.make_node("Min", ["positive", "huge"], ["logits"]),
    ]
    _, constants = _halved(_model(nodes, epsilon=np.float32([1e-12]), huge=np.float32([3e38])))
    assert 0 < constants["epsilon"][0] < 1e-7
    assert constants["huge"][0] == np.finfo(np.float16).max


def test_casts_and_constants_inside_of_operators_become_float16() -> None:
    shape = np.array([1], dtype=np.int64)
    nodes = [
        helper.make_node("Constant", [], ["one"], value=numpy_helper.from_array(np.float32([1]))),
        helper.make_node("ConstantOfShape", ["shape"], ["zero"]),
        helper.make_node("Cast", ["input"], ["whole"], to=TensorProto.INT32),
        helper.make_node("Cast", ["whole"], ["back"], to=TensorProto.FLOAT),
        helper.make_node("Sum", ["back", "one", "zero"], ["logits"]),
    ]
    model = _model(nodes, shape=shape)
    half, _ = _halved(model)
    types = element_types(half)
    assert {types[name] for name in ("one", "zero", "back")} == {TensorProto.FLOAT16}
    images = np.float32(np.arange(48).reshape(1, 3, 4, 4))
    np.testing.assert_array_equal(_run(half, images), _run(model, images))


def test_the_float32_graph_is_left_as_it_is() -> None:
    model = _model([helper.make_node("Mul", ["input", "factor"], ["logits"])], factor=np.float32([0.1]))
    before = model.SerializeToString(deterministic=True)
    to_fp16(model)
    assert model.SerializeToString(deterministic=True) == before
