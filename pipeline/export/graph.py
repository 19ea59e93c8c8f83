"""Convert a torch.export program to an ONNX graph, add the output "energy", and write the graph as one file."""

import copy
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.export import ExportedProgram

from pipeline.compute.tracing import quiet
from pipeline.errors import ExportError
from pipeline.portable.text import first_line
from pipeline.runtimes import ENERGY, INPUT, LOGITS


def from_program(program: ExportedProgram, opset: int) -> onnx.ModelProto:
    """Convert a program to a float32 onnx.ModelProto with input "input", output "logits" and embedded weights.

    Raises:
        ExportError: torch.onnx cannot convert the network, or not to this operator set.
    """
    try:
        with quiet():
            exported = torch.onnx.export(
                program, (), dynamo=True, input_names=[INPUT], output_names=[LOGITS], opset_version=opset, verbose=False
            )
    except Exception as error:  # torch.onnx raises many types of errors
        raise ExportError(f"torch.onnx cannot export the network ({first_line(error)}); choose another one") from error
    if exported is None:
        raise ExportError("torch.onnx exported nothing; install the versions of constraints.txt")
    model = exported.model_proto
    written = max(entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"})
    if written != opset:
        # when the conversion to an older operator set fails, torch keeps its own set and only logs the failure
        raise ExportError(
            f"torch.onnx wrote operator set {written} where {opset} was asked for; set export.opset to {written}"
        )
    _name_batch(model)
    strip(model)
    return model


def strip(model: onnx.ModelProto) -> None:
    """Remove metadata in place: source lines, module names, notes of tools, unused operator sets."""
    used = {node.domain for node in model.graph.node} | {"", "ai.onnx"}
    for entry in [entry for entry in model.opset_import if entry.domain not in used]:
        model.opset_import.remove(entry)
    model.ClearField("doc_string")
    model.ClearField("metadata_props")
    graph = model.graph
    graph.name = "energykd"
    graph.ClearField("value_info")  # runtimes infer these shapes
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")


def write(model: onnx.ModelProto, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a copy with ``metadata`` as metadata_props to one file; equal models give equal bytes.

    Raises:
        ExportError: the graph is not valid ONNX, or exceeds the limit of 2 GB per file.
    """
    model = copy.deepcopy(model)
    strip(model)
    helper.set_model_props(model, dict(sorted(metadata.items())))
    try:
        onnx.checker.check_model(model, full_check=True)
        path.write_bytes(model.SerializeToString(deterministic=True))
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{path.name} is not valid ONNX ({first_line(error)}); choose another network") from error
    except ValueError as error:  # protobuf's limit on the size of a message
        raise ExportError(
            f"{path.name} does not fit into one file ({first_line(error)}); choose a smaller network"
        ) from error


def with_energy(model: onnx.ModelProto, temperature: float) -> onnx.ModelProto:
    """Return a copy with the float32 outputs logits [B, K] and energy [B]; a device routes images by their energy.

    The energy is computed in float32 for every precision of the network. The largest logit is subtracted before the
    exponential to prevent an overflow, because not every runtime does so in its ReduceLogSumExp.
    """
    model = copy.deepcopy(model)
    graph = model.graph
    constants = {
        "energy_scale": np.array([1 / temperature], dtype=np.float32),
        "energy_classes": np.array([1]),
        "energy_temperature": np.array([-temperature], dtype=np.float32),
    }
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    nodes = (
        ("Mul", [LOGITS, "energy_scale"], "energy_scaled"),
        ("ReduceMax", ["energy_scaled", "energy_classes"], "energy_largest"),
        ("Sub", ["energy_scaled", "energy_largest"], "energy_shifted"),
        ("Exp", ["energy_shifted"], "energy_exponentials"),
        ("ReduceSum", ["energy_exponentials", "energy_classes"], "energy_sum"),
        ("Log", ["energy_sum"], "energy_log"),
        ("Add", ["energy_log", "energy_largest"], "energy_logsumexp"),
        ("Mul", ["energy_logsumexp", "energy_temperature"], "energy_column"),
        ("Squeeze", ["energy_column", "energy_classes"], ENERGY),
    )
    graph.node.extend(helper.make_node(kind, inputs, [output], output) for kind, inputs, output in nodes)
    value = helper.make_tensor_value_info(ENERGY, TensorProto.FLOAT, [None])
    value.type.tensor_type.shape.dim[0].CopyFrom(graph.output[0].type.tensor_type.shape.dim[0])
    graph.output.append(value)
    return model


def fix_batch(model: onnx.ModelProto, batch: int) -> None:
    """Replace the dynamic batch size of a graph by ``batch``, in place."""
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Infer the onnx.TensorProto element type of each value of the graph, by name."""
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    graph = inferred.graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def _name_batch(model: onnx.ModelProto) -> None:
    """Rename torch's generated symbol for the dynamic batch size to "batch"."""
    symbol = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    if not symbol:
        raise ExportError("torch.onnx fixed the batch size of the network; choose a network with a dynamic batch size")
    whole = re.compile(rf"\b{re.escape(symbol)}\b")
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = whole.sub("batch", dim.dim_param)
