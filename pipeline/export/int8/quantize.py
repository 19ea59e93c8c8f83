"""Int8 by explicit Q/DQ pairs, in the one form that ONNX Runtime, OpenVINO and TensorRT all take.

* TensorRT wants int8 with zero-point 0 on both sides and no quantised biases; one scale per output channel keeps the
  accuracy of depthwise convolutions.
* Weights use 7 of the 8 bits. On x86 CPUs without VNNI the kernels of ONNX Runtime and OpenVINO add pairs of products
  in 16 bits, which 8-bit weights overflow (measured: a resnet8 then answers a fifth of the images differently), while
  255 * 64 * 2 fits.
* Outputs of convolutions are quantised too, or ONNX Runtime computes the convolutions in float32. Those of matrix
  products are not, so that logits keep their resolution.
* Every layer has a Q/DQ pair of its own for its input, every reader of a quantised output a DequantizeLinear of its
  own, and Gemm has no bias, because ONNX Runtime's integer kernels match nothing else. The values are the same.
* What is only read by a ReLU has the scale of what the ReLU leaves.
* Products of two computed values, as in attention, stay float32.

Symmetric int8 leaves 7 bits for what a ReLU returns, so the numbers are chosen with care, all on the calibration
images: ranges of least error (ranges.py), a few sensitive layers in float32 (sensitivity.py), then weights and biases
that make up for the rounding, layer by layer (correction.py). docs/export.md has what each of these gains.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper
from onnxruntime.quantization.shape_inference import quant_pre_process

from pipeline.config import Int8Params
from pipeline.errors import ExportError
from pipeline.export.capture import first_line
from pipeline.export.int8.correction import channel_mean, correct
from pipeline.export.int8.layers import Layer, constants, find_layers, named, observe
from pipeline.export.int8.qdq import Scheme, insert_pairs, quantized_values
from pipeline.export.int8.ranges import activation_scales, nearest, weight_scales
from pipeline.export.int8.sensitivity import damages, float_layers
from pipeline.export.quiet import quiet
from pipeline.export.structure import COMPUTE

_BIAS = 2  # input of Gemm


@dataclass(frozen=True)
class Int8Graph:
    """A Q/DQ graph.

    Attributes:
        model: input and output are float32.
        float_nodes: names of the nodes of ``structure.COMPUTE`` that stay float32, in the order of computation.
    """

    model: onnx.ModelProto
    float_nodes: tuple[str, ...]


def to_int8(model: onnx.ModelProto, images: NDArray[np.float32], params: Int8Params) -> Int8Graph:
    """Quantise a float32 onnx.ModelProto. Equal inputs give equal graphs on the same machine.

    Args:
        images: float32 [n, 3, S, S], normalised, n >= 1; nothing else decides about scales, float nodes and biases.
        params: which of the steps are taken.

    Raises:
        ExportError: ONNX Runtime cannot run or quantise the network.
    """
    try:
        with quiet():
            prepared = _prepared(model)
            layers = find_layers(prepared, sorted(COMPUTE))
            observed = _observe(prepared, layers, images)
            scheme = _scheme(prepared, layers, observed, images, params.ranges)
            kept: tuple[str, ...] = ()
            if params.float_share > 0:
                kept = float_layers(damages(prepared, layers, scheme, images), observed.costs, params.float_share)
            if params.rounding or params.bias_correction:
                prepared, scheme = correct(
                    prepared,
                    layers,
                    scheme,
                    kept,
                    observed.means,
                    images,
                    rounding=params.rounding,
                    bias=params.bias_correction,
                )
            quantized = {layer.name for layer in layers} - set(kept)
            float_nodes = (node.name for node in prepared.graph.node if node.op_type in COMPUTE)
            return Int8Graph(
                insert_pairs(prepared, layers, scheme, kept),
                tuple(name for name in float_nodes if name not in quantized),
            )
    except Exception as error:  # its parts raise whatever they meet
        raise ExportError(
            f"ONNX Runtime cannot quantise the network to int8 ({first_line(error)}); take int8 out of "
            "export.precisions or choose another network"
        ) from error


@dataclass(frozen=True)
class _Observed:
    """What the float32 network computes for the calibration images.

    Attributes:
        largest: magnitude of each value to be quantised.
        means: of each layer's output, per channel.
        costs: multiply-adds of each layer for one image.
    """

    largest: dict[str, float]
    means: dict[str, NDArray[np.float64]]
    costs: dict[str, int]


def _observe(model: onnx.ModelProto, layers: Sequence[Layer], images: NDArray[np.float32]) -> _Observed:
    positive = _only_read_by_relu(model)
    weights = constants(model)
    values = _values(layers)
    names = list(dict.fromkeys([*values, *(layer.output for layer in layers)]))
    largest = dict.fromkeys(values, 0.0)
    sums: dict[str, list[tuple[NDArray[np.float64], int]]] = {layer.name: [] for layer in layers}
    costs: dict[str, int] = {}
    for chunk in observe(model, names, images):
        found = dict(zip(names, chunk, strict=True))
        for name in values:
            seen = np.maximum(found[name], 0) if name in positive else np.abs(found[name])
            largest[name] = max(largest[name], float(seen.max(initial=0)))
        for layer in layers:
            output = found[layer.output]
            sums[layer.name].append((channel_mean([output], layer.kind), len(output)))
            costs[layer.name] = output[0].size * (weights[layer.weight].size // weights[layer.weight].shape[layer.axis])
    means = {
        name: np.sum([mean * count for mean, count in parts], axis=0) / len(images) for name, parts in sums.items()
    }
    return _Observed(largest, means, costs)


def _scheme(
    model: onnx.ModelProto, layers: Sequence[Layer], observed: _Observed, images: NDArray[np.float32], ranges: str
) -> Scheme:
    """Ranges of all values, and weights rounded to the nearest."""
    positive = _only_read_by_relu(model)
    values = _values(layers)
    chunks = (
        {name: np.maximum(seen, 0) if name in positive else seen for name, seen in zip(values, chunk, strict=True)}
        for chunk in observe(model, values, images)
    )
    weights = constants(model)
    steps, scales = {}, {}
    for layer in layers:
        rows = np.moveaxis(weights[layer.weight], layer.axis, 0)
        matrix = rows.reshape(len(rows), -1)
        scales[layer.name] = weight_scales(matrix, ranges)
        rounded = nearest(matrix, scales[layer.name]).reshape(rows.shape)
        steps[layer.name] = np.ascontiguousarray(np.moveaxis(rounded, 0, layer.axis))
    return Scheme(activation_scales(observed.largest, chunks, ranges), steps, scales)


def _values(layers: Sequence[Layer]) -> list[str]:
    return list(dict.fromkeys(name for layer in layers for name in quantized_values(layer)))


def _only_read_by_relu(model: onnx.ModelProto) -> set[str]:
    """Values whose negative part is never used."""
    readers: dict[str, set[str]] = {value.name: {"output"} for value in model.graph.output}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    return {name for name, kinds in readers.items() if kinds == {"Relu"}}


def _prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with batch normalisation folded, biases apart from Gemm, and a name for every layer."""
    with tempfile.TemporaryDirectory() as folder:
        original, prepared = Path(folder) / "fp32.onnx", Path(folder) / "prepared.onnx"
        onnx.save(_split_biases(model), original)
        # torch's graphs come with their symbolic shapes
        quant_pre_process(original, prepared, skip_symbolic_shape=True)
        return named(onnx.load(prepared), sorted(COMPUTE))


def _split_biases(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which Gemm leaves the addition of its bias to an Add."""
    nodes = []
    for original in model.graph.node:
        node = copy.deepcopy(original)
        nodes.append(node)
        scaled = any(attribute.name == "beta" and attribute.f != 1 for attribute in node.attribute)
        if node.op_type == "Gemm" and len(node.input) > _BIAS and not scaled:
            output, bias = node.output[0], node.input.pop(_BIAS)
            node.output[0] = f"{output}_product"
            nodes.append(helper.make_node("Add", [node.output[0], bias], [output], f"{node.name}_bias"))
    model = copy.deepcopy(model)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model
