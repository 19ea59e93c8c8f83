"""Round the weights and correct the biases of a network while its quantised form is computed, node by node.

The weights of a layer are rounded for the inputs that the quantised layers before it compute. The bias absorbs the
remaining mean error of each output channel (Nagel et al. 2019, arXiv 1906.04721, section 4.2). The order matters: if
all layers were corrected at once, errors would be corrected more than once, and the logits would be worse than without
any correction. Each node is computed once for all images, so the time grows with the network and not with its square.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from pipeline.config import Int8Params
from pipeline.export.int8.forms import Numbers
from pipeline.export.int8.layers import Layer, constants, observe, open_session
from pipeline.export.int8.rounding import MOST_INPUTS, input_covariance, nearest, round_weights

OnLayer = Callable[[int, int], None]  # layers done, layers in all
Tensors = dict[str, NDArray[np.generic]]


class Correction:
    """Corrects the layers of one float32 network, for any choice of ranges.

    Args:
        model: float32 graph of :func:`pipeline.export.int8.layers.prepare`; not changed.
        layers: of the graph.
        images: float32 [n, 3, S, S]; all of them are held in memory with the values that are still needed.
        params: switches rounding and bias correction.
    """

    def __init__(
        self, model: onnx.ModelProto, layers: Sequence[Layer], images: NDArray[np.float32], params: Int8Params
    ) -> None:
        self._model, self._layers, self._images, self._params = model, layers, images, params

    def corrected(self, numbers: Numbers, on_layer: OnLayer) -> onnx.ModelProto:
        """A copy of the float32 graph in which weights are multiples of their scales, and biases are corrected."""
        graph, by_name = self._model.graph, {layer.name: layer for layer in self._layers}
        fixed, done = constants(self._model), 0
        readers = Counter(name for node in graph.node for name in node.input)
        readers.update(value.name for value in graph.output)
        values: Tensors = {graph.input[0].name: numbers.rounded(graph.input[0].name, self._images)}
        for node in graph.node:
            layer = by_name.get(node.name)
            if layer is not None and layer in numbers.scales:
                fixed[layer.weight] = self._rounded(node, layer, fixed[layer.weight], values[layer.input], numbers)
            computed = self._computed(node, values, fixed)
            if layer is not None:
                self._correct_bias(layer, computed, fixed)
                done += 1
                on_layer(done, len(self._layers))
            values |= {name: numbers.rounded(name, value) for name, value in computed.items()}
            for name in node.input:
                readers[name] -= 1
                if not readers[name]:
                    values.pop(name, None)
        result = onnx.ModelProto()
        result.CopyFrom(self._model)
        for tensor in result.graph.initializer:
            tensor.CopyFrom(numpy_helper.from_array(fixed[tensor.name], tensor.name))
        return result

    def _rounded(
        self,
        node: onnx.NodeProto,
        layer: Layer,
        weight: NDArray[np.float32],
        values: NDArray[np.generic],
        numbers: Numbers,
    ) -> NDArray[np.float32]:
        """The weights as multiples of their scales: the nearest, or those of least error for the input ``values``."""
        scales, levels = numbers.scales[layer], numbers.levels
        rows = np.moveaxis(weight, layer.axis, 0)
        if self._params.rounding and weight.ndim in {2, 4} and weight[:1].size <= MOST_INPUTS:
            covariance = input_covariance(node, weight.shape[2:], np.asarray(values, np.float32))
            groups, _, size = covariance.shape
            steps = round_weights(rows.reshape(groups, -1, size), scales.reshape(groups, -1), covariance, levels)
        else:
            steps = nearest(rows.reshape(len(rows), -1), scales, levels)
        multiples = steps.reshape(rows.shape) * scales.reshape(-1, *[1] * (rows.ndim - 1))
        return np.ascontiguousarray(np.moveaxis(multiples, 0, layer.axis))

    def _computed(
        self, node: onnx.NodeProto, values: Tensors, fixed: Mapping[str, NDArray[np.float32]]
    ) -> dict[str, NDArray[np.float32]]:
        """Run one node; return its outputs by name."""
        given = {name: values[name] for name in node.input if name in values}
        weights = [numpy_helper.from_array(fixed[name], name) for name in dict.fromkeys(node.input) if name in fixed]
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in given.items()
        ]
        names = [name for name in node.output if name]
        single = onnx.ModelProto(ir_version=self._model.ir_version, opset_import=self._model.opset_import)
        outputs = [onnx.ValueInfoProto(name=name) for name in names]
        single.graph.CopyFrom(helper.make_graph([node], "node", inputs, outputs, weights))
        return dict(zip(names, open_session(single, as_written=True).run(names, given), strict=True))

    def _correct_bias(
        self, layer: Layer, computed: dict[str, NDArray[np.float32]], fixed: dict[str, NDArray[np.float32]]
    ) -> None:
        if not self._params.bias_correction or layer.bias is None:
            return
        maps = computed[layer.output]
        missing = (self._means[layer.name] - _channel_mean(maps, layer)).astype(np.float32)
        fixed[layer.bias] = fixed[layer.bias] + missing
        if layer.is_convolution:  # the bias of a matrix product is added by a node of its own
            computed[layer.output] = maps + missing.reshape(-1, *[1] * (maps.ndim - 2))

    @cached_property
    def _means(self) -> dict[str, NDArray[np.float64]]:
        """Layer -> mean of each output channel in the float32 network, [O]."""
        sums: dict[str, NDArray[np.float64] | float] = dict.fromkeys((layer.name for layer in self._layers), 0.0)
        for values in observe(self._model, [layer.output for layer in self._layers], self._images):
            for layer, output in zip(self._layers, values, strict=True):
                sums[layer.name] += _channel_mean(output, layer) * len(output)
        return {name: np.asarray(total) / len(self._images) for name, total in sums.items()}


def _channel_mean(values: NDArray[np.float32], layer: Layer) -> NDArray[np.float64]:
    """Mean [O] of each output channel, over values [n, O, ...] of a convolution or [..., O] of a matrix product."""
    axis = 1 if layer.is_convolution else values.ndim - 1
    others = tuple(other for other in range(values.ndim) if other != axis)
    mean: NDArray[np.float64] = values.mean(axis=others, dtype=np.float64)
    return mean
