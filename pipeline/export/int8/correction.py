"""Round the weights and correct the biases of a network while its quantised form is computed, node by node.

The weights of a layer are rounded for the inputs that the quantised layers before it compute. The bias absorbs the
remaining mean error of each output channel (Nagel et al. 2019, arXiv 1906.04721, section 4.2). The order matters: if
all layers were corrected at once, errors would be corrected more than once, and the logits would be worse than without
any correction. Each node is computed once for all images, so the time grows with the network and not with its square.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from pipeline.config import Int8Params
from pipeline.export.int8.layers import Layer, constants, open_session
from pipeline.export.int8.ranges import Step
from pipeline.export.int8.rounding import MOST_INPUTS, input_covariance, nearest, round_weights

OnLayer = Callable[[int, int], None]  # layers done, layers in all


def correct(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    activations: Mapping[str, Step],
    scales: Mapping[Layer, NDArray[np.float32]],
    means: Mapping[str, NDArray[np.float64]],
    images: NDArray[np.float32],
    params: Int8Params,
    levels: int,
    on_layer: OnLayer,
) -> onnx.ModelProto:
    """Return a copy of the float32 graph in which weights are multiples of their scales, and biases are corrected.

    Args:
        activations: tensor -> its bytes.
        scales: quantised layer -> scale [O] of each output channel.
        means: layer -> mean [O] of each output channel in the float32 network.
        images: float32 [n, 3, S, S]; all of them are held in memory with the values that are still needed.
        levels: largest magnitude of a weight in bytes.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    numbers, by_name = constants(model), {layer.name: layer for layer in layers}
    readers = Counter(name for node in model.graph.node for name in node.input)
    readers.update(value.name for value in model.graph.output)
    values: dict[str, NDArray[np.generic]] = {}
    _keep(values, model.graph.input[0].name, images, activations)
    done = 0
    for node in model.graph.node:
        layer = by_name.get(node.name)
        if layer is not None and layer in scales:
            weight = numbers[layer.weight]
            rounding = params.rounding and weight[:1].size <= MOST_INPUTS
            given = np.asarray(values[layer.input], np.float32) if rounding else None
            numbers[layer.weight] = _rounded(node, layer, weight, scales[layer], given, levels)
        computed = _computed(node, values, numbers, model)
        if layer is not None:
            if params.bias_correction and layer.bias is not None:
                missing = (means[layer.name] - channel_mean(computed[layer.output], layer)).astype(np.float32)
                numbers[layer.bias] = numbers[layer.bias] + missing
                if layer.is_convolution:  # the bias of a matrix product is added by a node of its own
                    maps = computed[layer.output]
                    computed[layer.output] = maps + missing.reshape(-1, *[1] * (maps.ndim - 2))
            done += 1
            on_layer(done, len(layers))
        for name, value in computed.items():
            _keep(values, name, value, activations)
        for name in node.input:
            readers[name] -= 1
            if not readers[name]:
                values.pop(name, None)
    for tensor in result.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numbers[tensor.name], tensor.name))
    return result


def channel_mean(values: NDArray[np.float32], layer: Layer) -> NDArray[np.float64]:
    """Mean [O] of each output channel, over values [n, O, ...] of a convolution or [..., O] of a matrix product."""
    axis = 1 if layer.is_convolution else values.ndim - 1
    mean: NDArray[np.float64] = values.mean(
        axis=tuple(other for other in range(values.ndim) if other != axis), dtype=np.float64
    )
    return mean


def _keep(
    values: dict[str, NDArray[np.generic]], name: str, value: NDArray[np.generic], activations: Mapping[str, Step]
) -> None:
    step = activations.get(name)
    values[name] = value if step is None else step.rounded(np.asarray(value, np.float32))


def _computed(
    node: onnx.NodeProto,
    values: Mapping[str, NDArray[np.generic]],
    numbers: Mapping[str, NDArray[np.float32]],
    model: onnx.ModelProto,
) -> dict[str, NDArray[np.float32]]:
    """Run one node; return its outputs by name."""
    given = {name: values[name] for name in node.input if name in values}
    fixed = [numpy_helper.from_array(numbers[name], name) for name in dict.fromkeys(node.input) if name in numbers]
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in given.items()
    ]
    names = [name for name in node.output if name]
    outputs = [onnx.ValueInfoProto(name=name) for name in names]
    single = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    single.graph.CopyFrom(helper.make_graph([node], "node", inputs, outputs, fixed))
    return dict(zip(names, open_session(single, as_written=True).run(names, given), strict=True))


def _rounded(
    node: onnx.NodeProto,
    layer: Layer,
    weight: NDArray[np.float32],
    scales: NDArray[np.float32],
    given: NDArray[np.float32] | None,
    levels: int,
) -> NDArray[np.float32]:
    """The weights as multiples of their scales: the nearest, or those of least error for the ``given`` input."""
    rows = np.moveaxis(weight, layer.axis, 0)
    if given is None:
        steps = nearest(rows.reshape(len(rows), -1), scales, levels)
    else:
        covariance = input_covariance(node, weight.shape[2:], given)
        groups, _, size = covariance.shape
        steps = round_weights(rows.reshape(groups, -1, size), scales.reshape(groups, -1), covariance, levels)
    multiples = steps.reshape(rows.shape) * scales.reshape(-1, *[1] * (rows.ndim - 1))
    return np.ascontiguousarray(np.moveaxis(multiples, 0, layer.axis))
