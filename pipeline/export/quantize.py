"""Int8 by explicit Q/DQ pairs, in the one form that ONNX Runtime, OpenVINO and TensorRT all take.

TensorRT wants int8 with zero-point 0 on both sides and no quantised biases; per-channel weights keep the accuracy of
depthwise convolutions. Weights use 7 of the 8 bits: on x86 CPUs without VNNI the int8 kernels of ONNX Runtime and
OpenVINO add pairs of products in 16 bits, which 8-bit weights overflow (a resnet8 of 99 % top-1 answered 21 % of the
images differently), while 255 * 64 * 2 fits. Outputs of convolutions are quantised too, because without that
ONNX Runtime computes them in float32; those of the matrix products are not, so that logits keep their resolution.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
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
            onnx.save(model, original)  # a model in memory would be changed by the next call
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
                    "DedicatedQDQPair": True,
                    "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],
                },
            )
            return onnx.load(quantized)
    except Exception as error:  # its parts raise whatever they meet
        raise ExportError(
            f"ONNX Runtime cannot quantise the network to int8 ({first_line(error)}); take int8 out of "
            "export.precisions or choose another network"
        ) from error


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Feeds the images in chunks."""

    def __init__(self, images: NDArray[np.float32], name: str) -> None:
        self._feeds: Iterator[dict[str, NDArray[np.float32]]] = (
            {name: images[start : start + _CHUNK]} for start in range(0, len(images), _CHUNK)
        )

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._feeds, None)
