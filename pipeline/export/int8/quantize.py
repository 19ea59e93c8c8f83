"""Int8 quantisation with explicit Q/DQ pairs, in a form that ONNX Runtime, OpenVINO and TensorRT all accept.

* TensorRT requires int8 with zero-point 0 for weights and activations, and float biases. One scale per output channel
  keeps the accuracy of depthwise convolutions.
* Weights use 7 of the 8 bits. On x86 CPUs without VNNI, the kernels of ONNX Runtime and OpenVINO add pairs of products
  in 16 bits. 255 * 64 * 2 fits, but 8-bit weights overflow (measured: a resnet8 changes its answer for a fifth of the
  images).
* Outputs of convolutions are quantised, because otherwise ONNX Runtime computes the convolutions in float32. Outputs of
  matrix products are not quantised, to keep the resolution of the logits.
* Each layer has its own Q/DQ pair at the input, each reader of a quantised output has its own DequantizeLinear, and
  Gemm has no bias. ONNX Runtime's integer kernels match only this pattern; the computed values do not change.
* If only ReLUs read a value, it has the quantisation scale of their output.
* Products of two computed values, as in attention, stay float32.

Symmetric int8 has only 7 bits for the output of a ReLU. So three steps reduce the error on the calibration images:
scales of least error (rounding.py), a few sensitive layers in float32 (sensitivity.py), and rounding with correction of
the biases, layer by layer (correction.py). docs/export.md shows the gain of each step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from pipeline.config import Int8Params
from pipeline.errors import ExportError
from pipeline.export.capture import quiet
from pipeline.export.int8.correction import channel_mean, correct
from pipeline.export.int8.layers import Layer, constants, find_layers, observe, prepare
from pipeline.export.int8.qdq import Scheme, insert_qdq
from pipeline.export.int8.rounding import activation_scales, nearest, weight_scales
from pipeline.export.int8.sensitivity import choose_fp32_layers, sensitivity
from pipeline.export.structure import COMPUTE
from pipeline.portable.text import first_line


@dataclass(frozen=True)
class Int8Graph:
    """A Q/DQ graph with float32 input and output."""

    model: onnx.ModelProto
    fp32_layers: tuple[str, ...]  # names of the nodes of ``COMPUTE`` that stay float32, in the order of computation


def to_int8(model: onnx.ModelProto, images: NDArray[np.float32], params: Int8Params) -> Int8Graph:
    """Quantise a float32 onnx.ModelProto. Equal inputs give equal graphs on the same machine.

    Args:
        images: calibration images, float32 [n, 3, S, S], normalised, n >= 1.
        params: block ``export.int8`` of params.yaml, with a switch for each step.

    Raises:
        ExportError: ONNX Runtime cannot run or quantise the network.
    """
    try:
        with quiet():
            return _quantized(prepare(model), images, params)
    except Exception as error:  # the libraries raise many types of errors
        raise ExportError(
            f"ONNX Runtime cannot quantise the network to int8 ({first_line(error)}); take int8 out of "
            "export.precisions or choose another network"
        ) from error


def _quantized(model: onnx.ModelProto, images: NDArray[np.float32], params: Int8Params) -> Int8Graph:
    layers = find_layers(model)
    statistics = _observe(model, layers, images)
    scheme = _scheme(model, layers, statistics, images, params.ranges)
    fp32_layers: tuple[str, ...] = ()
    if params.float_share > 0:
        damage = sensitivity(model, layers, scheme, images)
        fp32_layers = choose_fp32_layers(damage, statistics.costs, params.float_share)
    corrected, scheme = correct(model, layers, scheme, fp32_layers, statistics.means, images, params)
    quantized = {layer.name for layer in layers} - set(fp32_layers)
    layer_names = (node.name for node in model.graph.node if node.op_type in COMPUTE)
    return Int8Graph(
        insert_qdq(corrected, layers, scheme, fp32_layers), tuple(name for name in layer_names if name not in quantized)
    )


@dataclass(frozen=True)
class _Observed:
    """Statistics of the float32 network on the calibration images."""

    positive: set[str]  # values read only by ReLUs, which ignore the negative part
    largest: dict[str, float]  # value to quantise -> largest magnitude
    means: dict[str, NDArray[np.float64]]  # layer -> mean of each output channel, [O]
    costs: dict[str, int]  # layer -> multiply-adds for one image


def _observe(model: onnx.ModelProto, layers: Sequence[Layer], images: NDArray[np.float32]) -> _Observed:
    positive = _only_read_by_relu(model)
    weights = constants(model)
    largest = dict.fromkeys((name for layer in layers for name in layer.quantized_values), 0.0)
    names = list(dict.fromkeys([*largest, *(layer.output for layer in layers)]))
    sums: dict[str, list[NDArray[np.float64]]] = {layer.name: [] for layer in layers}
    costs: dict[str, int] = {}
    for chunk in observe(model, names, images):
        values = dict(zip(names, chunk, strict=True))
        for name in largest:
            magnitudes = np.maximum(values[name], 0) if name in positive else np.abs(values[name])
            largest[name] = max(largest[name], float(magnitudes.max(initial=0)))
        for layer in layers:
            output, weight = values[layer.output], weights[layer.weight]
            sums[layer.name].append(channel_mean([output], layer) * len(output))
            costs[layer.name] = output[0].size * (weight.size // weight.shape[layer.axis])
    means = {name: np.sum(parts, axis=0) / len(images) for name, parts in sums.items()}
    return _Observed(positive, largest, means, costs)


def _scheme(
    model: onnx.ModelProto, layers: Sequence[Layer], statistics: _Observed, images: NDArray[np.float32], ranges: str
) -> Scheme:
    """Choose the scales of all values, and round the weights to the nearest multiple."""
    names = list(statistics.largest)
    lowest = [0 if name in statistics.positive else -np.inf for name in names]
    chunks = (dict(zip(names, map(np.maximum, chunk, lowest), strict=True)) for chunk in observe(model, names, images))
    weights = constants(model)
    weights_int8, scales = {}, {}
    for layer in layers:
        rows = np.moveaxis(weights[layer.weight], layer.axis, 0)
        matrix = rows.reshape(len(rows), -1)
        scales[layer.name] = weight_scales(matrix, ranges)
        rounded = nearest(matrix, scales[layer.name]).reshape(rows.shape)
        weights_int8[layer.name] = np.ascontiguousarray(np.moveaxis(rounded, 0, layer.axis))
    return Scheme(activation_scales(statistics.largest, chunks, ranges), weights_int8, scales)


def _only_read_by_relu(model: onnx.ModelProto) -> set[str]:
    readers: dict[str, set[str]] = {value.name: {"output"} for value in model.graph.output}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    return {name for name, kinds in readers.items() if kinds == {"Relu"}}
