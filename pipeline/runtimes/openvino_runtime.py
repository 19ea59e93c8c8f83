"""OpenVINO."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.runtimes.base import (
    ENERGY,
    LOGITS,
    Answers,
    Executed,
    check_batch,
    check_ends,
    check_request,
    import_problem,
    last_line,
    output_names,
    precision_of,
    summarise,
    unreadable,
)
from pipeline.runtimes.errors import RuntimeUnavailableError
from pipeline.runtimes.openvino_core import openvino_core

_COMPUTE = re.compile(r"^(Group|Binary)?(Convol|Deconvol)ution|FullyConnected|MatMul|Gemm|Attention", re.IGNORECASE)
_LAYER_KEYS = ("layerType", "primitiveType", "runtimePrecision")


def precision_hint(precision: str, *, has_fp16: bool) -> str:
    """What the layers that are not quantised are to run in: never with fewer digits than the file has.

    Without a hint, CPUs with bf16 run fp32 files in it. Asked for f16 without having it, they run fp16 files in bf16.
    """
    if precision == "fp16":
        return "f16" if has_fp16 else "f32"
    return "bf16" if precision == "bf16" else "f32"


class OpenVinoRuntime:
    """Runs an .xml (with its .bin) or .onnx file, compiled for latency."""

    name: ClassVar[str] = "openvino"

    @staticmethod
    def unavailable() -> str | None:
        return import_problem("openvino", "pip install openvino")

    def __init__(
        self, path: Path, *, precision: str, threads: int = 0, batch: int | None = None, device: str = "cpu"
    ) -> None:
        check_request(path, precision, (".xml", ".onnx"))
        if reason := self.unavailable():
            raise RuntimeUnavailableError(reason)
        import openvino

        self._version = openvino.__version__
        self._tensor = openvino.Tensor
        core = openvino_core()
        target = device.upper()
        if target not in {name.split(".")[0] for name in core.available_devices}:
            found = ", ".join(core.available_devices)
            raise RuntimeUnavailableError(f"openvino has no device {target} here, only {found}; use one of them.")
        has_fp16 = "FP16" in core.get_property(target, "OPTIMIZATION_CAPABILITIES")
        self._hint = precision_hint(precision, has_fp16=has_fp16)
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": self._hint}
        if threads and target == "CPU":
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            model = core.read_model(path)
            check_ends(path, self.name, len(model.inputs), len(model.outputs))
            static = model.inputs[0].partial_shape
            self._batch = batch
            if batch is not None:
                model.reshape({model.inputs[0]: [batch, *list(static)[1:]]})
            self._compiled = core.compile_model(model, target, settings)
        except RuntimeError as error:
            raise unreadable(path, self.name, last_line(error)) from error
        # an output has any number of names, and none at all in some files that are not ours
        names = [
            next((name for name in (LOGITS, ENERGY) if name in output.get_names()), "")
            for output in self._compiled.outputs
        ]
        self._outputs = [self._compiled.outputs[names.index(name)] for name in output_names(names)]
        self._request = self._compiled.create_infer_request()

    def run(self, inputs: NDArray[np.float32]) -> Answers:
        check_batch(inputs, self._batch)
        # The input is read in place, as the other runtimes do; the outputs are copies that later runs do not overwrite.
        # By hand, because passing both through infer() takes Python about twice as long.
        shared = self._tensor(np.require(inputs, np.float32, ("C", "W")), shared_memory=True)
        self._request.set_input_tensor(shared)
        self._request.infer(share_outputs=True)
        logits, *energy = (self._request.get_tensor(output).data.copy() for output in self._outputs)
        return Answers(logits, energy[0] if energy else None)

    def executed(self) -> Executed:
        """Reports the resolved precision hint and the ``runtimePrecision`` of each layer of the compiled graph."""
        layers = []
        for operation in self._compiled.get_runtime_model().get_ordered_ops():
            info = operation.get_rt_info()
            layer = {key: info[key].astype(str) for key in _LAYER_KEYS if key in info.keys()}  # noqa: SIM118
            if _COMPUTE.search(layer.get("layerType", "")):
                layers.append(layer)
        resolved = self._property("INFERENCE_PRECISION_HINT", None)
        kernels = Counter(f"{layer['layerType']}:{layer.get('primitiveType', '')}" for layer in layers)
        return Executed(
            precision=summarise(precision_of(layer.get("runtimePrecision", "")) for layer in layers),
            provider="+".join(self._property("EXECUTION_DEVICES", [])),
            version=self._version,
            threads=int(self._property("INFERENCE_NUM_THREADS", 0)),
            detail={
                "kernels": dict(kernels),
                "precision_hint_requested": self._hint,
                "precision_hint_resolved": None if resolved is None else precision_of(resolved.to_string()),
                "performance_hint": str(self._property("PERFORMANCE_HINT", "")),
                "streams": int(self._property("NUM_STREAMS", 0)),
                "cpu_pinning": self._property("ENABLE_CPU_PINNING", None),
                "static_batch": self._batch,
            },
        )

    def _property(self, name: str, default: Any) -> Any:
        """A property of the compiled model, or the default where the device's plugin does not have it."""
        known = name in self._compiled.get_property("SUPPORTED_PROPERTIES")
        return self._compiled.get_property(name) if known else default
