"""The output "energy" in a graph, for logits of any size."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from pipeline.energy.groups import energy_score
from pipeline.export.energy_output import with_energy
from pipeline.runtimes.openvino_core import openvino_core


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
