"""The int8 graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.config import Int8Params
from pipeline.errors import ExportError
from pipeline.export.int8.layers import observe
from pipeline.export.int8.quantize import Int8Graph, to_int8
from pipeline.export.structure import COMPUTE, inspect
from tests.export.conftest import Exported

PLAIN = Int8Params(ranges="minmax", rounding=False, bias_correction=False, float_share=0.0)
CAREFUL = Int8Params(ranges="error", rounding=True, bias_correction=True, float_share=0.0)


@pytest.fixture(scope="module")
def source(exported: Exported) -> onnx.ModelProto:
    return exported.sources["student"].graph


Quantize = Callable[..., Int8Graph]


@pytest.fixture(scope="module")
def quantized(exported: Exported, source: onnx.ModelProto) -> Quantize:
    """The graph of each choice of parameters, made once."""

    @cache
    def make(base: Int8Params, **changes: object) -> Int8Graph:
        return to_int8(source, exported.calibration, base.model_copy(update=changes))

    return make


@pytest.fixture(scope="module")
def model(exported: Exported) -> onnx.ModelProto:
    return onnx.load(exported.folder / "student_int8.onnx")


def _constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def _quantizers(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type in {"QuantizeLinear", "DequantizeLinear"}]


def test_all_zero_points_are_int8_zeros(model: onnx.ModelProto) -> None:
    constants = _constants(model)
    zero_points = [constants[node.input[2]] for node in _quantizers(model)]
    assert len(zero_points) > 10
    assert {tensor.data_type for tensor in zero_points} == {TensorProto.INT8}
    assert not any(numpy_helper.to_array(tensor).any() for tensor in zero_points)


def test_weights_have_one_scale_per_output_channel_and_seven_bits(model: onnx.ModelProto) -> None:
    constants = _constants(model)
    weights = [node for node in _quantizers(model) if node.input[0] in constants]
    assert len(weights) == 3
    for node in weights:
        values = numpy_helper.to_array(constants[node.input[0]])
        assert values.dtype == np.int8
        assert np.abs(values.astype(int)).max() <= 64
        assert numpy_helper.to_array(constants[node.input[1]]).shape in {(8,), (4,)}


def test_biases_and_logits_are_not_quantised(model: onnx.ModelProto) -> None:
    producers = {name: node.op_type for node in model.graph.node for name in node.output}
    assert producers["logits"] == "Add"
    for node in model.graph.node:
        if node.op_type in COMPUTE:
            assert all(name not in producers for name in node.input[2:])


def test_every_reader_of_a_quantised_value_has_its_own_dequantizer(model: onnx.ModelProto) -> None:
    readers = Counter(name for node in model.graph.node for name in node.input)
    dequantizers = [node for node in _quantizers(model) if node.op_type == "DequantizeLinear"]
    assert {readers[node.output[0]] for node in dequantizers} == {1}


def test_equal_calibration_images_give_equal_graphs_and_other_images_other_scales(
    exported: Exported, source: onnx.ModelProto, quantized: Quantize
) -> None:
    before = source.SerializeToString(deterministic=True)
    graphs = (quantized(PLAIN), *(to_int8(source, factor * exported.calibration, PLAIN) for factor in (1, 2)))
    first, second, other = (graph.model.SerializeToString(deterministic=True) for graph in graphs)
    assert first == second != other
    assert source.SerializeToString(deterministic=True) == before


def test_a_graph_that_cannot_be_quantised_is_named_so(exported: Exported, source: onnx.ModelProto) -> None:
    with pytest.raises(ExportError, match=r"cannot quantise the network to int8 \(.*; take int8 out"):
        to_int8(source, exported.calibration[:, :1], PLAIN)


def _error(model: onnx.ModelProto, exported: Exported) -> np.ndarray:
    """Difference of the logits to the network's, on images that were not used to quantise it."""
    logits = np.concatenate([chunk[0] for chunk in observe(model, ["logits"], exported.images)])
    return logits - exported.logits


def test_each_step_brings_the_logits_nearer_to_those_of_the_network(exported: Exported, quantized: Quantize) -> None:
    graphs = {
        "plain": quantized(PLAIN),
        "bias": quantized(PLAIN, bias_correction=True),
        "rounding": quantized(PLAIN, rounding=True),
        "all": quantized(CAREFUL),
    }
    errors = {name: float((_error(graph.model, exported) ** 2).mean()) for name, graph in graphs.items()}
    assert max(errors["bias"], errors["rounding"]) < errors["plain"]
    assert errors["all"] < 0.7 * errors["plain"]


def test_biases_make_up_for_the_mean_error_of_each_logit(
    exported: Exported, source: onnx.ModelProto, quantized: Quantize
) -> None:
    for graph, most in ((quantized(PLAIN), None), (quantized(PLAIN, bias_correction=True), 1e-4)):
        model = graph.model
        seen = [
            np.concatenate([chunk[0] for chunk in observe(network, ["logits"], exported.calibration)])
            for network in (source, model)
        ]
        off = np.abs((seen[1] - seen[0]).mean(axis=0)).max()
        assert (off > 1e-3) if most is None else (off < most)


def test_a_layer_stays_in_float32_within_its_share_of_the_work(quantized: Quantize) -> None:
    assert quantized(CAREFUL).fp32_layers == ()
    for share in (0.01, 0.9):
        graph = quantized(CAREFUL, float_share=share)
        producers = {name: node.op_type for node in graph.model.graph.node for name in node.output}
        kept = {
            node.name
            for node in graph.model.graph.node
            if node.op_type in COMPUTE and producers.get(node.input[0]) != "DequantizeLinear"
        }
        assert kept == set(graph.fp32_layers)
        assert len(kept) < 3
    assert kept


def test_runtimes_compute_with_integers(exported: Exported) -> None:
    assert exported.files["student_int8.xml"].parity.executed_precision == "int8"
    # ONNX Runtime leaves a convolution in float32 whose output goes into a hardswish
    assert exported.files["student_int8.onnx"].parity.executed_precision == "mixed:int8=2,fp32=1"


def test_products_of_computed_values_stay_in_float32_and_are_listed() -> None:
    generator = np.random.default_rng(0)
    weights = {name: generator.normal(size=(8, 8)).astype(np.float32) for name in ("query.weight", "key.weight")}
    shape = np.int64([0, 3, 8])
    nodes = [
        helper.make_node("Reshape", ["input", "shape"], ["rows"], "reshape"),
        helper.make_node("MatMul", ["rows", "query.weight"], ["q"], "m1"),
        helper.make_node("MatMul", ["rows", "key.weight"], ["k"], "m2"),
        helper.make_node("Transpose", ["k"], ["kt"], "transpose", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["product"], "m3"),
        helper.make_node("ReduceMean", ["product", "axes"], ["logits"], "mean", keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "attention",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 2, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(v, n) for n, v in {**weights, "shape": shape, "axes": np.int64([2])}.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    images = generator.normal(size=(16, 3, 2, 4)).astype(np.float32)
    found = to_int8(model, images, CAREFUL)
    assert found.fp32_layers == ("MatMul_2",)
    assert inspect(found.model).fp32_layers == ("MatMul_2",)
