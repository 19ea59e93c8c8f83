"""A typed float16 graph: weights and arithmetic in float16, float32 only at the boundary.

Converting the exported float32 graph, rather than exporting a half-precision network, rounds each weight once, after
batch normalisation was folded into it in float32, and keeps both files the same graph. The precision is in the types,
so a strongly typed runtime (TensorRT, where the flag exists) executes what the file says.
"""

from __future__ import annotations

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
    """A float16 copy of a float32 onnx.ModelProto; input and output keep their names and float32 types.

    Inputs that an operator only takes in float32 (the scales of Resize) stay float32.

    Raises:
        ExportError: the graph holds control flow, or an operator without a float16 form.
    """
    types = element_types(model)
    model = copy.deepcopy(model)
    graph = model.graph
    opset = next(entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"})
    weights = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    kept: dict[str, str] = {}  # float32 value -> its name where it must stay float32
    nodes: list[onnx.NodeProto] = []
    half_name = {value.name: f"{value.name}_fp16" for value in (*graph.input, *graph.output)}
    nodes.extend(
        helper.make_node("Cast", [value.name], [half_name[value.name]], f"{value.name}_to_fp16", to=TensorProto.FLOAT16)
        for value in graph.input
    )
    for node in graph.node:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
        _convert_attributes(node)
        for index, name in enumerate(node.input):
            if types.get(name) == TensorProto.FLOAT and not _takes_half(schema.inputs, index):
                if name not in kept:
                    kept[name] = f"{name}_fp32"
                    if name not in weights:
                        source = half_name.get(name, name)
                        nodes.append(helper.make_node("Cast", [source], [kept[name]], kept[name], to=TensorProto.FLOAT))
                node.input[index] = kept[name]
            elif name in half_name:
                node.input[index] = half_name[name]
        for index, name in enumerate(node.output):
            if types.get(name) == TensorProto.FLOAT and not _takes_half(schema.outputs, index):
                raise ExportError(
                    f"operator {node.op_type} of the network has no float16 form; take fp16 out of export.precisions"
                )
            if name in half_name:
                node.output[index] = half_name[name]
        nodes.append(node)
    nodes.extend(
        helper.make_node("Cast", [half_name[value.name]], [value.name], f"{value.name}_to_fp32", to=TensorProto.FLOAT)
        for value in graph.output
    )
    read = {name for node in nodes for name in node.input}
    initializers = [tensor for tensor in graph.initializer if tensor.name not in weights]
    for name, tensor in weights.items():
        if name in kept:
            initializers.append(numpy_helper.from_array(numpy_helper.to_array(tensor), kept[name]))
        if name in read:
            initializers.append(numpy_helper.from_array(_halve(numpy_helper.to_array(tensor)), name))
    _replace(graph.node, nodes)
    _replace(graph.initializer, initializers)
    graph.ClearField("value_info")  # types of the float32 graph
    return model


def _halve(values: NDArray[np.float32]) -> NDArray[np.float16]:
    """Nearest float16; finite values stay finite, and a constant that is not zero (an epsilon) does not become zero."""
    values = np.where(np.isfinite(values), np.clip(values, -_LARGEST, _LARGEST), values)
    if values.size == 1:
        values = np.where((values != 0) & (np.abs(values) < _SMALLEST), np.copysign(_SMALLEST, values), values)
    return values.astype(np.float16)


def _takes_half(formals: Sequence[onnx.defs.OpSchema.FormalParameter], index: int) -> bool:
    """Whether an operator's input or output at ``index`` may be float16; the last formal one stands for all further."""
    formal = formals[min(index, len(formals) - 1)]
    return "tensor(float16)" in formal.types or "tensor(float)" not in formal.types


def _convert_attributes(node: onnx.NodeProto) -> None:
    """Make the types and constants that an operator carries in its attributes float16."""
    for attribute in node.attribute:
        if attribute.type in {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS}:
            raise ExportError(
                f"the network holds control flow ({node.op_type}), which has no float16 form here; take fp16 out of "
                "export.precisions"
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
