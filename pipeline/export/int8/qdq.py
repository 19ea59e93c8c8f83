"""Insert pairs of QuantizeLinear and DequantizeLinear (Q/DQ) into a graph, in the form that quantize.py describes."""

import copy
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from pipeline.export.int8.layers import Layer


@dataclass(frozen=True)
class Scheme:
    """Quantisation scales and int8 weights of a graph."""

    activations: Mapping[str, float]  # value -> scale
    weights_int8: Mapping[str, NDArray[np.int8]]  # layer -> int8 weights in their float32 shape
    weight_scales: Mapping[str, NDArray[np.float32]]  # layer -> scales [O]

    def weight(self, layer: Layer) -> NDArray[np.float32]:
        """Dequantised weights of a layer, float32."""
        weights = self.weights_int8[layer.name]
        shape = [1] * weights.ndim
        shape[layer.axis] = -1
        return weights.astype(np.float32) * self.weight_scales[layer.name].reshape(shape)


def int8_input(layer: Layer) -> str:
    """Name of the layer's int8 input in a graph from :func:`insert_qdq`."""
    return f"{layer.input}_for_{layer.name}_quantized"


def insert_qdq(
    model: onnx.ModelProto, layers: Sequence[Layer], scheme: Scheme, fp32_layers: Collection[str] = ()
) -> onnx.ModelProto:
    """Return a copy with Q/DQ pairs around all layers except ``fp32_layers``."""
    quantized = {layer.name: layer for layer in layers if layer.name not in fp32_layers}
    new = _NewGraph(scheme)
    for original in model.graph.node:
        node = copy.deepcopy(original)
        layer = quantized.get(node.name)
        if layer is not None:
            prefix = f"{layer.input}_for_{layer.name}"
            node.input[0] = new.add_pair(layer.input, layer.input, prefix, f"{prefix}_dequantized")
            node.input[1] = new.add_weight(layer)
        new.nodes.append(node)
        if layer is not None and layer.is_convolution:
            node.output[0] = f"{layer.output}_raw"
            new.add_pair(layer.output, node.output[0], layer.output, layer.output)
    result = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = result.graph
    graph.name = model.graph.name
    graph.node.extend(_with_own_dequantizers(new.nodes))
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    used = {name for node in new.nodes for name in node.input}
    graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in used)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in new.constants.items())
    return result


@dataclass
class _NewGraph:
    """Nodes and constants of the graph that :func:`insert_qdq` builds."""

    scheme: Scheme
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, NDArray[np.generic]] = field(default_factory=dict)

    def add_pair(self, value: str, source: str, prefix: str, result: str) -> str:
        """Add a Q/DQ pair from ``source`` to ``result`` with the scale of ``value``; ``prefix`` names its nodes."""
        parameters = self._parameters(value, np.float32(self.scheme.activations[value]), np.int8(0))
        bytes_ = f"{prefix}_quantized"
        self.nodes += [
            helper.make_node("QuantizeLinear", [source, *parameters], [bytes_], bytes_),
            helper.make_node("DequantizeLinear", [bytes_, *parameters], [result], f"{prefix}_dequantized"),
        ]
        return result

    def add_weight(self, layer: Layer) -> str:
        """Add the int8 weights and their DequantizeLinear; they need no QuantizeLinear."""
        weight, scales = f"{layer.name}.weight", self.scheme.weight_scales[layer.name]
        stored, result = f"{weight}_quantized", f"{weight}_dequantized"
        self.constants[stored] = self.scheme.weights_int8[layer.name]
        inputs = [stored, *self._parameters(weight, scales, np.zeros(len(scales), np.int8))]
        self.nodes.append(helper.make_node("DequantizeLinear", inputs, [result], result, axis=layer.axis))
        return result

    def _parameters(self, name: str, scale: Any, zero_point: Any) -> tuple[str, str]:
        names = f"{name}_scale", f"{name}_zero_point"
        self.constants |= dict(zip(names, (np.asarray(scale), np.asarray(zero_point)), strict=True))
        return names


def _with_own_dequantizers(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Give each reader of a quantised output its own copy of the DequantizeLinear.

    The readers share one QuantizeLinear: with two after a convolution, ONNX Runtime computes it in float32.
    """
    producers = {name: node for node in nodes for name in node.output}
    readers: Counter[str] = Counter()
    result = []
    for node in nodes:
        for index, name in enumerate(node.input):
            dequantize = producers.get(name)
            if dequantize is None or dequantize.op_type != "DequantizeLinear" or dequantize.input[0] not in producers:
                continue  # not a quantised value; stored weights have no QuantizeLinear
            readers[name] += 1
            if readers[name] > 1:
                duplicate = copy.deepcopy(dequantize)
                duplicate.name = duplicate.output[0] = node.input[index] = f"{name}_{readers[name]}"
                result.append(duplicate)
        result.append(node)
    return result
