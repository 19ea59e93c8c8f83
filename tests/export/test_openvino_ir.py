"""What is in the OpenVINO IR."""

from __future__ import annotations

import math
from pathlib import Path

import openvino
import pytest

from pipeline.errors import ExportError
from pipeline.export.openvino_ir import SECTION, OpenVinoIr
from pipeline.runtimes.openvino_core import openvino_core

from .conftest import CLASSES, METADATA, SIZE, Exported


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_input_and_output_are_those_of_the_onnx_file(exported: Exported, precision: str) -> None:
    model = openvino_core().read_model(exported.folder / f"student_{precision}.xml")
    assert str(model.input("input").partial_shape) == f"[?,3,{SIZE},{SIZE}]"
    assert str(model.output("logits").partial_shape) == f"[?,{CLASSES}]"
    assert model.input("input").element_type == model.output("logits").element_type == openvino.Type.f32


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_metadata_are_readable(exported: Exported, precision: str) -> None:
    model = openvino_core().read_model(exported.folder / f"student_{precision}.xml")
    for key, value in (METADATA | {"role": "student", "precision": precision}).items():
        assert model.get_rt_info([SECTION, key]).astype(str) == value


@pytest.mark.parametrize(("precision", "kept"), [("fp32", "f32"), ("fp16", "f16"), ("int8", "i8")])
def test_weights_are_stored_in_their_precision(exported: Exported, precision: str, kept: str) -> None:
    model = openvino_core().read_model(exported.folder / f"student_{precision}.xml")
    constants = [layer.output(0) for layer in model.get_ops() if layer.get_type_name() == "Constant"]
    smallest = 4 * 8  # weights of the classifier
    weights = [output for output in constants if math.prod(output.shape) >= smallest]
    assert len(weights) == 3
    assert {output.element_type.get_type_name() for output in weights} == {kept}


def test_a_graph_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "student_fp32.onnx").write_bytes(b"nothing")
    with pytest.raises(ExportError, match=r"cannot convert student_fp32\.onnx .*; set export\.openvino to false"):
        OpenVinoIr().write(None, "fp32", tmp_path / "student_fp32.xml", {})
