"""Graphs in memory: the operator set asked for, and the output "energy" for logits of any size."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from pipeline.energy.groups import energy_score
from pipeline.errors import ExportError
from pipeline.export.capture import capture
from pipeline.export.graph import from_program, with_energy
from pipeline.runtimes.openvino_runtime import openvino_core


def identity() -> onnx.ModelProto:
    """Logits [batch, 3] that are the input."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("input", "logits")]
    graph = helper.make_graph([helper.make_node("Identity", ["input"], ["logits"])], "identity", value[:1], value[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_energy_is_that_of_training_for_small_and_very_large_logits(runtime: str, temperature: float) -> None:
    logits = np.float32([[1, 2, 3], [-5, 0, 5], [0, 0, 0], [900, -900, 899], [-1000, -1001, -999]])
    model = with_energy(identity(), temperature)
    onnx.checker.check_model(model, full_check=True)
    if runtime == "onnxruntime":
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        found, energy = session.run(["logits", "energy"], {"input": logits})
    else:
        core = openvino_core()
        compiled = core.compile_model(
            core.read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        results = compiled(logits)
        found, energy = results["logits"], results["energy"]
    assert np.array_equal(found, logits)
    np.testing.assert_allclose(energy, energy_score(torch.from_numpy(logits), temperature), rtol=1e-6, atol=1e-5)


def test_an_operator_set_that_torch_cannot_write_is_refused() -> None:
    class Mean(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean((2, 3))

    with pytest.raises(ExportError, match=r"wrote operator set 18 where 17 was asked for; set export\.opset to 18"):
        from_program(capture(Mean(), (3, 4, 4), "student"), 17)
