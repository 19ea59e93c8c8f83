"""Layers as a builder's verbose log lists them, and which of them compute."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.runtimes import UNKNOWN
from pipeline.runtimes.tensorrt_layers import judge, logged_layers

# one message of several lines, as TensorRT for RTX 1.7 writes it
LOG = """Engine Layer Information:
Name: __mye1_myl0_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata:
Name: conv1_myl0_2, LayerType: correlation, Inputs: [ { Name: a, Dimensions: [-1,4,8,8], Strides: [256,64,8,1], \
Datatype: Int8, Format: (NHWC) Channel major format }, { Name: b, Dimensions: [1], Datatype: Float, Format: (Linear) \
Row major linear format }], Constants: [ { Name: w, Dimensions: [8,4,3,3], Datatype: Half, Format: x }], Outputs: [ \
{ Name: c, Dimensions: [-1,8,8,8], Datatype: Float, Format: (NHWC) Channel major format }], TacticName: sm80_conv, \
StreamId: 0, Metadata: [ONNX Layer: conv1]
Name: __myl_MulAddRelu_myl0_3, LayerType: kgen, Inputs: [ { Name: c, Dimensions: [1], Datatype: Float, Format: y }], \
Outputs: [ { Name: d, Dimensions: [1], Datatype: Int8, Format: y }], TacticName: __myl_MulAddRelu_0x1, StreamId: 0,"""


def test_the_log_gives_names_kinds_and_types_of_the_layers():
    shape, convolution, fused = logged_layers(["Global timing cache in use", LOG])
    assert (shape["LayerType"], shape["Inputs"]) == ("shape_call", [])
    assert (convolution["Name"], convolution["TacticName"]) == ("conv1_myl0_2", "sm80_conv")
    assert convolution["Inputs"] == [{"Name": "a", "Datatype": "Int8"}, {"Name": "b", "Datatype": "Float"}]
    assert convolution["Outputs"] == [{"Name": "c", "Datatype": "Float"}]
    assert fused["Outputs"] == [{"Name": "d", "Datatype": "Int8"}]
    judged = judge([shape, convolution, fused])
    assert (judged.count, judged.compute, judged.unclear) == (3, [("conv1_myl0_2", "int8")], [])


def layer(name: str, kind: str, **more: Any) -> dict[str, Any]:
    return {"Name": name, "LayerType": kind, "Inputs": [{"Datatype": "Half"}], **more}


@pytest.mark.parametrize(
    ("listed", "compute", "unclear"),
    [
        (layer("__myl_FcAddMulCastErf_myl0_1", "runtime_fusion"), ["fp16"], False),
        (layer("__myl_CorrSilu_myl0_2", "runtime_fusion"), ["fp16"], False),
        (layer("_gemm_mha_v2_myl0_8", "kgen", TacticName="_gemm_mha_v2_0x4"), ["fp16"], False),
        (layer("__myl_ConcCastMulAdd_myl0_3", "kgen", TacticName="__myl_ConcCastMulAdd_0x3"), [], False),
        (layer("__myl_MulAdd_myl0_4", "runtime_fusion"), [], True),
        (layer("{ForeignNode[a...b]}", "Myelin"), [], True),
        (layer("Reformatting CopyNode for conv", "Reformat"), [], False),
        (layer("conv", "CaskConvolution", Inputs=[]), [UNKNOWN], False),
        ("conv1", [], True),
    ],
)
def test_a_layer_computes_or_not_or_is_not_judged(listed, compute, unclear):
    judged = judge([listed])
    assert (judged.count, judged.precisions) == (1, compute)
    assert bool(judged.unclear) == unclear
