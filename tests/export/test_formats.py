"""Content of the exported files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import onnx
import openvino
import pytest
import torch
from onnx import TensorProto

from pipeline.errors import ExportError
from pipeline.export.formats import IR_SECTION, write_openvino, write_torch
from pipeline.export.graph import element_types
from pipeline.export.int8.quantize import weight_bits
from pipeline.export.structure import COMPUTE
from pipeline.runtimes.openvino_runtime import openvino_core

from .conftest import CLASSES, METADATA, SIZE, Exported

PRECISIONS = ["fp32", "fp16", "int8"]


def _load(exported: Exported, precision: str) -> onnx.ModelProto:
    return onnx.load(exported.folder / f"student_{precision}.onnx", load_external_data=False)


def _signature(value: onnx.ValueInfoProto) -> tuple[str, int, list[int | str]]:
    tensor = value.type.tensor_type
    return value.name, tensor.elem_type, [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_input_and_output_of_onnx_are_float32_with_a_free_batch_size(exported: Exported, precision: str) -> None:
    graph = _load(exported, precision).graph
    assert [_signature(value) for value in graph.input] == [("input", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])]
    assert [_signature(value) for value in graph.output] == [
        ("logits", TensorProto.FLOAT, ["batch", CLASSES]),
        ("energy", TensorProto.FLOAT, ["batch"]),
    ]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_metadata_of_onnx_are_readable_and_name_role_and_precision(exported: Exported, precision: str) -> None:
    model = _load(exported, precision)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    of_int8 = {"fp32_layers": "[]", "weight_bits": str(weight_bits(exported.sources["student"].params.int8))}
    expected = METADATA | {"role": "student", "precision": precision}
    assert properties == (expected | of_int8 if precision == "int8" else expected)
    assert json.loads(properties["class_names"]) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_files_are_valid_standard_onnx_of_the_asked_operator_set(exported: Exported, precision: str) -> None:
    path = exported.folder / f"student_{precision}.onnx"
    onnx.checker.check_model(path, full_check=True)
    assert [(entry.domain, entry.version) for entry in onnx.load(path).opset_import] == [("", 18)]


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


@pytest.mark.parametrize("precision", PRECISIONS)
def test_notes_of_the_exporters_are_not_in_the_files(exported: Exported, precision: str) -> None:
    graph = _load(exported, precision).graph
    parts = [graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer]
    assert not any(part.doc_string or part.metadata_props for part in parts)


def _read_ir(exported: Exported, precision: str) -> openvino.Model:
    return openvino_core().read_model(exported.folder / f"student_{precision}.xml")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_input_and_output_of_an_ir_are_those_of_the_onnx_file(exported: Exported, precision: str) -> None:
    model = _read_ir(exported, precision)
    assert str(model.input("input").partial_shape) == f"[?,3,{SIZE},{SIZE}]"
    assert str(model.output("logits").partial_shape) == f"[?,{CLASSES}]"
    assert model.input("input").element_type == model.output("logits").element_type == openvino.Type.f32


HINTS = {"fp32": "f32", "fp16": "f16", "int8": "f32"}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_metadata_of_an_ir_are_readable(exported: Exported, precision: str) -> None:
    model = _read_ir(exported, precision)
    own = {"role": "student", "precision": precision, "inference_precision_hint": HINTS[precision]}
    for key, value in (METADATA | own).items():
        assert model.get_rt_info([IR_SECTION, key]).astype(str) == value


@pytest.mark.parametrize(("precision", "kept"), [("fp32", "f32"), ("fp16", "f16"), ("int8", "i8")])
def test_weights_of_an_ir_are_stored_in_their_precision(exported: Exported, precision: str, kept: str) -> None:
    constants = [
        layer.output(0) for layer in _read_ir(exported, precision).get_ops() if layer.get_type_name() == "Constant"
    ]
    smallest = 4 * 8  # weights of the classifier
    weights = [output for output in constants if math.prod(output.shape) >= smallest]
    assert len(weights) == 3
    assert {output.element_type.get_type_name() for output in weights} == {kept}


def test_a_graph_that_openvino_cannot_read_is_named(exported: Exported, tmp_path: Path) -> None:
    source = exported.changed()
    broken = onnx.ModelProto.FromString(source.graph.SerializeToString())
    broken.graph.node[0].op_type = "Unknown"
    vars(source)["graph"] = broken
    with pytest.raises(ExportError, match=r"cannot convert student_fp32\.xml .*; set export\.openvino to false"):
        write_openvino(source, "fp32", tmp_path / "student_fp32.xml", {})


def test_a_torch_program_runs_any_batch_size_bit_for_bit_as_the_network(exported: Exported) -> None:
    module = torch.export.load(exported.folder / "student_fp32.pt2").module()
    for batch in (1, 3, len(exported.images)):
        with torch.inference_mode():
            logits, _ = module(torch.from_numpy(exported.images[:batch]))
        torch.testing.assert_close(logits, torch.from_numpy(exported.logits[:batch]), rtol=0, atol=1e-6)


def test_metadata_of_a_torch_program_are_files_of_the_archive(exported: Exported) -> None:
    extra = dict.fromkeys([*METADATA, "role", "precision"], "")
    torch.export.load(exported.folder / "student_fp32.pt2", extra_files=extra)
    assert extra == METADATA | {"role": "student", "precision": "fp32"}


def test_a_torch_program_of_another_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="written in fp32, not in fp16"):
        write_torch(None, "fp16", tmp_path / "a.pt2", {})
