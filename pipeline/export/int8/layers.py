"""The convolutions and matrix products of an ONNX graph, as quantisation sees them, and passes of images through it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from pipeline.runtimes.onnxruntime_runtime import SESSION_ENTRIES

_PIXELS = 2**18  # per forward pass: bounds the memory that the intermediate values need
_BIAS = 2  # input of Conv and ConvTranspose
_MATRIX = 2  # axes of a matrix


@dataclass(frozen=True)
class Layer:
    """One convolution or matrix product with constant weights.

    Attributes:
        name: of its node, which is that of its weights without ".weight", as the network names its modules.
        kind: Conv, ConvTranspose, Gemm or MatMul.
        input: value that the weights multiply.
        output: its result, without the bias of a matrix product.
        weight: constant.
        axis: of the output channels in the weight.
        bias: constant, one value per output channel, that this layer alone adds; None if there is none.
    """

    name: str
    kind: str
    input: str
    output: str
    weight: str
    axis: int
    bias: str | None


def named(model: onnx.ModelProto, kinds: Sequence[str]) -> onnx.ModelProto:
    """A copy whose nodes of these kinds are called like their weights, or numbered; and whose Conv all have a bias."""
    model = copy.deepcopy(model)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    taken = {node.name for node in model.graph.node if node.op_type not in kinds}
    for index, node in enumerate(node for node in model.graph.node if node.op_type in kinds):
        name = next((name for name in node.input[:_BIAS] if name in shapes), "").removesuffix(".weight")
        node.name = name if name and name not in taken else f"{node.op_type}_{index}"
        taken.add(node.name)
        if node.op_type == "Conv" and len(node.input) == _BIAS and node.input[1] in shapes:
            bias = np.zeros(shapes[node.input[1]][0], np.float32)
            node.input.append(f"{node.name}.zero_bias")
            model.graph.initializer.append(numpy_helper.from_array(bias, node.input[_BIAS]))
    return model


def find_layers(model: onnx.ModelProto, kinds: Sequence[str]) -> list[Layer]:
    """The layers of a graph from :func:`named`, in the order of computation; a product of computed values is none."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    layers = []
    for node in model.graph.node:
        if node.op_type not in kinds:
            continue
        source, weight = node.input[:_BIAS]
        # only a second factor has one scale per output channel
        if weight not in shapes or source in shapes or (node.op_type == "MatMul" and len(shapes[weight]) != _MATRIX):
            continue
        layers.append(
            Layer(
                name=node.name,
                kind=node.op_type,
                input=source,
                output=node.output[0],
                weight=weight,
                axis=_channel_axis(node),
                bias=_bias(node, readers, shapes),
            )
        )
    return layers


def constants(model: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    """The constants of a graph by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def set_constants(model: onnx.ModelProto, values: dict[str, NDArray[np.float32]]) -> None:
    """Replace constants of a graph, in place."""
    for tensor in model.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))


def observe(
    model: onnx.ModelProto, names: Sequence[str], images: NDArray[np.float32]
) -> Iterator[list[NDArray[np.float32]]]:
    """The named values for the images [n, 3, S, S], a few images at a time, so that few are held at once."""
    session = open_session(_leading_to(model, names))
    chunk = max(1, _PIXELS // (images.shape[-2] * images.shape[-1]))
    for start in range(0, len(images), chunk):
        yield session.run(list(names), {model.graph.input[0].name: images[start : start + chunk]})


def open_session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """A session on the CPU that computes Q/DQ graphs with integers, as the deployed file is computed."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    for key, value in SESSION_ENTRIES["int8"].items():
        options.add_session_config_entry(key, value)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def single(layer: onnx.NodeProto, weight: NDArray[np.float32]) -> onnx.ModelProto:
    """A graph of one layer alone, without a bias: values "x" to values "y"."""
    node = helper.make_node(layer.op_type, ["x", "weight"], ["y"])
    node.attribute.extend(layer.attribute)
    unknown = [
        helper.make_value_info(name, helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None)) for name in ("x", "y")
    ]
    graph = helper.make_graph([node], "single", unknown[:1], unknown[1:], [numpy_helper.from_array(weight, "weight")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def _leading_to(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy that returns the named values and computes nothing that they do not need."""
    needed, nodes = set(names), []
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            needed |= set(node.input)
            nodes.append(node)
    part = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    part.graph.name = model.graph.name
    part.graph.node.extend(reversed(nodes))
    part.graph.input.extend(model.graph.input)
    part.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in needed)
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return part


def _channel_axis(node: onnx.NodeProto) -> int:
    match node.op_type:
        case "Conv":
            return 0
        case "Gemm":
            return 0 if any(attribute.name == "transB" and attribute.i for attribute in node.attribute) else 1
        case _:
            return 1


def _bias(
    node: onnx.NodeProto, readers: dict[str, list[onnx.NodeProto]], shapes: dict[str, tuple[int, ...]]
) -> str | None:
    if node.op_type in {"Conv", "ConvTranspose"}:
        bias = node.input[_BIAS] if len(node.input) > _BIAS else None
    else:
        after = readers.get(node.output[0], [])
        added = [name for name in after[0].input if name in shapes] if len(after) == 1 else []
        bias = added[0] if added and after[0].op_type == "Add" and len(shapes[added[0]]) == 1 else None
    return bias if bias is not None and bias in shapes and len(readers[bias]) == 1 else None
