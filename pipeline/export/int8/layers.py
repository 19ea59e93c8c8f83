"""The layers of an ONNX graph that can be quantised, and the values that the graph computes for images."""

import copy
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.utils import Extractor
from onnxruntime.quantization.shape_inference import quant_pre_process

from pipeline.export.structure import COMPUTE

_PIXELS = 2**18  # input pixels per forward pass; limits the memory of the intermediate values
_MOVING = frozenset({"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Split", "Slice", "Pad", "MaxPool"})
_BIAS = 2  # index of the bias among the inputs of Conv, ConvTranspose and Gemm


@dataclass(frozen=True)
class Layer:
    """One convolution or matrix product with constant weights.

    Attributes:
        name: of the node; usually the name of the torch module.
        kind: Conv, ConvTranspose, Gemm or MatMul.
        input: name of the activations, the first operand.
        output: name of the result; for a matrix product before its bias is added.
        weight: name of the constant weights.
        axis: axis of the output channels in the weights.
        bias: name of the constant bias [O] that no other layer uses; None without one.
    """

    name: str
    kind: str
    input: str
    output: str
    weight: str
    axis: int
    bias: str | None

    @property
    def is_convolution(self) -> bool:
        """True if channels are axis 1 of the output, else the last axis."""
        return self.kind in {"Conv", "ConvTranspose"}


def prepare(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with batch normalisation folded, an Add for the bias of each Gemm, and a bias in every Conv. Each
    layer gets a unique name: the name of its weights without ".weight", or its operator and a number.
    """
    with tempfile.TemporaryDirectory() as folder:
        original, prepared = Path(folder) / "fp32.onnx", Path(folder) / "prepared.onnx"
        onnx.save(_split_biases(model), original)
        # optimised, HardSwish would be HardSigmoid and Mul, which OpenVINO computes slowly; torch has inferred shapes
        has_hardswish = any(node.op_type == "HardSwish" for node in model.graph.node)
        quant_pre_process(original, prepared, skip_optimization=has_hardswish, skip_symbolic_shape=True)
        model = onnx.load(prepared)
    shapes = _shapes(model)
    taken = {node.name for node in model.graph.node if node.op_type not in COMPUTE}
    for index, node in enumerate(node for node in model.graph.node if node.op_type in COMPUTE):
        name = next((name for name in node.input[:_BIAS] if name in shapes), "").removesuffix(".weight")
        node.name = name if name and name not in taken else f"{node.op_type}_{index}"
        taken.add(node.name)
        if node.op_type == "Conv" and len(node.input) == _BIAS and node.input[1] in shapes:
            bias = np.zeros(shapes[node.input[1]][0], np.float32)
            node.input.append(f"{node.name}.zero_bias")
            model.graph.initializer.append(numpy_helper.from_array(bias, node.input[_BIAS]))
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}_"
    return model


def _split_biases(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which an Add node adds the bias of each Gemm."""
    model = copy.deepcopy(model)
    for index, node in reversed(list(enumerate(model.graph.node))):
        scaled = any(attribute.name == "beta" and attribute.f != 1 for attribute in node.attribute)
        if node.op_type == "Gemm" and len(node.input) > _BIAS and not scaled:
            output, bias = node.output[0], node.input.pop(_BIAS)
            node.output[0] = f"{output}_product"
            added = helper.make_node("Add", [node.output[0], bias], [output], f"{node.name}_bias")
            model.graph.node.insert(index + 1, added)
    return model


def find_layers(model: onnx.ModelProto) -> list[Layer]:
    """Find the layers with constant weights in a graph from :func:`prepare`, in the order of computation."""
    shapes = _shapes(model)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    layers = []
    for node in (node for node in model.graph.node if node.op_type in COMPUTE):
        source, weight = node.input[:_BIAS]
        # only the second operand can have one scale per output channel
        if weight not in shapes or source in shapes or (node.op_type == "MatMul" and len(shapes[weight]) != 2):
            continue
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        axis = 0 if node.op_type == "Conv" or transposed else 1
        bias = _bias(node, readers, shapes)
        layers.append(Layer(node.name, node.op_type, source, node.output[0], weight, axis, bias))
    return layers


def _bias(
    node: onnx.NodeProto, readers: Mapping[str, list[onnx.NodeProto]], shapes: Mapping[str, tuple[int, ...]]
) -> str | None:
    if node.op_type in {"Conv", "ConvTranspose"}:
        bias = node.input[_BIAS] if len(node.input) > _BIAS else None
    else:
        consumers = readers.get(node.output[0], [])
        addends = [name for name in consumers[0].input if name in shapes] if len(consumers) == 1 else []
        bias = addends[0] if addends and consumers[0].op_type == "Add" and len(shapes[addends[0]]) == 1 else None
    return bias if bias is not None and bias in shapes and len(readers[bias]) == 1 else None


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}


def concatenated(model: onnx.ModelProto) -> set[str]:
    """Names of the tensors whose values a Concat has put together, also where they were moved after it.

    From signed bytes of such a tensor, OpenVINO 2026.4 computes with wrong numbers.
    """
    found: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "Concat" or (node.op_type in _MOVING and node.input[0] in found):
            found |= set(node.output)
    return found


def constants(model: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    """Read the constants of a graph by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def observe(
    model: onnx.ModelProto, names: Sequence[str], images: NDArray[np.float32]
) -> Iterator[list[NDArray[np.float32]]]:
    """Yield the named values for the images [n, 3, S, S], a few images at a time to save memory."""
    leading = Extractor(model).extract_model([model.graph.input[0].name], list(names))
    session = open_session(leading)
    chunk = max(1, _PIXELS // (images.shape[-2] * images.shape[-1]))
    for start in range(0, len(images), chunk):
        yield session.run(list(names), {model.graph.input[0].name: images[start : start + chunk]})


def open_session(
    model: onnx.ModelProto, *, as_written: bool = False, optimised: Path | None = None
) -> onnxruntime.InferenceSession:
    """Open a CPU session.

    Args:
        as_written: compute the nodes of the graph one by one, without optimisation.
        optimised: where the optimised graph is written.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    levels = onnxruntime.GraphOptimizationLevel
    if as_written:
        options.graph_optimization_level = levels.ORT_DISABLE_ALL
    if optimised is not None:
        options.graph_optimization_level = levels.ORT_ENABLE_EXTENDED  # without the layouts of this CPU
        options.optimized_model_filepath = str(optimised)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
