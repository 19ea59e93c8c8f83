"""The second output of every file, ``energy``: what a device routes its uncertain images by.

It is computed in float32 from the logits that the file returns, whatever the precision of the network before them.
"""

from __future__ import annotations

import copy

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from pipeline.energy.groups import energy_score
from pipeline.runtimes import ENERGY, LOGITS


class WithEnergy(nn.Module):
    """A network that returns logits [B, K] and their energy [B]."""

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(images)
        return logits, energy_score(logits, self.temperature)


def with_energy(model: onnx.ModelProto, temperature: float) -> onnx.ModelProto:
    """A copy of an onnx.ModelProto that returns its float32 logits [B, K] and their energy [B].

    The largest logit is taken out before the exponential, as float32 needs it: not every runtime does so in its
    ReduceLogSumExp.
    """
    model = copy.deepcopy(model)
    graph = model.graph
    constants = {
        "energy_scale": np.array([1 / temperature], dtype=np.float32),
        "energy_classes": np.array([1]),
        "energy_temperature": np.array([-temperature], dtype=np.float32),
    }
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    steps = (
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
    graph.node.extend(helper.make_node(kind, inputs, [output], output) for kind, inputs, output in steps)
    batch = graph.output[0].type.tensor_type.shape.dim[0]
    value = helper.make_tensor_value_info(ENERGY, TensorProto.FLOAT, [None])
    value.type.tensor_type.shape.dim[0].CopyFrom(batch)
    graph.output.append(value)
    return model
