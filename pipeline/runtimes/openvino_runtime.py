"""OpenVINO."""

import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline import runtimes
from pipeline.portable.accuracy import Outputs
from pipeline.portable.text import last_line

_COMPUTE = re.compile(r"^(Group|Binary)?(Convol|Deconvol)ution|FullyConnected|MatMul|Gemm|Attention", re.IGNORECASE)


@cache
def openvino_core() -> Any:
    """Return the only ``openvino.Core`` of this process.

    The CPU plugin of each core replaces the signal stack of the thread and restores the previous stack at its end. With
    several cores the restored stack may be freed memory, and the next signal in Python, such as Ctrl-C or the end of a
    child process, causes a segmentation fault (seen with OpenVINO 2026.4).
    """
    import openvino

    return openvino.Core()


def compute_layers(compiled: Any) -> list[tuple[str, str, str]]:
    """Name, kernel and precision of each convolution and matrix product of an ``openvino.CompiledModel``.

    The names are those of the nodes in the file; layers that OpenVINO has fused have the name of one of them.
    """
    layers = []
    for operation in compiled.get_runtime_model().get_ordered_ops():
        info = operation.get_rt_info()
        kind, kernel, precision = (
            info[key].astype(str) if key in info.keys() else ""  # noqa: SIM118  not a mapping
            for key in ("layerType", "primitiveType", "runtimePrecision")
        )
        if _COMPUTE.search(kind):
            name = operation.get_friendly_name().partition("/")[0]
            layers.append((name, f"{kind}:{kernel}", runtimes.precision_of(precision)))
    return layers


def precision_hint(precision: str, *, has_fp16: bool) -> str:
    """Choose the precision hint for layers that are not quantised, never lower than the precision of the file.

    Without a hint, CPUs with bf16 run fp32 files in bf16. With the hint f16, CPUs without fp16 run fp16 files in bf16.
    """
    if precision == "fp16":
        return "f16" if has_fp16 else "f32"
    return "bf16" if precision == "bf16" else "f32"


class OpenVinoRuntime:
    """Runs an .xml (with its .bin) or .onnx file, compiled for latency."""

    name: ClassVar[str] = "openvino"

    @staticmethod
    def unavailable() -> str | None:
        return runtimes.import_problem("openvino", "pip install openvino")

    def __init__(
        self, path: Path, *, precision: str, threads: int = 0, batch: int | None = None, device: str = "cpu"
    ) -> None:
        runtimes.check_request(path, precision, (".xml", ".onnx"), self.unavailable())
        import openvino

        self._version = openvino.__version__
        self._tensor = openvino.Tensor
        core = openvino_core()
        target = device.upper()
        if target not in {name.split(".")[0] for name in core.available_devices}:
            devices = ", ".join(core.available_devices)
            raise runtimes.RuntimeUnavailableError(
                f"openvino has no device {target} here, only {devices}; use one of them."
            )
        has_fp16 = "FP16" in core.get_property(target, "OPTIMIZATION_CAPABILITIES")
        self._hint = precision_hint(precision, has_fp16=has_fp16)
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": self._hint}
        if threads and target == "CPU":
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            model = core.read_model(path)
            runtimes.check_signature(path, self.name, len(model.inputs), len(model.outputs))
            static = model.inputs[0].partial_shape
            self._batch = batch
            if batch is not None:
                model.reshape({model.inputs[0]: [batch, *list(static)[1:]]})
            self._compiled = core.compile_model(model, target, settings)
        except RuntimeError as error:
            raise runtimes.unreadable(path, self.name, last_line(error)) from error
        # an output can have several names, and has none in some files of other exporters
        names = [
            next((name for name in (runtimes.LOGITS, runtimes.ENERGY) if name in output.get_names()), "")
            for output in self._compiled.outputs
        ]
        self._outputs = [self._compiled.outputs[names.index(name)] for name in runtimes.output_names(names)]
        self._request = self._compiled.create_infer_request()

    def run(self, inputs: NDArray[np.float32]) -> Outputs:
        runtimes.check_batch(inputs, self._batch)
        # The input is shared, as in the other runtimes. The outputs are copied, because a later run overwrites them.
        # Passing inputs and outputs through infer() takes about twice as long in Python.
        shared = self._tensor(np.require(inputs, np.float32, ("C", "W")), shared_memory=True)
        self._request.set_input_tensor(shared)
        self._request.infer(share_outputs=True)
        logits, *energy = (self._request.get_tensor(output).data.copy() for output in self._outputs)
        return Outputs(logits, energy[0] if energy else None)

    def executed(self) -> runtimes.Executed:
        """Report the resolved precision hint and the ``runtimePrecision`` of each layer of the compiled graph."""
        layers = compute_layers(self._compiled)
        resolved = self._property("INFERENCE_PRECISION_HINT", None)
        return runtimes.Executed(
            precision=runtimes.summarise(precision for _, _, precision in layers),
            provider="+".join(self._property("EXECUTION_DEVICES", [])),
            version=self._version,
            threads=int(self._property("INFERENCE_NUM_THREADS", 0)),
            detail={
                "kernels": dict(Counter(kernel for _, kernel, _ in layers)),
                "precision_hint_requested": self._hint,
                "precision_hint_resolved": None if resolved is None else runtimes.precision_of(resolved.to_string()),
                "performance_hint": str(self._property("PERFORMANCE_HINT", "")),
                "streams": int(self._property("NUM_STREAMS", 0)),
                "cpu_pinning": self._property("ENABLE_CPU_PINNING", None),
                "static_batch": self._batch,
            },
        )

    def input_shape(self) -> tuple[int, ...]:
        sizes = self._compiled.inputs[0].partial_shape
        return runtimes.example_shape([size.get_length() if size.is_static else None for size in sizes], self._batch)

    def _property(self, name: str, default: Any) -> Any:
        """Return a property of the compiled model, or the default if the plugin does not support it."""
        supported = name in self._compiled.get_property("SUPPORTED_PROPERTIES")
        return self._compiled.get_property(name) if supported else default
