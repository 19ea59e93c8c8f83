"""What is in the ONNX files."""

from __future__ import annotations

import json

import onnx
import pytest
from onnx import TensorProto

from pipeline.errors import ExportError
from pipeline.export.capture import capture, deployable
from pipeline.export.graph import element_types, from_program
from pipeline.export.structure import COMPUTE

from .conftest import CLASSES, METADATA, SIZE, Exported

PRECISIONS = ["fp32", "fp16", "int8"]


def _load(exported: Exported, precision: str) -> onnx.ModelProto:
    return onnx.load(exported.folder / f"student_{precision}.onnx", load_external_data=False)


def _signature(value: onnx.ValueInfoProto) -> tuple[str, int, list[int | str]]:
    tensor = value.type.tensor_type
    return value.name, tensor.elem_type, [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_input_and_output_are_float32_with_a_free_batch_size(exported: Exported, precision: str) -> None:
    graph = _load(exported, precision).graph
    assert [_signature(value) for value in graph.input] == [("input", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])]
    assert [_signature(value) for value in graph.output] == [
        ("logits", TensorProto.FLOAT, ["batch", CLASSES]),
        ("energy", TensorProto.FLOAT, ["batch"]),
    ]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_metadata_are_readable_and_name_role_and_precision(exported: Exported, precision: str) -> None:
    model = _load(exported, precision)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert properties == METADATA | {"role": "student", "precision": precision}
    assert json.loads(properties["class_names"]) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_files_are_valid_standard_onnx_of_the_asked_operator_set(exported: Exported, precision: str) -> None:
    path = exported.folder / f"student_{precision}.onnx"
    onnx.checker.check_model(path, full_check=True)
    assert [(entry.domain, entry.version) for entry in onnx.load(path).opset_import] == [("", exported.params.opset)]


def test_fp16_file_is_float16_between_one_cast_at_each_end(exported: Exported) -> None:
    model = _load(exported, "fp16")
    types = element_types(model)
    assert {types[name] for node in model.graph.node if node.op_type in COMPUTE for name in node.input} == {
        TensorProto.FLOAT16
    }
    energy = {name for node in model.graph.node if node.output[0].startswith("energy") for name in node.output}
    constants = {"energy_scale", "energy_temperature"}
    floats = {name for name, kind in types.items() if kind == TensorProto.FLOAT}
    assert floats - energy - constants == {"input", "logits"}, "the energy is computed from the float32 logits"
    assert sum(node.op_type == "Cast" for node in model.graph.node) == 2


def test_fp16_file_is_about_half_as_large(exported: Exported) -> None:
    tensors = {
        precision: sum(len(tensor.raw_data) for tensor in _load(exported, precision).graph.initializer)
        for precision in ("fp32", "fp16")
    }
    assert tensors["fp16"] < 0.6 * tensors["fp32"]


def test_batch_normalisation_is_folded(exported: Exported) -> None:
    assert "BatchNormalization" not in {node.op_type for node in _load(exported, "fp32").graph.node}


def test_an_operator_set_that_torch_cannot_write_is_refused(exported: Exported) -> None:
    program = capture(deployable(exported.student), SIZE, "student")
    with pytest.raises(ExportError, match=r"wrote operator set 18 where 17 was asked for; set export\.opset to 18"):
        from_program(program, 17)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_notes_of_the_exporters_are_not_in_the_files(exported: Exported, precision: str) -> None:
    graph = _load(exported, precision).graph
    parts = [graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer]
    assert not any(part.doc_string or part.metadata_props for part in parts)
