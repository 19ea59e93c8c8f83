"""What an ONNX file really contains, read from the graph and not from its name."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from pipeline.errors import ExportError
from pipeline.export.capture import first_line
from pipeline.export.graph import element_types

COMPUTE = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_PRECISION: dict[int, str] = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
_INTEGERS = frozenset({TensorProto.INT32, TensorProto.INT64})
_BIAS = 2  # input of Conv, ConvTranspose and Gemm


@dataclass(frozen=True)
class Structure:
    """Facts about one graph.

    Attributes:
        shares: share of the convolutions and matrix products by precision; "int8" if both operands come out of a
            DequantizeLinear of int8. Integer arithmetic on shapes is not counted. Sums to 1, or is empty.
        foreign_operators: operators outside of the standard ONNX domain.
        faulty_quantizers: Q/DQ nodes that are not int8 with zero-point 0 throughout.
        quantized_biases: compute nodes whose bias is quantised.
    """

    shares: dict[str, float]
    foreign_operators: tuple[str, ...]
    faulty_quantizers: tuple[str, ...]
    quantized_biases: tuple[str, ...]


def inspect(model: onnx.ModelProto) -> Structure:
    """Facts about an onnx.ModelProto without control flow."""
    graph = model.graph
    types = element_types(model)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    counts: Counter[str] = Counter()
    for node in graph.node:
        if node.op_type in COMPUTE and types.get(node.output[0]) not in _INTEGERS:
            counts[_precision(node, types, producers)] += 1
    total = sum(counts.values())
    return Structure(
        shares={precision: count / total for precision, count in sorted(counts.items())},
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


def check_structure(path: Path, precision: str) -> Structure:
    """Check that a file is what its name says: one standard ONNX file, all compute in ``precision``.

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
            f"{path.name} holds the operators {', '.join(structure.foreign_operators)}, which are not standard ONNX; "
            "choose another network"
        )
    found = ", ".join(f"{share:.0%} {name}" for name, share in structure.shares.items()) or "none at all"
    if structure.shares != {precision: 1.0}:
        raise ExportError(
            f"{path.name} should hold convolutions and matrix products in {precision} only, but holds {found}; take "
            f"{precision} out of export.precisions or choose another network"
        )
    if structure.faulty_quantizers:
        raise ExportError(
            f"{path.name} holds {len(structure.faulty_quantizers)} quantisers that are not int8 with zero-point 0 "
            f"(first: {structure.faulty_quantizers[0]}), which TensorRT refuses; export it again"
        )
    if structure.quantized_biases:
        raise ExportError(
            f"{path.name} quantises {len(structure.quantized_biases)} biases (first: {structure.quantized_biases[0]}), "
            "which TensorRT refuses; export it again"
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
