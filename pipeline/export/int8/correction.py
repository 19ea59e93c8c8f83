"""Round the weights and correct the biases of an int8 graph, layer by layer, on the calibration images.

The weights of a layer are rounded for the inputs that the quantised layers before it compute. The bias absorbs the
remaining mean error of each output channel (Nagel et al. 2019, arXiv 1906.04721, section 4.2). The order matters: if
all layers were corrected at once, errors would be corrected more than once, and the logits would be worse than without
any correction.
"""

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from pipeline.config import Int8Params
from pipeline.export.int8.layers import Layer, constants, observe, open_session, single
from pipeline.export.int8.qdq import Scheme, insert_qdq, int8_input
from pipeline.export.int8.rounding import MOST_INPUTS, Moments, round_weights


def correct(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    scheme: Scheme,
    fp32_layers: Collection[str],
    means: Mapping[str, NDArray[np.float64]],
    images: NDArray[np.float32],
    params: Int8Params,
) -> tuple[onnx.ModelProto, Scheme]:
    """Return a copy of the float32 graph with corrected biases, and the scheme with newly rounded weights.

    Args:
        fp32_layers: names of the layers in float32; their biases are corrected too.
        means: layer name -> mean [O] of each output channel in the float32 network.
        images: float32 [n, 3, S, S].
        params: switches of the two corrections.
    """
    corrected = copy.deepcopy(model)
    originals = constants(model)
    nodes = {node.name: node for node in model.graph.node}
    for layer in layers:
        weight, bias = originals[layer.weight], layer.bias if params.bias_correction else None
        quantized = layer.name not in fp32_layers
        roundable = quantized and layer.kind != "ConvTranspose" and weight[:1].size <= MOST_INPUTS
        if bias is None and not (params.rounding and roundable):
            continue
        quantized_model = insert_qdq(corrected, layers, scheme, fp32_layers)
        if quantized:
            scale = np.float32(scheme.activations[layer.input])
            # int8 to save memory: the rounding of the weights needs all inputs before any output can be computed
            inputs = [chunk[0] for chunk in observe(quantized_model, [int8_input(layer)], images)]
        if params.rounding and roundable:
            moments = Moments(nodes[layer.name], weight.shape[2:], len(images))
            for chunk in inputs:
                moments.add(chunk * scale)
            rounded = _rounded(weight, layer, scheme.weight_scales[layer.name], moments.covariance())
            scheme = replace(scheme, weights_int8={**scheme.weights_int8, layer.name: rounded})
        if bias is None:
            continue
        if quantized:
            session = open_session(single(nodes[layer.name], scheme.weight(layer)))
            mean = channel_mean((session.run(["y"], {"x": chunk * scale})[0] for chunk in inputs), layer)
            mean = mean + originals[bias] if layer.is_convolution else mean
        else:
            mean = channel_mean((chunk[0] for chunk in observe(quantized_model, [layer.output], images)), layer)
        shifted = (originals[bias] + (means[layer.name] - mean)).astype(np.float32)
        tensor = next(tensor for tensor in corrected.graph.initializer if tensor.name == bias)
        tensor.CopyFrom(numpy_helper.from_array(shifted, bias))
    return corrected, scheme


def channel_mean(chunks: Iterable[NDArray[np.float32]], layer: Layer) -> NDArray[np.float64]:
    """Mean [O] of each output channel, over values [n, O, ...] of a convolution or [..., O] of a matrix product."""
    total: NDArray[np.float64] | float = 0.0
    count = 0
    for values in chunks:
        rows = np.moveaxis(values, 1, -1) if layer.is_convolution else values
        rows = rows.reshape(-1, rows.shape[-1])
        total = total + rows.sum(axis=0, dtype=np.float64)
        count += len(rows)
    return np.asarray(total) / count


def _rounded(
    weight: NDArray[np.float32], layer: Layer, scales: NDArray[np.float32], covariance: NDArray[np.float64]
) -> NDArray[np.int8]:
    """Round the layer's weights to int8 multiples of their scales; ``covariance`` has one matrix per group."""
    rows = np.moveaxis(weight, layer.axis, 0)
    groups = len(covariance)
    matrices, scales = rows.reshape(groups, -1, covariance.shape[-1]), scales.reshape(groups, -1)
    rounded = [round_weights(*group) for group in zip(matrices, scales, covariance, strict=True)]
    return np.ascontiguousarray(np.moveaxis(np.concatenate(rounded).reshape(rows.shape), 0, layer.axis))
