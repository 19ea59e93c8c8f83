"""Q/DQ pairs in a graph, in the form that quantize.py describes."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from pipeline.export.int8.layers import Layer

_QUANTIZED_OUTPUT = frozenset({"Conv", "ConvTranspose"})


@dataclass(frozen=True)
class Scheme:
    """What the bytes of an int8 graph stand for.

    Attributes:
        activations: scale of each quantised value, by name.
        steps: int8, in the shape of the weights, by the name of the layer.
        scales: float32 [O] of these weights, by the name of the layer.
    """

    activations: Mapping[str, float]
    steps: Mapping[str, NDArray[np.int8]]
    scales: Mapping[str, NDArray[np.float32]]

    def weight(self, layer: Layer) -> NDArray[np.float32]:
        """The weights that the graph computes with, float32."""
        steps = self.steps[layer.name]
        shape = [1] * steps.ndim
        shape[layer.axis] = -1
        return steps.astype(np.float32) * self.scales[layer.name].reshape(shape)


def quantized_values(layer: Layer) -> tuple[str, ...]:
    """The values that have a scale if the layer is quantised."""
    return (layer.input, layer.output) if layer.kind in _QUANTIZED_OUTPUT else (layer.input,)


def bytes_of(layer: Layer) -> str:
    """Name of the layer's int8 input in a graph from :func:`insert_pairs`."""
    return f"{layer.input}_for_{layer.name}_quantized"


def raw_output(layer: Layer, *, quantized: bool) -> str:
    """Name of the layer's result in a graph from :func:`insert_pairs`, before it is quantised itself."""
    return f"{layer.output}_raw" if quantized and layer.kind in _QUANTIZED_OUTPUT else layer.output


def insert_pairs(
    model: onnx.ModelProto, layers: Sequence[Layer], scheme: Scheme, float_layers: Collection[str] = ()
) -> onnx.ModelProto:
    """A copy whose layers compute with int8, but for those in ``float_layers``."""
    quantized = {layer.name: layer for layer in layers if layer.name not in float_layers}
    pairs = _Pairs(scheme)
    for original in model.graph.node:
        node = copy.deepcopy(original)
        layer = quantized.get(node.name)
        if layer is None:
            pairs.nodes.append(node)
            continue
        node.input[0] = pairs.add(layer.input, f"{layer.input}_for_{layer.name}")
        node.input[1] = pairs.add_weight(layer)
        pairs.nodes.append(node)
        if layer.kind in _QUANTIZED_OUTPUT:
            node.output[0] = raw_output(layer, quantized=True)
            pairs.add(node.output[0], layer.output, value=layer.output, result=layer.output)
    result = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = result.graph
    graph.name = model.graph.name
    graph.node.extend(_with_own_halves(pairs.nodes))
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    read = {name for node in pairs.nodes for name in node.input}
    graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in read)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in pairs.constants.items())
    return result


def _with_own_halves(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes, where each reader of a quantised output has a DequantizeLinear of its own.

    The QuantizeLinear is one: with two of them behind it, ONNX Runtime computes the convolution in float32.
    """
    producers = {name: node for node in nodes for name in node.output}
    seen: Counter[str] = Counter()
    result = []
    for node in nodes:
        for index, name in enumerate(node.input):
            dequantize = producers.get(name)
            if dequantize is None or dequantize.op_type != "DequantizeLinear" or dequantize.input[0] not in producers:
                continue  # not a quantised value; weights have no first half of a pair
            seen[name] += 1
            if seen[name] == 1:
                continue
            own = copy.deepcopy(dequantize)
            own.name = own.output[0] = node.input[index] = f"{name}_{seen[name]}"
            result.append(own)
        result.append(node)
    return result


class _Pairs:
    """Nodes and constants of the new graph."""

    def __init__(self, scheme: Scheme) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, NDArray[np.generic]] = {}
        self._scheme = scheme

    def add(self, source: str, prefix: str, *, value: str | None = None, result: str | None = None) -> str:
        """A pair of its own between ``source`` and the name returned, by the scale of ``value``."""
        value = value or source
        quantized, result = f"{prefix}_quantized", result or f"{prefix}_dequantized"
        parameters = self._parameters(value, np.float32(self._scheme.activations[value]), np.int8(0))
        self.nodes += [
            helper.make_node("QuantizeLinear", [source, *parameters], [quantized], quantized),
            helper.make_node("DequantizeLinear", [quantized, *parameters], [result], f"{prefix}_dequantized"),
        ]
        return result

    def add_weight(self, layer: Layer) -> str:
        """The second half of a pair: weights are stored quantised."""
        scales = self._scheme.scales[layer.name]
        stored, result = f"{layer.name}.weight_quantized", f"{layer.name}.weight_dequantized"
        self.constants[stored] = self._scheme.steps[layer.name]
        parameters = self._parameters(f"{layer.name}.weight", scales, np.zeros(len(scales), np.int8))
        self.nodes.append(
            helper.make_node("DequantizeLinear", [stored, *parameters], [result], result, axis=layer.axis)
        )
        return result

    def _parameters(
        self, name: str, scale: NDArray[np.float32] | np.float32, zero_point: NDArray[np.int8] | np.int8
    ) -> tuple[str, str]:
        names = f"{name}_scale", f"{name}_zero_point"
        self.constants |= dict(zip(names, (np.asarray(scale), np.asarray(zero_point)), strict=True))
        return names
