"""Check the graph of an ONNX file: precision of every layer, standard operators, form of the int8 quantisers."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from pipeline.errors import ExportError
from pipeline.export.graph import element_types
from pipeline.portable.text import brief, first_line
from pipeline.runtimes import ENERGY, INPUT, LOGITS

COMPUTE = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_PRECISION: dict[int, str] = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
_INTEGERS = frozenset({TensorProto.INT32, TensorProto.INT64})
_BIAS = 2  # index of the bias among the inputs of Conv, ConvTranspose and Gemm


@dataclass(frozen=True)
class Structure:
    """Structure of one ONNX graph.

    Attributes:
        count: of the convolutions and matrix products.
        shares: precision -> share of the convolutions and matrix products, in sum 1; "int8" if both operands come from
            a DequantizeLinear. Integer arithmetic on shapes does not count.
    """

    names: tuple[str, ...]  # inputs, then outputs
    count: int
    shares: dict[str, float]
    fp32_layers: tuple[str, ...]  # names of the convolutions and matrix products in fp32
    foreign_operators: list[str]  # outside the standard ONNX domain
    refused_by_tensorrt: list[str]  # Q/DQ nodes without an int8 zero-point of 0, compute nodes with a quantised bias


def inspect(model: onnx.ModelProto) -> Structure:
    """Read the structure of an onnx.ModelProto without control flow."""
    graph = model.graph
    types = element_types(model)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    dequantized = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    compute = [node for node in graph.node if node.op_type in COMPUTE]
    quantizers = [node for node in graph.node if node.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    weights = {node.output[0] for node in quantizers if node.input[0] in constants}
    precisions = [
        (node.name, _precision(node, types, dequantized, weights))
        for node in compute
        if types.get(node.output[0]) not in _INTEGERS
    ]
    refused = [node for node in quantizers if not _is_signed_symmetric(node, constants)]
    refused += [node for node in compute if dequantized & set(node.input[_BIAS:])]
    counts = Counter(precision for _, precision in precisions)
    return Structure(
        names=tuple(value.name for value in (*graph.input, *graph.output)),
        count=len(precisions),
        shares={precision: count / len(precisions) for precision, count in sorted(counts.items())},
        fp32_layers=tuple(name for name, precision in precisions if precision == "fp32"),
        foreign_operators=sorted(
            {f"{node.domain}.{node.op_type}" for node in graph.node if node.domain not in {"", "ai.onnx"}}
        ),
        refused_by_tensorrt=[node.name or node.output[0] for node in refused],
    )


def check_structure(
    path: Path, precision: str, fp32_layers: Collection[str] = (), *, for_tensorrt: bool = False
) -> Structure:
    """Check that a file is one standard ONNX file with all convolutions and matrix products in ``precision``.

    Args:
        fp32_layers: names of the nodes of an int8 file that must be fp32; all others must be int8.
        for_tensorrt: whether zero-points must be int8 zeros and biases float.

    Raises:
        ExportError: the file is not readable, needs a second file, has vendor operators or computes in another
            precision; or TensorRT would refuse its quantisers.
    """
    try:
        model = onnx.load(path, load_external_data=False)
        external = sum(tensor.data_location == TensorProto.EXTERNAL for tensor in model.graph.initializer)
        structure = None if external else inspect(model)
    except Exception as error:  # a damaged file fails in protobuf or in shape inference
        raise ExportError(f"{path.name} is not readable as ONNX ({first_line(error)}); export it again") from error
    if structure is None:
        raise ExportError(
            f"{path.name} keeps {external} of its tensors in another file; export it again with embedded weights"
        )
    if structure.foreign_operators:
        raise ExportError(
            f"{path.name} holds the operators {brief(', '.join(structure.foreign_operators))}, which are not standard "
            "ONNX; choose another network"
        )
    if structure.names != (INPUT, LOGITS, ENERGY):
        raise ExportError(
            f"{path.name} has the input and outputs {brief(', '.join(structure.names))} where "
            f"{INPUT}, {LOGITS} and {ENERGY} are expected; export it again"
        )
    exceptions = f" but for {', '.join(fp32_layers)}" if fp32_layers else ""
    shares = ", ".join(f"{share:.0%} {name}" for name, share in structure.shares.items()) or "none at all"
    fp32_allowed = precision == "int8" and set(structure.fp32_layers) == set(fp32_layers)
    if set(structure.shares) - ({"fp32"} if fp32_allowed else set()) != {precision}:
        raise ExportError(
            f"{path.name} should hold convolutions and matrix products in {precision} only{exceptions}, but holds "
            f"{shares}; take {precision} out of export.precisions or choose another network"
        )
    if for_tensorrt and structure.refused_by_tensorrt:
        raise ExportError(
            f"{path.name} holds quantisers that are not int8 with zero-point 0, or quantised biases (first: "
            f"{brief(structure.refused_by_tensorrt[0])}), which TensorRT refuses; export it again"
        )
    return structure


def _precision(node: onnx.NodeProto, types: dict[str, int], dequantized: set[str], weights: set[str]) -> str:
    operands = set(node.input[:_BIAS])
    if operands <= dequantized and operands & weights:  # runtimes compute products of two activations in float
        return "int8"
    operand_types = {types.get(name, TensorProto.UNDEFINED) for name in operands}
    return "mixed" if len(operand_types) > 1 else _PRECISION.get(min(operand_types), f"ONNX type {min(operand_types)}")


def _is_signed_symmetric(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> bool:
    """True if the zero-point is a constant int8 zero; without a zero-point a QuantizeLinear is uint8."""
    point = constants.get(node.input[2]) if len(node.input) > 2 else None
    return point is not None and point.data_type == TensorProto.INT8 and not np.any(numpy_helper.to_array(point))
