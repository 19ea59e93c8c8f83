"""What an ONNX file really contains, read from the graph and not from its name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from pipeline.errors import ExportError, brief
from pipeline.export.capture import first_line
from pipeline.export.graph import element_types
from pipeline.runtimes import ENERGY, INPUT, LOGITS

COMPUTE = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_PRECISION: dict[int, str] = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
_INTEGERS = frozenset({TensorProto.INT32, TensorProto.INT64})
_BIAS = 2  # input of Conv, ConvTranspose and Gemm


@dataclass(frozen=True)
class Structure:
    """Facts about one graph.

    Attributes:
        names: of the inputs, then of the outputs.
        shares: share of the convolutions and matrix products by precision; "int8" if both operands come out of a
            DequantizeLinear of int8. Integer arithmetic on shapes is not counted. Sums to 1, or is empty.
        float_nodes: names of the convolutions and matrix products in fp32.
        foreign_operators: operators outside of the standard ONNX domain.
        faulty_quantizers: Q/DQ nodes that are not int8 with zero-point 0 throughout.
        quantized_biases: compute nodes whose bias is quantised.
    """

    names: tuple[str, ...]
    shares: dict[str, float]
    float_nodes: tuple[str, ...]
    foreign_operators: tuple[str, ...]
    faulty_quantizers: tuple[str, ...]
    quantized_biases: tuple[str, ...]


def inspect(model: onnx.ModelProto) -> Structure:
    """Facts about an onnx.ModelProto without control flow."""
    graph = model.graph
    types = element_types(model)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    precisions = [
        (node.name, _precision(node, types, producers))
        for node in graph.node
        if node.op_type in COMPUTE and types.get(node.output[0]) not in _INTEGERS
    ]
    counts = Counter(precision for _, precision in precisions)
    total = len(precisions)
    return Structure(
        names=tuple(value.name for value in (*graph.input, *graph.output)),
        shares={precision: count / total for precision, count in sorted(counts.items())},
        float_nodes=tuple(name for name, precision in precisions if precision == "fp32"),
        foreign_operators=tuple(
            sorted({f"{node.domain}.{node.op_type}" for node in graph.node if node.domain not in {"", "ai.onnx"}})
        ),
        faulty_quantizers=tuple(
            node.name or node.output[0]
            for node in graph.node
            if node.op_type in {"QuantizeLinear", "DequantizeLinear"} and not _is_signed_symmetric(node, constants)
        ),
        quantized_biases=tuple(
            node.name or node.output[0]
            for node in graph.node
            if node.op_type in COMPUTE and len(node.input) > _BIAS and _is_dequantized(node.input[_BIAS], producers)
        ),
    )


def check_structure(path: Path, precision: str, float_nodes: Collection[str] = ()) -> Structure:
    """Check that a file is what its name says: one standard ONNX file, all compute in ``precision``.

    Args:
        float_nodes: names of the nodes of an int8 file that are to be in fp32, and no others.

    Raises:
        ExportError: it cannot be read, needs a second file, holds operators of one vendor, or computes in another
            precision; for int8 also if a zero-point is not an int8 zero or a bias is quantised.
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
    excepted = f" but for {', '.join(float_nodes)}" if float_nodes else ""
    found = ", ".join(f"{share:.0%} {name}" for name, share in structure.shares.items()) or "none at all"
    listed = precision == "int8" and set(structure.float_nodes) == set(float_nodes)
    if set(structure.shares) - ({"fp32"} if listed else set()) != {precision}:
        raise ExportError(
            f"{path.name} should hold convolutions and matrix products in {precision} only{excepted}, but holds "
            f"{found}; take {precision} out of export.precisions or choose another network"
        )
    if structure.faulty_quantizers:
        raise ExportError(
            f"{path.name} holds {len(structure.faulty_quantizers)} quantisers that are not int8 with zero-point 0 "
            f"(first: {brief(structure.faulty_quantizers[0])}), which TensorRT refuses; export it again"
        )
    if structure.quantized_biases:
        raise ExportError(
            f"{path.name} quantises {len(structure.quantized_biases)} biases (first: "
            f"{brief(structure.quantized_biases[0])}), which TensorRT refuses; export it again"
        )
    return structure


def _precision(node: onnx.NodeProto, types: dict[str, int], producers: dict[str, onnx.NodeProto]) -> str:
    operands = node.input[:_BIAS]
    if all(_is_dequantized(name, producers) for name in operands):
        return "int8"
    found = {types.get(name, TensorProto.UNDEFINED) for name in operands}
    if len(found) > 1:
        return "mixed"
    element_type = found.pop()
    return _PRECISION.get(element_type, f"ONNX type {element_type}")


def _is_dequantized(name: str, producers: dict[str, onnx.NodeProto]) -> bool:
    return name in producers and producers[name].op_type == "DequantizeLinear"


def _is_signed_symmetric(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> bool:
    """Without a zero-point a QuantizeLinear is uint8, so it must be there and be constant."""
    zero_point = constants.get(node.input[2]) if len(node.input) > _BIAS else None
    if zero_point is None or zero_point.data_type != TensorProto.INT8:
        return False
    return not np.any(numpy_helper.to_array(zero_point))
