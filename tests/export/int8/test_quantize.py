"""The int8 graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from pipeline.compute.tracing import quiet
from pipeline.config import Int8Params
from pipeline.errors import ExportError
from pipeline.export.capture import capture
from pipeline.export.graph import from_program
from pipeline.export.int8.forms import FORMS, FormName, executed_in_fp32
from pipeline.export.int8.layers import observe
from pipeline.export.int8.quantize import Int8Graph, Quantizer, _adds_products_exactly, weight_bits
from pipeline.export.structure import COMPUTE, inspect
from pipeline.runtimes.openvino_runtime import openvino_core
from tests.export.conftest import Exported

PLAIN = Int8Params(ranges="minmax", rounding=False, bias_correction=False, weight_bits=7)
CAREFUL = Int8Params(ranges="error", rounding=True, bias_correction=True, weight_bits=7)


@pytest.fixture(scope="module")
def source(exported: Exported) -> onnx.ModelProto:
    return exported.sources["student"].graph


Quantize = Callable[..., Int8Graph]


@pytest.fixture(scope="module")
def quantized(exported: Exported, source: onnx.ModelProto) -> Quantize:
    """The graph of each choice of parameters, made once."""

    @cache
    def make(base: Int8Params, form: FormName = "onnxruntime", **changes: object) -> Int8Graph:
        return Quantizer(source, exported.calibration, base.model_copy(update=changes)).graph(form)

    return make


def _constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def _pairs(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Zero-point of each quantised activation."""
    constants = _constants(model)
    return {node.input[0]: constants[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"}


def test_the_form_for_onnx_runtime_has_unsigned_bytes_behind_each_activation(quantized: Quantize) -> None:
    model = quantized(CAREFUL).model
    pairs, operators = _pairs(model), Counter(node.op_type for node in model.graph.node)
    assert {point.dtype for point in pairs.values()} == {np.dtype(np.uint8)}
    assert operators["Relu"] == 0, "a range that begins at 0 takes its place"
    producers = {name: node.op_type for node in model.graph.node for name in node.output}
    assert producers["logits"] == "Add"
    assert [name for name in pairs if producers.get(name) == "Conv"]
    assert any(point == 0 for point in pairs.values())
    assert any(point > 0 for point in pairs.values())


def test_the_forms_for_openvino_and_tensorrt_have_a_pair_in_front_of_each_layer(quantized: Quantize) -> None:
    for form in ("openvino", "tensorrt"):
        model = quantized(CAREFUL, form).model
        pairs, producers = _pairs(model), {name: node.op_type for node in model.graph.node for name in node.output}
        assert len(pairs) == 3
        assert not [name for name in pairs if producers.get(name) == "Conv"]
        assert producers["logits"] == "Add"
        for node in model.graph.node:
            if node.op_type in COMPUTE:
                assert all(producers.get(name) != "DequantizeLinear" for name in node.input[2:]), "float biases"
        kinds = {point.dtype.name for point in pairs.values()}
        assert kinds == ({"int8", "uint8"} if form == "openvino" else {"int8"})
        assert all(point == 0 for point in pairs.values() if point.dtype == np.int8)


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize(("bits", "largest"), [(7, 64), (8, 127)])
def test_weights_have_one_scale_per_output_channel_and_the_asked_bits(
    quantized: Quantize, form: FormName, bits: int, largest: int
) -> None:
    model = quantized(CAREFUL, form, weight_bits=bits).model
    constants = _constants(model)
    weights = [
        node
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and constants.get(node.input[0], np.zeros(0)).dtype == np.int8
    ]
    assert len(weights) == 3
    for node in weights:
        assert largest / 2 < np.abs(constants[node.input[0]].astype(int)).max() <= largest
        assert constants[node.input[1]].shape in {(8,), (4,)}


def test_automatic_bits_are_those_with_which_both_runtimes_add_exactly() -> None:
    exact = _adds_products_exactly()
    assert weight_bits(CAREFUL.model_copy(update={"weight_bits": "auto"})) == (8 if exact else 7)
    assert weight_bits(CAREFUL.model_copy(update={"weight_bits": 8})) == 8
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    if "avx2" in flags and "avx_vnni" not in flags and "avx512_vnni" not in flags:
        assert not exact


def test_equal_calibration_images_give_equal_graphs_and_other_images_other_scales(
    exported: Exported, source: onnx.ModelProto, quantized: Quantize
) -> None:
    before = source.SerializeToString(deterministic=True)
    others = (Quantizer(source, factor * exported.calibration, PLAIN).graph("onnxruntime") for factor in (1, 2))
    graphs = (quantized(PLAIN), *others)
    first, second, other = (graph.model.SerializeToString(deterministic=True) for graph in graphs)
    assert first == second != other
    assert source.SerializeToString(deterministic=True) == before


def test_a_graph_that_cannot_be_quantised_is_named_so(exported: Exported, source: onnx.ModelProto) -> None:
    with pytest.raises(ExportError, match=r"cannot quantise the network to int8 \(.*; take int8 out"):
        Quantizer(source, exported.calibration[:, :1], PLAIN).graph("onnxruntime")


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
    for graph, most in ((quantized(PLAIN), None), (quantized(PLAIN, bias_correction=True), 2e-3)):
        model = graph.model
        seen = [
            np.concatenate([chunk[0] for chunk in observe(network, ["logits"], exported.calibration)])
            for network in (source, model)
        ]
        off = np.abs((seen[1] - seen[0]).mean(axis=0)).max()
        assert (off > 1e-2) if most is None else (off < most)


def test_hardswish_stays_one_operator(quantized: Quantize) -> None:
    operators = Counter(node.op_type for node in quantized(CAREFUL, "openvino").model.graph.node)
    assert (operators["HardSwish"], operators["HardSigmoid"]) == (1, 0)


def test_runtimes_compute_with_integers(exported: Exported) -> None:
    assert exported.files["student_int8.xml"].parity.executed_precision == "int8"
    assert exported.files["student_int8.onnx"].parity.executed_precision == "int8"


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
    quantizer = Quantizer(model, images, CAREFUL)
    for form in FORMS:
        found = quantizer.graph(form)
        assert found.fp32_layers == ("MatMul_2",)
        assert inspect(found.model).fp32_layers == ("MatMul_2",)


def float_convolutions(weight: np.ndarray, images: np.ndarray, kind: str = "Conv") -> onnx.ModelProto:
    """Two convolutions in a row with a ReLU6 between them, the second of ``kind``."""
    first = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["input", "first.weight"], ["maps"], "a", pads=[1, 1, 1, 1]),
        helper.make_node("Clip", ["maps", "zero", "six"], ["positive"], "relu6"),
        helper.make_node(kind, ["positive", "second.weight"], ["more"], "b"),
        helper.make_node("GlobalAveragePool", ["more"], ["logits"], "pool"),
    ]
    maps = ["batch", 3, *images.shape[2:]]
    graph = helper.make_graph(
        nodes,
        "convolutions",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, maps)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", None, None, None])],
        [
            *(
                numpy_helper.from_array(value, f"{name}.weight")
                for name, value in (("first", first), ("second", weight))
            ),
            *(numpy_helper.from_array(np.float32(value), name) for name, value in (("zero", 0), ("six", 6))),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def convolutions(kind: str, images: np.ndarray, weight: np.ndarray) -> Int8Graph:
    """The same for ONNX Runtime."""
    return Quantizer(float_convolutions(weight, images, kind), images, CAREFUL).graph("onnxruntime")


IMAGES = np.random.default_rng(1).normal(size=(8, 3, 6, 6)).astype(np.float32)


def test_an_operator_without_integer_kernel_stays_in_float32_and_is_listed() -> None:
    found = convolutions("ConvTranspose", IMAGES, np.ones((4, 2, 2, 2), np.float32))
    assert found.fp32_layers == ("second",)
    assert executed_in_fp32(found.model, "onnxruntime") == ["second"]


@pytest.mark.parametrize("images", [np.zeros_like(IMAGES), np.ones_like(IMAGES), np.abs(IMAGES), IMAGES * 1e4])
@pytest.mark.parametrize("scale", [0.0, 1e-12, 1.0])
def test_dead_constant_and_huge_channels_are_no_failure_and_no_collapse(images: np.ndarray, scale: float) -> None:
    weight = np.random.default_rng(2).normal(size=(5, 4, 3, 3)).astype(np.float32)
    weight[1] *= scale
    model = convolutions("Conv", images, weight).model
    before, after = (
        np.concatenate([chunk[0] for chunk in observe(network, ["logits"], images)])
        for network in (float_convolutions(weight, images), model)
    )
    assert np.isfinite(after).all()
    assert np.abs(after - before).max() <= 0.1 * np.abs(before).max() + 1e-6


@pytest.mark.parametrize("form", list(FORMS))
def test_an_outlier_keeps_the_layers_beside_it_in_float32_and_no_others(form: FormName) -> None:
    weight = np.random.default_rng(2).normal(size=(5, 4, 3, 3)).astype(np.float32)
    images = np.concatenate([IMAGES, IMAGES[:1]])
    images[-1, 0, 0, 0] = 1e4
    model = float_convolutions(weight, images)
    found = Quantizer(model, images, CAREFUL).graph(form)
    assert found.fp32_layers == ("first",)
    before, after = (next(observe(network, ["logits"], IMAGES))[0] for network in (model, found.model))
    assert np.abs(after - before).max() <= 0.1 * np.abs(before).max()


def test_a_network_that_int8_does_not_suit_is_named_so() -> None:
    weight = np.random.default_rng(2).normal(size=(5, 4, 3, 3)).astype(np.float32)
    images = np.tile(IMAGES, (8, 1, 1, 1))
    images[-1, 0, 0, 0] = 1e4
    model = float_convolutions(weight, images)
    del model.graph.node[1]  # the ReLU6
    model.graph.node[1].input[0] = "maps"
    with pytest.raises(ExportError, match=r"no layer keeps its values in 8 bits\); take int8 out"):
        Quantizer(model, images, CAREFUL).graph("onnxruntime")


class Joined(nn.Module):
    """A convolution behind a Concat whose channels were moved."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(11, 8, 3, padding=1), nn.Linear(8, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = torch.cat([images, nn.functional.silu(self.a(images))], 1)
        moved = maps.flatten(2).transpose(1, 2).transpose(1, 2).reshape(maps.shape)
        return self.fc((self.b(maps) + self.b(moved)).mean((2, 3)))


class Attended(nn.Module):
    """Products of activations that come from convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.fc = *(nn.Conv2d(3, 8, 1) for _ in range(3)), nn.Linear(8, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        q, k, v = (layer(images).flatten(2) for layer in (self.q, self.k, self.v))
        return self.fc((v @ (q.transpose(1, 2) @ k * 0.1).softmax(-1)).mean(2))


class ChannelAttention(nn.Module):
    """A convolution in one dimension, and a border of -inf."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c, self.fc = nn.Conv2d(3, 8, 3), nn.Conv1d(1, 1, 3, padding=1), nn.Linear(8, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = nn.functional.pad(self.a(images), (0, 1, 0, 1), value=-float("inf"))
        maps = nn.functional.max_pool2d(maps, 3, 2)
        gate = self.c(maps.mean((2, 3))[:, None]).sigmoid()[:, 0]
        return self.fc((maps * gate[:, :, None, None]).mean((2, 3)))


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("kind", [Joined, Attended, ChannelAttention])
def test_the_runtime_of_a_form_computes_its_graph_as_meant(kind: type[nn.Module], form: FormName) -> None:
    torch.manual_seed(0)
    network, images = kind().eval(), np.random.default_rng(0).normal(size=(8, 3, 16, 16)).astype(np.float32)
    with quiet():
        model = from_program(capture(network, (3, 16, 16), "student"), 18)
    found = Quantizer(model, images, CAREFUL).graph(form)
    assert found.fp32_layers == inspect(found.model).fp32_layers
    wanted = next(observe(model, ["logits"], images))[0]
    if form == "openvino":
        core = openvino_core()
        compiled = core.compile_model(core.read_model(found.model.SerializeToString()), "CPU")
        logits = compiled(images)["logits"]
    else:
        logits = next(observe(found.model, ["logits"], images))[0]
    assert np.abs(logits - wanted).max() < 0.1 * np.abs(wanted - wanted.mean(axis=0)).max()
