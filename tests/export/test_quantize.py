"""The int8 graph."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from pipeline.errors import ExportError
from pipeline.export.capture import capture, deployable
from pipeline.export.graph import from_program
from pipeline.export.quantize import to_int8
from pipeline.export.structure import COMPUTE

from .conftest import SIZE, Exported


@pytest.fixture(scope="module")
def model(exported: Exported) -> onnx.ModelProto:
    return onnx.load(exported.folder / "student_int8.onnx")


def _constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def _quantizers(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type in {"QuantizeLinear", "DequantizeLinear"}]


def test_all_zero_points_are_int8_zeros(model: onnx.ModelProto) -> None:
    constants = _constants(model)
    zero_points = [constants[node.input[2]] for node in _quantizers(model)]
    assert len(zero_points) > 10
    assert {tensor.data_type for tensor in zero_points} == {TensorProto.INT8}
    assert not any(numpy_helper.to_array(tensor).any() for tensor in zero_points)


def test_weights_have_one_scale_per_output_channel_and_seven_bits(model: onnx.ModelProto) -> None:
    constants = _constants(model)
    weights = [node for node in _quantizers(model) if node.input[0] in constants]
    assert len(weights) == 3
    for node in weights:
        values = numpy_helper.to_array(constants[node.input[0]])
        assert values.dtype == np.int8
        assert np.abs(values.astype(int)).max() <= 64
        assert numpy_helper.to_array(constants[node.input[1]]).shape in {(8,), (4,)}


def test_biases_and_logits_are_not_quantised(model: onnx.ModelProto) -> None:
    producers = {name: node.op_type for node in model.graph.node for name in node.output}
    assert producers["logits"] == "Add"
    for node in model.graph.node:
        if node.op_type in COMPUTE:
            assert all(name not in producers for name in node.input[2:])


def test_every_reader_of_a_quantised_value_has_its_own_pair(model: onnx.ModelProto) -> None:
    readers = Counter(name for node in model.graph.node for name in node.input)
    assert {readers[node.output[0]] for node in _quantizers(model)} == {1}


def test_equal_calibration_images_give_equal_graphs_and_other_images_other_scales(exported: Exported) -> None:
    source = from_program(capture(deployable(exported.student), SIZE, "student"), 18)
    before = source.SerializeToString(deterministic=True)
    first, second, other = (
        to_int8(source, images).SerializeToString(deterministic=True)
        for images in (exported.calibration, exported.calibration, 2 * exported.calibration)
    )
    assert first == second != other
    assert source.SerializeToString(deterministic=True) == before


def test_a_graph_that_cannot_be_quantised_is_named_so(exported: Exported) -> None:
    source = from_program(capture(deployable(exported.student), SIZE, "student"), 18)
    with pytest.raises(ExportError, match=r"cannot quantise the network to int8 \(.*; take int8 out"):
        to_int8(source, exported.calibration[:, :1])
