"""Convert a float32 graph to a typed float16 graph: float16 weights and arithmetic, float32 input and outputs.

The float32 graph is converted, instead of a half-precision network being exported: batch normalisation is folded in
float32, each weight is rounded only once, and both files have the same graph. The tensor types are float16, so a
strongly typed runtime (TensorRT, where it has the flag) must execute float16.
"""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pipeline.errors import ExportError
from pipeline.export.graph import element_types

_LARGEST = float(np.finfo(np.float16).max)
_SMALLEST = float(np.finfo(np.float16).smallest_subnormal)


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a float16 copy of a float32 onnx.ModelProto; input and outputs keep their names and float32 types.

    Operator inputs without a float16 type (the scales of Resize) stay float32.

    Raises:
        ExportError: the graph contains control flow, or an operator without a float16 version.
    """
    types = element_types(model)
    model = copy.deepcopy(model)
    graph = model.graph
    opset = next(entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"})
    weights = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    fp32: dict[str, str] = {}  # value -> name of its float32 copy
    inputs, outputs = ([value.name for value in values] for values in (graph.input, graph.output))
    half_name = {name: f"{name}_fp16" for name in (*inputs, *outputs)}
    nodes = [_cast(name, half_name[name], f"{name}_to_fp16", TensorProto.FLOAT16) for name in inputs]
    for node in graph.node:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
        _convert_attributes(node)
        for index, name in enumerate(node.input):
            if types.get(name) == TensorProto.FLOAT and not _takes_half(schema.inputs, index):
                if name not in fp32:
                    fp32[name] = f"{name}_fp32"
                    if name not in weights:
                        nodes.append(_cast(half_name.get(name, name), fp32[name], fp32[name], TensorProto.FLOAT))
                node.input[index] = fp32[name]
            elif name in half_name:
                node.input[index] = half_name[name]
        for index, name in enumerate(node.output):
            if types.get(name) == TensorProto.FLOAT and not _takes_half(schema.outputs, index):
                raise ExportError(
                    f"operator {node.op_type} of the network has no float16 version; take fp16 out of export.precisions"
                )
            if name in half_name:
                node.output[index] = half_name[name]
        nodes.append(node)
    nodes += [_cast(half_name[name], name, f"{name}_to_fp32", TensorProto.FLOAT) for name in outputs]
    used = {name for node in nodes for name in node.input}
    initializers = [tensor for tensor in graph.initializer if tensor.name not in weights]
    for name, tensor in weights.items():
        if name in fp32:
            initializers.append(numpy_helper.from_array(numpy_helper.to_array(tensor), fp32[name]))
        if name in used:
            initializers.append(numpy_helper.from_array(_halve(numpy_helper.to_array(tensor)), name))
    _replace(graph.node, nodes)
    _replace(graph.initializer, initializers)
    graph.ClearField("value_info")  # types of the float32 graph
    return model


def _cast(source: str, result: str, name: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [result], name, to=to)


def _halve(values: NDArray[np.float32]) -> NDArray[np.float16]:
    """Round to float16; finite values stay finite, and a single non-zero value (an epsilon) stays non-zero."""
    values = np.where(np.isfinite(values), np.clip(values, -_LARGEST, _LARGEST), values)
    if values.size == 1:
        values = np.where((values != 0) & (np.abs(values) < _SMALLEST), np.copysign(_SMALLEST, values), values)
    return values.astype(np.float16)


def _takes_half(formals: Sequence[onnx.defs.OpSchema.FormalParameter], index: int) -> bool:
    """True if an operator's input or output at ``index`` may be float16; the last formal parameter may repeat."""
    formal = formals[min(index, len(formals) - 1)]
    return "tensor(float16)" in formal.types or "tensor(float)" not in formal.types


def _convert_attributes(node: onnx.NodeProto) -> None:
    """Convert the types and constants in an operator's attributes to float16."""
    for attribute in node.attribute:
        if attribute.type in {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS}:
            raise ExportError(
                f"the network contains control flow ({node.op_type}), which cannot be converted to float16; take fp16 "
                "out of export.precisions"
            )
        if attribute.name in {"to", "dtype"} and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        elif attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(numpy_helper.from_array(_halve(numpy_helper.to_array(attribute.t)), attribute.t.name))
    if node.op_type == "Constant" and node.attribute[0].name in {"value_float", "value_floats"}:
        value = np.asarray(helper.get_attribute_value(node.attribute[0]), dtype=np.float32)
        _replace(node.attribute, [helper.make_attribute("value", numpy_helper.from_array(_halve(value)))])
    elif node.op_type == "ConstantOfShape" and not node.attribute:
        zero = numpy_helper.from_array(np.zeros(1, dtype=np.float16))
        node.attribute.append(helper.make_attribute("value", zero))


def _replace(field: Any, values: list[Any]) -> None:
    values = [copy.deepcopy(value) for value in values]
    del field[:]
    field.extend(values)
