"""Int8 quantisation of a float32 ONNX graph, in the form that a runtime executes fastest (forms.py).

The numbers are chosen on calibration images: ranges of least error (ranges.py), then, layer by layer, weights rounded
so that the layer's output changes least, and biases that take up the mean error (rounding.py, correction.py). Every
form has its own, since other values are rounded in each; the histograms are shared.

Weights have one scale per output channel, and 8 or 7 bits. On x86 CPUs without VNNI, the kernels of ONNX Runtime and
OpenVINO add pairs of products in 16 bits: 255 * 64 * 2 fits, but 8-bit weights overflow (measured: a resnet20 changes
its answer for a third of the images). ``auto`` asks the runtimes of this machine.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pipeline.compute.tracing import quiet
from pipeline.config import Int8Params
from pipeline.errors import ExportError
from pipeline.export.int8.correction import Correction, OnLayer
from pipeline.export.int8.forms import (
    FORMS,
    FormName,
    Numbers,
    executed_in_fp32,
    quantized_tensors,
    write_pairs,
)
from pipeline.export.int8.layers import Layer, concatenated, constants, find_layers, observe, open_session, prepare
from pipeline.export.int8.ranges import Histogram, Signed, Step, Values, choose, histograms, step
from pipeline.export.int8.rounding import weight_scales
from pipeline.export.structure import COMPUTE
from pipeline.portable.text import first_line
from pipeline.runtimes.openvino_runtime import openvino_core

_LEVELS = {7: 64, 8: 127}
_LARGEST_BIAS = 2.0**30  # in units of the product of both scales; int32 holds twice that


@dataclass(frozen=True)
class Int8Graph:
    """A Q/DQ graph with float32 input and output."""

    model: onnx.ModelProto
    fp32_layers: tuple[str, ...]  # names of the nodes of ``COMPUTE`` that stay float32, in the order of computation


class Quantizer:
    """Quantises one network. Equal inputs give equal graphs on the same machine.

    Args:
        model: float32 onnx.ModelProto; not changed.
        images: calibration images, float32 [n, 3, S, S], normalised, n >= 1.
        params: block ``export.int8`` of params.yaml, with a switch for each step.
    """

    def __init__(self, model: onnx.ModelProto, images: NDArray[np.float32], params: Int8Params) -> None:
        self._original, self._images, self._params = model, images, params
        self._graphs: dict[FormName, Int8Graph] = {}
        self._counted: dict[str, Histogram] = {}
        self.weight_bits = weight_bits(params)

    def graph(self, form: FormName, on_layer: OnLayer = lambda done, total: None) -> Int8Graph:
        """The network in the form for a runtime; made once, so callers must not change it.

        Raises:
            ExportError: ONNX Runtime cannot run or quantise the network.
        """
        try:
            if form not in self._graphs:
                with quiet():
                    self._graphs[form] = self._graph(form, on_layer)
            return self._graphs[form]
        except Exception as error:  # the libraries raise many types of errors
            raise ExportError(
                f"ONNX Runtime cannot quantise the network to int8 ({first_line(error)}); take int8 out of "
                "export.precisions or choose another network"
            ) from error

    def _graph(self, form: FormName, on_layer: OnLayer) -> Int8Graph:
        model, image, signed = self._model, self._images[:1], FORMS[form].signed
        unsigned: dict[str, Signed] = dict.fromkeys(concatenated(model) if form == "openvino" else (), "never")
        excluded: set[str] = set()  # nodes that int8 does not suit, found one after the other
        while True:
            nodes = FORMS[form].nodes(model, self._layers, excluded)
            if not any(layer.name in nodes for layer in self._layers):
                raise ValueError("no layer keeps its values in 8 bits")
            placed = write_pairs(model, FORMS[form], nodes, image)
            found = self._histograms(quantized_tensors(placed))
            activations = {name: choose(found[name], unsigned.get(name, signed)) for name in found}
            lost = {name for name, histogram in found.items() if histogram.is_lost_in(activations[name])}
            # in the runtime, a layer without int8 kernel would compute from bytes in float32: slower than without pairs
            unsuited = set(executed_in_fp32(placed, form)) & set(nodes)
            unsuited |= {node.name for node in model.graph.node if lost & {*node.input, *node.output}}
            if unsuited <= excluded:
                break
            excluded |= unsuited
        scales = {layer: self._scale(layer, activations) for layer in self._layers if layer.name in nodes}
        numbers = Numbers(activations, scales, _LEVELS[self.weight_bits])
        written = write_pairs(self._correction.corrected(numbers, on_layer), FORMS[form], nodes, image, numbers)
        fp32 = (node.name for node in model.graph.node if node.op_type in COMPUTE and node.name not in nodes)
        return Int8Graph(written, tuple(fp32))

    @cached_property
    def _model(self) -> onnx.ModelProto:
        return prepare(self._original)

    @cached_property
    def _constants(self) -> dict[str, NDArray[np.float32]]:
        return constants(self._model)

    @cached_property
    def _layers(self) -> list[Layer]:
        return find_layers(self._model)

    def _histograms(self, names: list[str]) -> dict[str, Histogram]:
        """Of the activations ``names`` in the float32 network; each is counted once for all forms."""
        missing = [name for name in names if name not in self._counted]

        def passes() -> Iterator[Values]:
            return (dict(zip(missing, chunk, strict=True)) for chunk in observe(self._model, missing, self._images))

        if missing:
            self._counted |= histograms(missing, passes, ends_only=self._params.ranges == "minmax")
        return {name: self._counted[name] for name in names}

    @cached_property
    def _correction(self) -> Correction:
        return Correction(self._model, self._layers, self._images, self._params)

    def _scale(self, layer: Layer, activations: Mapping[str, Step]) -> NDArray[np.float32]:
        """Scale of each output channel, [O]; large enough that the bias fits into an int32."""
        rows = np.moveaxis(self._constants[layer.weight], layer.axis, 0)
        scales = weight_scales(rows.reshape(len(rows), -1), self._params.ranges, _LEVELS[self.weight_bits])
        if layer.bias is None or not layer.is_convolution:
            return scales
        least = np.abs(self._constants[layer.bias]) / (float(activations[layer.input].scale) * _LARGEST_BIAS)
        return np.maximum(scales, least.astype(np.float32))


def weight_bits(params: Int8Params) -> int:
    """Bits of the weights: 7 or 8, as ``export.int8.weight_bits`` says; for ``auto`` as many as this machine can."""
    if params.weight_bits != "auto":
        return params.weight_bits
    return 8 if _adds_products_exactly() else 7


@cache
def _adds_products_exactly() -> bool:
    """Whether both runtimes add products of the largest bytes without overflow on this machine."""
    channels = 64
    weight = np.ones((channels, channels, 1, 1), np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["input", "weight"], ["sum"], "conv")],
        "sums",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, channels, 8, 8])],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, [1, channels, 8, 8])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    ones = np.ones((1, channels, 8, 8), np.float32)
    steps = {"input": step(0.0, 1.0, signed=False), "sum": step(0.0, float(channels), signed=False)}
    scales = {layer: np.full(channels, 1 / 127, np.float32) for layer in find_layers(model)}
    with quiet():
        pairs = write_pairs(model, FORMS["onnxruntime"], ["conv"], ones, Numbers(steps, scales, 127))
        sums = [open_session(pairs).run(None, {"input": ones})[0]]
    core = openvino_core()
    compiled = core.compile_model(core.read_model(pairs.SerializeToString()), "CPU")
    sums.append(compiled(ones)[0])
    return all(np.allclose(found, channels, rtol=0.02) for found in sums)
