"""Runtimes behind one interface: load a model file, run it, tell what was really executed.

This package and ``pipeline.device`` travel to target devices as they are, so they need Python 3.10, numpy and the one
runtime that is used, which is imported only then.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from pipeline.runtimes.base import (
    ENERGY,
    INPUT,
    LOGITS,
    PRECISIONS,
    Answers,
    Executed,
    Runtime,
    check_executed,
    joined,
    run_padded,
)
from pipeline.runtimes.errors import ModelFileError, PrecisionError, RuntimesError, RuntimeUnavailableError

_CLASSES = {
    "torch": ("pipeline.runtimes.torch_runtime", "TorchRuntime"),
    "onnxruntime": ("pipeline.runtimes.onnxruntime_runtime", "OnnxRuntime"),
    "openvino": ("pipeline.runtimes.openvino_runtime", "OpenVinoRuntime"),
    "tensorrt": ("pipeline.runtimes.tensorrt_runtime", "TensorRtRuntime"),
}
NAMES = tuple(_CLASSES)
# TensorRT reads the same files as ONNX Runtime and builds its engine on the machine that runs it.
FORMAT_READ_BY = {"torch": "torch", "onnxruntime": "onnx", "openvino": "openvino", "tensorrt": "onnx"}

__all__ = [
    "ENERGY",
    "FORMAT_READ_BY",
    "INPUT",
    "LOGITS",
    "NAMES",
    "PRECISIONS",
    "Answers",
    "Executed",
    "ModelFileError",
    "PrecisionError",
    "Runtime",
    "RuntimeUnavailableError",
    "RuntimesError",
    "available",
    "check_executed",
    "joined",
    "load",
    "run_padded",
    "runtime_class",
]


def runtime_class(name: str) -> type[Runtime]:
    """The class behind a name of NAMES.

    Raises:
        RuntimeUnavailableError: no runtime has this name.
    """
    if name not in _CLASSES:
        raise RuntimeUnavailableError(f"runtime {name!r} is unknown; use one of {', '.join(NAMES)}.")
    module, class_name = _CLASSES[name]
    found: type[Runtime] = getattr(importlib.import_module(module), class_name)
    return found


def available() -> dict[str, str | None]:
    """For each name: None if the runtime can be used here, else the reason in one sentence. Imports all of them."""
    return {name: runtime_class(name).unavailable() for name in NAMES}


def load(
    name: str, path: Path, *, precision: str, threads: int = 0, batch: int | None = None, device: str = "cpu"
) -> Runtime:
    """Load a model file; arguments and errors as in ``Runtime``.

    Raises:
        RuntimeUnavailableError, ModelFileError, PrecisionError
    """
    return runtime_class(name)(path, precision=precision, threads=threads, batch=batch, device=device)
