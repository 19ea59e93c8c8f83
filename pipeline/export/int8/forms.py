"""Where the pairs of QuantizeLinear and DequantizeLinear (Q/DQ) stand, for each runtime, and how they are written.

ONNX Runtime's own ``quantize_static`` writes the graph, and gets all numbers from us as ``TensorQuantOverrides``. The
forms differ, because what is fast differs:

* ONNX Runtime: unsigned bytes, a pair behind each activation, and the operators between convolutions in int8 too.
  A range that begins at 0 takes the place of the ReLU. Without a pair behind a convolution it would run in float32.
* OpenVINO: a pair in front of each layer only; it fuses what lies between. Values of both signs are signed, because a
  zero-point other than 0 costs time; but not the output of a swish, of which signed bytes would waste half the levels
  (measured: a MobileNetV3-small keeps 97 % of its answers instead of 88).
* TensorRT: the same places; it takes signed bytes with zero-point 0 only, and no quantised bias.

The outputs of matrix products are in no form quantised, to keep the resolution of the logits.
"""

import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.onnx_model import ONNXModel

from pipeline.export.int8.layers import Layer, open_session
from pipeline.export.int8.ranges import Signed, Step
from pipeline.export.structure import COMPUTE
from pipeline.runtimes.openvino_runtime import compute_layers, openvino_core, precision_hint

