"""Make up, layer by layer, for what quantisation did to the layers before, on the calibration images.

The weights are rounded for the inputs that the quantised network really computes, and what remains of the mean error
of each output channel goes into the bias (Nagel et al. 2019, arXiv 1906.04721, section 4.2). The order matters:
corrected all at once, every layer would also make up for the errors of the layers before it, which make up for them
themselves, and the logits come out worse than without any correction.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx
from numpy.typing import NDArray

from pipeline.export.int8.layers import Layer, constants, observe, open_session, set_constants, single
from pipeline.export.int8.qdq import Scheme, bytes_of, insert_pairs, raw_output
from pipeline.export.int8.rounding import MOST_INPUTS, Moments, round_weights

_ROUNDED = frozenset({"Conv", "Gemm", "MatMul"})


def correct(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    scheme: Scheme,
    float_layers: Collection[str],
    means: Mapping[str, NDArray[np.float64]],
    images: NDArray[np.float32],
    *,
    rounding: bool,
    bias: bool,
) -> tuple[onnx.ModelProto, Scheme]:
    """A copy of the float32 graph with corrected biases, and a scheme with corrected weights.

    Args:
        float_layers: those that are not quantised; their biases are corrected too.
        means: of each layer's output in the float32 network, per channel, [O] by layer.
        images: float32 [n, 3, S, S].
    """
    corrected = onnx.ModelProto()
    corrected.CopyFrom(model)
    originals = constants(model)
    nodes = {node.name: node for node in model.graph.node}
    for layer in layers:
        own_bias = layer.bias if bias else None
        if layer.name in float_layers:
            if own_bias is not None:
                quantized = insert_pairs(corrected, layers, scheme, float_layers)
                name = raw_output(layer, quantized=False)
                mean = channel_mean((chunk[0] for chunk in observe(quantized, [name], images)), layer.kind)
                _shift(corrected, own_bias, means[layer.name] - mean)
            continue
        weight = originals[layer.weight]
        roundable = rounding and layer.kind in _ROUNDED and weight[:1].size <= MOST_INPUTS
        if not roundable and own_bias is None:
            continue
        quantized = insert_pairs(corrected, layers, scheme, float_layers)
        scale = np.float32(scheme.activations[layer.input])
        # As bytes, because they are kept for all images: the outputs depend on the weights, which depend on all inputs.
        inputs = [chunk[0] for chunk in observe(quantized, [bytes_of(layer)], images)]
        if roundable:
            moments = Moments(nodes[layer.name], weight.shape[2:], len(images))
            for chunk in inputs:
                moments.add(chunk * scale)
            steps = _rounded(weight, layer, scheme.scales[layer.name], moments.covariance())
            scheme = replace(scheme, steps={**scheme.steps, layer.name: steps})
        if own_bias is not None:
            session = open_session(single(nodes[layer.name], scheme.weight(layer)))
            outputs = (session.run(["y"], {"x": chunk * scale})[0] for chunk in inputs)
            mean = channel_mean(outputs, layer.kind)
            if layer.kind in {"Conv", "ConvTranspose"}:
                mean = mean + constants(corrected)[own_bias]
            _shift(corrected, own_bias, means[layer.name] - mean)
    return corrected, scheme


def channel_mean(chunks: Iterable[NDArray[np.float32]], kind: str) -> NDArray[np.float64]:
    """Mean of each output channel over values [n, O, ...] of a convolution, or [..., O] of a matrix product."""
    total: NDArray[np.float64] | float = 0.0
    count = 0
    for values in chunks:
        rows = np.moveaxis(values, 1, -1) if kind in {"Conv", "ConvTranspose"} else values
        rows = rows.reshape(-1, rows.shape[-1])
        total = total + rows.sum(axis=0, dtype=np.float64)
        count += len(rows)
    return np.asarray(total) / count


def _rounded(
    weight: NDArray[np.float32], layer: Layer, scales: NDArray[np.float32], covariance: NDArray[np.float64]
) -> NDArray[np.int8]:
    """The layer's weights in steps; one covariance per group."""
    rows = np.moveaxis(weight, layer.axis, 0)
    matrices = rows.reshape(len(covariance), -1, covariance.shape[-1])
    steps = [
        round_weights(group, own, moments)
        for group, own, moments in zip(matrices, scales.reshape(len(covariance), -1), covariance, strict=True)
    ]
    return np.ascontiguousarray(np.moveaxis(np.concatenate(steps).reshape(rows.shape), 0, layer.axis))


def _shift(model: onnx.ModelProto, bias: str, error: NDArray[np.float64]) -> None:
    set_constants(model, {bias: (constants(model)[bias] + error).astype(np.float32)})
