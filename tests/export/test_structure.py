"""Files that are not what they claim to be are named, with the fault."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from pipeline.errors import ExportError
from pipeline.export.int8 import forms
from pipeline.export.int8.quantize import Quantizer
from pipeline.export.structure import check_structure

from .conftest import ONNX, Exported, write


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_exported_files_compute_in_their_precision_only(exported: Exported, precision: str) -> None:
    assert check_structure(exported.folder / f"student_{precision}.onnx", precision).shares == {precision: 1.0}


@pytest.mark.parametrize(("claimed", "found"), [("fp32", "fp16"), ("fp16", "fp32"), ("int8", "fp32"), ("fp32", "int8")])
def test_another_precision_than_claimed_is_refused(exported: Exported, claimed: str, found: str) -> None:
    with pytest.raises(
        ExportError, match=rf"student_{found}\.onnx should .* in {claimed} only, but holds 100% {found}"
    ):
        check_structure(exported.folder / f"student_{found}.onnx", claimed)


def test_other_names_of_input_and_outputs_are_refused(exported: Exported, tmp_path: Path) -> None:
    model = onnx.load(exported.folder / "student_fp32.onnx")
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == "input":
                node.input[index] = "images"
    model.graph.input[0].name = "images"
    path = tmp_path / "student_fp32.onnx"
    onnx.save(model, path)
    with pytest.raises(ExportError, match="has the input and outputs images, logits, energy where input, logits and"):
        check_structure(path, "fp32")


def test_layers_in_fp32_are_allowed_in_an_int8_file_if_they_are_listed_and_no_others(
    exported: Exported, tmp_path: Path
) -> None:
    source = exported.changed()
    with patch.object(forms, "_LAYERS", frozenset({"Conv"})):  # as if the writer knew no matrix product
        vars(source)["quantizer"] = Quantizer(source.graph, source.calibration_images, source.params.int8)
        (file,) = write(tmp_path, [ONNX["int8"]], source)
    kept = tuple(file.fp32_layers)
    path = tmp_path / "student_int8.onnx"
    assert kept == ("classifier",)
    assert file.parity.executed_precision == "mixed:int8=2,fp32=1"
    assert check_structure(path, "int8", kept).fp32_layers == kept
    for listed in ((), (*kept, "another")):
        with pytest.raises(ExportError, match="should hold convolutions and matrix products in int8 only"):
            check_structure(path, "int8", listed)
    properties = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert json.loads(properties["fp32_layers"]) == list(kept)


def _shift_zero_point(model: onnx.ModelProto) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "input_zero_point")
    tensor.CopyFrom(numpy_helper.from_array(np.int8(3), tensor.name))


def _unsigned_zero_points(model: onnx.ModelProto) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "input_zero_point")
    tensor.CopyFrom(numpy_helper.from_array(np.uint8(0), tensor.name))


def _quantised_bias(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    scale = helper.make_tensor("bias_scale", onnx.TensorProto.FLOAT, [], [1.0])
    zero = helper.make_tensor("bias_zero", onnx.TensorProto.INT8, [], [0])
    values = helper.make_tensor("bias_int8", onnx.TensorProto.INT8, [8], [0] * 8)
    model.graph.initializer.extend([scale, zero, values])
    model.graph.node.insert(
        0, helper.make_node("DequantizeLinear", ["bias_int8", "bias_scale", "bias_zero"], ["bias_float"], "bias")
    )
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    node.input[2] = "bias_float"


def _half_dequantised(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    node.input[0] = "input"


def _foreign_operator(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.vendor", 1))
    model.graph.node.append(helper.make_node("Fancy", ["logits"], ["unused"], domain="com.vendor"))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_shift_zero_point, "quantisers that are not int8 with zero-point 0"),
        (_unsigned_zero_points, "quantisers that are not int8 with zero-point 0|not readable"),
        (_quantised_bias, "quantised biases"),
        (_half_dequantised, "should hold .* int8 only"),
        (_foreign_operator, r"com\.vendor\.Fancy, which are not standard ONNX"),
    ],
)
def test_faults_of_an_int8_file_are_named(
    exported: Exported, tmp_path: Path, damage: Callable[[onnx.ModelProto], None], reason: str
) -> None:
    model = onnx.load(exported.folder / "student_int8_tensorrt.onnx")
    damage(model)
    path = tmp_path / "student_int8.onnx"
    onnx.save(model, path)
    with pytest.raises(ExportError, match=reason) as caught:
        check_structure(path, "int8", for_tensorrt=True)
    assert str(caught.value).startswith("student_int8.onnx ")


def test_weights_in_another_file_are_refused(exported: Exported, tmp_path: Path) -> None:
    model = onnx.load(exported.folder / "student_fp32.onnx")
    path = tmp_path / "student_fp32.onnx"
    onnx.save(model, path, save_as_external_data=True, size_threshold=0)
    with pytest.raises(ExportError, match="tensors in another file"):
        check_structure(path, "fp32")


@pytest.mark.parametrize("content", [b"", b"not an onnx file"])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(ExportError, match=r"broken\.onnx"):
        check_structure(path, "fp32")
