"""Which layers stay in float32."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pipeline.config import Int8Params
from pipeline.export.int8.quantize import to_int8
from pipeline.export.int8.sensitivity import choose_fp32_layers


def test_layers_that_stand_out_are_kept_worst_first_while_their_work_fits() -> None:
    damage = {"a": 0.1, "b": 5.0, "c": 9.0, "d": 0.2, "e": 4.0}
    costs = {"a": 10, "b": 30, "c": 50, "d": 10, "e": 5}
    assert choose_fp32_layers(damage, costs, 0.0) == ()
    assert choose_fp32_layers(damage, costs, 0.05) == ("e",)
    assert choose_fp32_layers(damage, costs, 0.4) == ("b", "e")
    assert choose_fp32_layers(damage, costs, 0.5) == ("c",)
    assert choose_fp32_layers(damage, costs, 1.0) == ("b", "c", "e"), "never those below the mean"


def test_a_layer_whose_inputs_are_one_large_and_many_small_values_is_found() -> None:
    generator = np.random.default_rng(0)
    first = generator.normal(size=(12, 3, 1, 1)).astype(np.float32)
    first[0] *= 1000
    second = generator.normal(size=(6, 12, 1, 1)).astype(np.float32)
    second[:, 0] /= 1000
    third = generator.normal(size=(4, 6, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["input", "first.weight"], ["a"], "n1"),
        helper.make_node("Relu", ["a"], ["b"], "n2"),
        helper.make_node("Conv", ["b", "second.weight"], ["c"], "n3"),
        helper.make_node("Conv", ["c", "third.weight"], ["d"], "n4"),
        helper.make_node("ReduceMean", ["d", "axes"], ["logits"], "n5", keepdims=0),
    ]
    weights = {"first.weight": first, "second.weight": second, "third.weight": third, "axes": np.int64([2, 3])}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["batch", 3, 4, 4])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    images = generator.normal(size=(40, 3, 4, 4)).astype(np.float32)
    params = Int8Params(ranges="minmax", rounding=False, bias_correction=False, float_share=1.0)
    assert "second" in to_int8(model, images, params).fp32_layers
    assert "third" not in to_int8(model, images, params).fp32_layers
