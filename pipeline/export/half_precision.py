"""Convert a float32 graph to a typed float16 graph: float16 weights and arithmetic, float32 input and outputs.

The float32 graph is converted, instead of a half-precision network being exported: batch normalisation is folded in
float32, each weight is rounded only once, and both files have the same graph. The tensor types are float16, so a
strongly typed runtime (TensorRT, where it has the flag) must execute float16.
"""

import copy

import onnx
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.transformers.float16 import convert_float_to_float16


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a float16 copy of a float32 onnx.ModelProto; input and outputs keep their names and float32 types.

    Every operator is converted, also those that ONNX Runtime's converter leaves in float32 by default. Operator inputs
    without a float16 type (the scales of Resize) stay float32.
    """
    half: onnx.ModelProto = convert_float_to_float16(copy.deepcopy(model), keep_io_types=True, op_block_list=[])
    ONNXModel(half).topological_sort()
    return half
