"""Int8 by explicit Q/DQ pairs, in the one form that ONNX Runtime, OpenVINO and TensorRT all take.

* TensorRT wants int8 with zero-point 0 on both sides and no quantised biases; one scale per output channel keeps the
  accuracy of depthwise convolutions.
* Weights use 7 of the 8 bits. On x86 CPUs without VNNI the kernels of ONNX Runtime and OpenVINO add pairs of products
  in 16 bits, which 8-bit weights overflow (measured: a resnet8 then answers a fifth of the images differently), while
  255 * 64 * 2 fits.
* Outputs of convolutions are quantised too, or ONNX Runtime computes the convolutions in float32. Those of matrix
  products are not, so that logits keep their resolution.
* Every reader of a quantised value has a Q/DQ pair of its own, and Gemm has no bias, because ONNX Runtime's integer
  kernels match nothing else. The values are the same either way.
"""

from __future__ import annotations

import copy
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from pipeline.errors import ExportError
from pipeline.export.capture import first_line
from pipeline.export.quiet import quiet

_CHUNK = 32  # images per calibration pass; the ranges do not depend on it
_QUANTIZED = ["Conv", "ConvTranspose", "Gemm", "MatMul"]
_BIAS = 2  # input of Gemm


def to_int8(model: onnx.ModelProto, images: NDArray[np.float32]) -> onnx.ModelProto:
    """A Q/DQ copy of a float32 onnx.ModelProto; input and output stay float32.

    Args:
        images: float32 [n, 3, S, S], normalised; the smallest and largest value of each tensor on them set its range.

    Raises:
        ExportError: ONNX Runtime cannot quantise the network.
    """
    try:
        with quiet(), tempfile.TemporaryDirectory() as folder:
            original, prepared, quantized = (Path(folder) / f"{name}.onnx" for name in ("fp32", "prepared", "int8"))
            onnx.save(_split_biases(model), original)
            # Folds batch normalisation and infers types; torch's graphs come with their symbolic shapes.
            quant_pre_process(original, prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared,
                quantized,
                _Reader(images, model.graph.input[0].name),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=_QUANTIZED,
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                extra_options={
                    "ActivationSymmetric": True,
                    "WeightSymmetric": True,
                    "QuantizeBias": False,
                    "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],
                },
            )
            return _separate_pairs(onnx.load(quantized))
    except Exception as error:  # its parts raise whatever they meet
        raise ExportError(
            f"ONNX Runtime cannot quantise the network to int8 ({first_line(error)}); take int8 out of "
            "export.precisions or choose another network"
        ) from error


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
    return _with_nodes(model, nodes)


def _separate_pairs(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every reader of a quantised activation has a Q/DQ pair of its own."""
    producers = {name: node for node in model.graph.node for name in node.output}
    readers: Counter[str] = Counter()
    nodes = []
    for original in model.graph.node:
        node = copy.deepcopy(original)
        for index, name in enumerate(node.input):
            dequantize = producers.get(name)
            if dequantize is None or dequantize.op_type != "DequantizeLinear" or dequantize.input[0] not in producers:
                continue  # not a quantised activation; the pair of a weight has no QuantizeLinear
            readers[name] += 1
            if readers[name] == 1:
                continue
            pair = [copy.deepcopy(producers[dequantize.input[0]]), copy.deepcopy(dequantize)]
            for part in pair:
                part.name = f"{part.name}_{readers[name]}"
                part.output[0] = f"{part.output[0]}_{readers[name]}"
            pair[1].input[0] = pair[0].output[0]
            node.input[index] = pair[1].output[0]
            nodes.extend(pair)
        nodes.append(node)
    return _with_nodes(model, nodes)


def _with_nodes(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    model = copy.deepcopy(model)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Feeds the images in chunks."""

    def __init__(self, images: NDArray[np.float32], name: str) -> None:
        self._feeds: Iterator[dict[str, NDArray[np.float32]]] = (
            {name: images[start : start + _CHUNK]} for start in range(0, len(images), _CHUNK)
        )

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._feeds, None)
