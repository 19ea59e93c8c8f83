"""A tiny model file and inputs, for workers in processes of their own."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.device.benchmark.plan import Plan, Variant
from pipeline.device.benchmark.worker import Job


@dataclass(frozen=True)
class TinyModel:
    """An .onnx file that takes [N, 3, 8, 8], a .npy file with 6 images, and a .npz file with what is expected of them:
    the network's own answers, of which the last two are wrong."""

    path: Path
    inputs: Path
    expected: Path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    folder = tmp_path_factory.mktemp("tiny")
    generator = np.random.default_rng(0)
    weights = generator.standard_normal((4, 3, 8, 8)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["input", "weights"], ["maps"]), helper.make_node("Flatten", ["maps"], ["logits"])],
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = TinyModel(folder / "tiny.onnx", folder / "inputs.npy", folder / "expected.npz")
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)]), model.path)
    images = generator.standard_normal((6, 3, 8, 8)).astype(np.float32)
    np.save(model.inputs, images)
    logits = np.einsum("nchw,kchw->nk", images, weights)
    labels = logits.argmax(axis=1)
    labels[4:] = (labels[4:] + 1) % 4
    groups = np.array([0, 0, 1, 1, 2, 2], dtype=np.int8)
    np.savez(model.expected, logits=logits, energy=-logits.max(axis=1), labels=labels, groups=groups)
    return model


@pytest.fixture
def job(tiny_model: TinyModel) -> Job:
    """A round of a moment."""
    files = {"inputs": str(tiny_model.inputs), "expected": str(tiny_model.expected)}
    variant = Variant("tiny", "onnxruntime", str(tiny_model.path), "fp32", **files, batch=2)
    limits: dict[str, Any] = {"warmup_seconds": 0.0, "warmup_count": 3, "min_seconds": 0.0, "min_count": 20}
    return Job("round", Plan((variant,), 1, max_seconds=5.0, **limits), {})


def changed(job: Job, of_variant: dict[str, Any] | None = None, **of_plan: Any) -> Job:
    """The job with other values in its plan."""
    variant = dataclasses.replace(job.variant, **(of_variant or {}))
    return dataclasses.replace(job, plan=dataclasses.replace(job.plan, variants=(variant,), **of_plan))
