"""ONNX graphs in memory: made from a program, cleaned, described and written as one file."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path

import onnx
import torch
from torch.export import ExportedProgram

from pipeline.errors import ExportError
from pipeline.export.capture import first_line
from pipeline.export.quiet import quiet
from pipeline.runtimes import INPUT, LOGITS

BATCH = "batch"


def from_program(program: ExportedProgram, opset: int) -> onnx.ModelProto:
    """The float32 onnx.ModelProto of a program, with input "input" and output "logits" and all weights inside.

    Raises:
        ExportError: torch.onnx cannot express the network, or not in this operator set.
    """
    try:
        with quiet():
            exported = torch.onnx.export(
                program,
                (),
                dynamo=True,
                input_names=[INPUT],
                output_names=[LOGITS],
                opset_version=opset,
                verbose=False,
            )
    except Exception as error:  # torch.onnx raises errors of all its parts
        raise ExportError(f"torch.onnx cannot export the network ({first_line(error)}); choose another one") from error
    if exported is None:
        raise ExportError("torch.onnx exported nothing; install the versions of constraints.txt")
    model = exported.model_proto
    written = max(entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"})
    if written != opset:
        # torch keeps the set it is written in when its conversion to an older one fails, and only logs that.
        raise ExportError(
            f"torch.onnx wrote operator set {written} where {opset} was asked for; set export.opset to {written}"
        )
    _name_batch(model)
    strip(model)
    return model


def strip(model: onnx.ModelProto) -> None:
    """Drop, in place, what is not the computation: source lines, module names, notes of tools, unused operator sets."""
    used = {_domain(node.domain) for node in model.graph.node}
    for entry in [entry for entry in model.opset_import if _domain(entry.domain) not in used | {""}]:
        model.opset_import.remove(entry)
    model.ClearField("doc_string")
    model.ClearField("metadata_props")
    graph = model.graph
    graph.name = "energykd"
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")


def write(model: onnx.ModelProto, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a copy with ``metadata`` as its metadata_props into one file; equal models give equal bytes.

    Raises:
        ExportError: the graph is not valid ONNX, or is larger than the 2 GB that one file can hold.
    """
    model = copy.deepcopy(model)
    strip(model)
    onnx.helper.set_model_props(model, dict(sorted(metadata.items())))
    try:
        onnx.checker.check_model(model, full_check=True)
        path.write_bytes(model.SerializeToString(deterministic=True))
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{path.name} is not valid ONNX ({first_line(error)}); choose another network") from error
    except ValueError as error:  # protobuf's limit on the size of a message
        raise ExportError(
            f"{path.name} does not fit into one file ({first_line(error)}); choose a smaller network"
        ) from error


def fix_batch(model: onnx.ModelProto, batch: int) -> None:
    """Make the free batch size of a graph ``batch``, in place."""
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    del model.graph.value_info[:]  # shapes with the free size; whoever needs them infers them


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """onnx.TensorProto element type of each value of the graph, by name, as shape inference finds them."""
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    graph = inferred.graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return types


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _name_batch(model: onnx.ModelProto) -> None:
    """Call the free batch size "batch" wherever torch's generated symbol stands for it."""
    symbol = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    if not symbol:
        raise ExportError("torch.onnx fixed the batch size of the network; choose a network that takes any number")
    whole = re.compile(rf"\b{re.escape(symbol)}\b")
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = whole.sub(BATCH, dim.dim_param)