FormName = Literal["onnxruntime", "openvino", "tensorrt"]
_MATRIX_PRODUCTS = ("MatMul", "Gemm")
_LAYERS = frozenset({"Conv", *_MATRIX_PRODUCTS})  # ONNX Runtime has no int8 kernel of a ConvTranspose
_BETWEEN = frozenset({
    *("Add", "Mul", "Concat", "Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "Resize", "Pad", "Split", "Slice"),
    *("MaxPool", "AveragePool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"),
})  # fmt: skip


@dataclass(frozen=True)
class Numbers:
    """The chosen numbers of an int8 graph.

    Attributes:
        activations: tensor -> its bytes.
        scales: quantised layer -> scale [O] of each output channel of its weights.
        levels: largest magnitude of a weight in bytes.
    """

    activations: Mapping[str, Step]
    scales: Mapping[Layer, NDArray[np.float32]]
    levels: int

    def rounded(self, name: str, values: NDArray[Any]) -> NDArray[Any]:
        """The values of a tensor as its bytes stand for them; unchanged for a tensor that is not quantised."""
        step = self.activations.get(name)
        return values if step is None else step.rounded(values)


@dataclass(frozen=True)
class Form:
    """The form of an int8 graph.

    Attributes:
        between: operators that are computed in int8 if all that they compute with comes from convolutions; with them
            also the outputs of convolutions are quantised.
        signed: which activations are signed bytes.
        int32_bias: whether biases are quantised.
    """

    between: frozenset[str]
    signed: Signed
    int32_bias: bool

    def nodes(self, model: onnx.ModelProto, layers: Sequence[Layer], excluded: Collection[str]) -> list[str]:
        """Names of the nodes of a graph that are computed in int8, in the order of computation; none of ``excluded``.

        A convolution or another operator that gives the logits is none, since its output would be quantised.
        """
        known = {tensor.name for tensor in model.graph.initializer}
        outputs = {value.name for value in model.graph.output}
        quantized = {layer.name for layer in layers if layer.kind in _LAYERS}
        chosen: list[str] = []
        maps: set[str] = set()  # what comes from convolutions by way of int8 alone
        for node in model.graph.node:
            computed = {name for name in node.input if name and name not in known}
            if node.name in excluded or (node.op_type not in _MATRIX_PRODUCTS and outputs & set(node.output)):
                continue
            if node.name in quantized or (node.op_type in self.between and computed and computed <= maps):
                chosen.append(node.name)
                if node.op_type not in _MATRIX_PRODUCTS:
                    maps |= set(node.output)
        return chosen


FORMS: dict[FormName, Form] = {
    "onnxruntime": Form(_BETWEEN, signed="never", int32_bias=True),
    "openvino": Form(frozenset(), signed="balanced", int32_bias=False),
    "tensorrt": Form(frozenset(), signed="always", int32_bias=False),
}


def write_pairs(
    model: onnx.ModelProto,
    form: Form,
    nodes: Sequence[str],
    image: NDArray[np.float32],
    numbers: Numbers | None = None,
) -> onnx.ModelProto:
    """Return the Q/DQ graph of a float32 graph from :func:`pipeline.export.int8.layers.prepare`.

    Args:
        nodes: names of the nodes to quantise.
        image: any image, float32 [1, 3, S, S].
        numbers: without them the writer chooses, which shows where pairs stand. The weights in ``model`` must be
            multiples of their scales.
    """
    overrides: dict[str, list[dict[str, Any]]] = {}
    for name, step in (numbers.activations if numbers else {}).items():
        kind, integer = (QuantType.QInt8, np.int8) if step.lowest < 0 else (QuantType.QUInt8, np.uint8)
        point = np.array(step.zero_point, integer)
        overrides[name] = [{"quant_type": kind, "scale": np.array(step.scale), "zero_point": point}]
    for layer, scales in (numbers.scales if numbers else {}).items():
        zero = {"quant_type": QuantType.QInt8, "zero_point": np.array(0, np.int8)}
        overrides[layer.weight] = [zero | {"scale": np.array(scale)} for scale in scales]
        overrides[layer.weight][0]["axis"] = layer.axis
    chosen = set(nodes)
    unquantized = [*_MATRIX_PRODUCTS, *(() if form.between else ("Conv",))]
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)
        quantize_static(
            source,
            target,
            SimpleNamespace(get_next=iter([{model.graph.input[0].name: image}, None]).__next__),  # a data reader
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8 if form.signed == "always" else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=sorted({node.op_type for node in model.graph.node if node.name in chosen}),
            nodes_to_quantize=list(nodes),
            extra_options={
                "TensorQuantOverrides": overrides,
                "ActivationSymmetric": form.signed == "always",
                "MatMulConstBOnly": True,
                "OpTypesToExcludeOutputQuantization": unquantized,
                "QDQOpTypePerChannelSupportToAxis": {"MatMul": 1},
                "QuantizeBias": form.int32_bias,
                "QDQDisableWeightAdjustForInt32Bias": True,  # it would replace the given scales
            },
        )
        written = onnx.load(target)
    _drop_bias_zero_points(written)
    return written


def _drop_bias_zero_points(model: onnx.ModelProto) -> None:
    """Remove the zero-points of int32 biases: they are 0, the default, and as large as the biases."""
    zeros = {
        tensor.name
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.INT32 and not numpy_helper.to_array(tensor).any()
    }
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and zeros & set(node.input[2:]):
            del node.input[2]
    ONNXModel(model).clean_initializers()


def quantized_tensors(model: onnx.ModelProto) -> list[str]:
    """Names of the activations that a Q/DQ graph quantises, in the order of computation."""
    return [node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]


def executed_in_fp32(model: onnx.ModelProto, form: FormName) -> list[str]:
    """Names of the convolutions and matrix products that the runtime of a form computes in float32 on this machine.

    They are read from its own optimised graph. TensorRT would need its GPU for that: none is named for its form.
    """
    if form == "tensorrt":
        return []
    if form == "openvino":
        core, hint = openvino_core(), {"INFERENCE_PRECISION_HINT": precision_hint("int8", has_fp16=False)}
        compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", hint)
        return [name for name, _, precision in compute_layers(compiled) if precision != "int8"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        open_session(model, optimised=path)
        return [
            node.name
            for node in onnx.load(path, load_external_data=False).graph.node
            if node.op_type.removeprefix("Fused") in COMPUTE
        ]
