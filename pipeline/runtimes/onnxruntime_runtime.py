"""ONNX Runtime."""

import json
import re
import tempfile
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline import runtimes
from pipeline.portable.accuracy import Outputs
from pipeline.portable.text import first_line
from pipeline.runtimes import RuntimeUnavailableError

_INSTALL = "pip install onnxruntime"
# Matches Conv, FusedConv, QLinearConv, Gemm, QGemm, MatMulInteger, QAttention, ..., and no other operators.
_COMPUTE = re.compile(r"Conv|Gemm|MatMul|Attention")
_PROVIDER_OF_DEVICE = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxRuntime:
    """Runs an .onnx file sequentially with one thread pool, which spins between inferences by default."""

    name: ClassVar[str] = "onnxruntime"

    @staticmethod
    def unavailable() -> str | None:
        return runtimes.import_problem("onnxruntime", _INSTALL)

    def __init__(
        self, path: Path, *, precision: str, threads: int = 0, batch: int | None = None, device: str = "cpu"
    ) -> None:
        runtimes.check_request(path, precision, (".onnx",), self.unavailable())
        import onnxruntime

        self._onnxruntime = onnxruntime
        self._path = path
        self._threads = threads
        self._batch = batch
        self._providers = self._choose_providers(device)
        before = _thread_count()
        self._session = self._open(self._options())
        self._pool_threads = _thread_count() - before + 1
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        runtimes.check_signature(path, self.name, len(inputs), len(outputs))
        self._input = inputs[0]
        self._outputs = runtimes.output_names([output.name for output in outputs])
        self._example_shape: tuple[int, ...] | None = None

    def run(self, inputs: NDArray[np.float32]) -> Outputs:
        runtimes.check_batch(inputs, self._batch)
        self._example_shape = inputs.shape
        logits, *energy = self._session.run(self._outputs, {self._input.name: inputs})
        return Outputs(logits, energy[0] if energy else None)

    def executed(self) -> runtimes.Executed:
        """Report the trace of one inference in a second session with the same options and with profiling.

        The trace lists the optimised operators with their input types and providers. An fp16 graph on a CPU without
        fp16 kernels appears as fp32, fused Q/DQ pairs as QLinearConv on bytes, and other Q/DQ pairs as Conv on fp32.
        """
        return self._observed

    @cached_property
    def _observed(self) -> runtimes.Executed:
        nodes = self._trace()
        compute = [node for node in nodes if _COMPUTE.search(node["op_name"])]
        providers = Counter(node["provider"] for node in nodes)
        return runtimes.Executed(
            precision=runtimes.summarise(runtimes.precision_of(_first_type(node)) for node in compute),
            provider="+".join(provider for provider, _ in providers.most_common()),
            version=self._onnxruntime.__version__,
            threads=self._threads or max(self._pool_threads, 0),
            detail={
                "session_providers": self._session.get_providers(),
                "nodes_per_provider": dict(providers),
                "operators": dict(Counter(node["op_name"] for node in nodes)),
                "compute": dict(Counter(f"{node['op_name']}({_first_type(node)})" for node in compute)),
                "execution_mode": "sequential",
                "intra_op_spinning": "default",
            },
        )

    def _trace(self) -> list[dict[str, Any]]:
        """Return the ``args`` of each kernel event of one inference on zeros, in order."""
        with tempfile.TemporaryDirectory() as folder:
            options = self._options()
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "trace")
            session = self._open(options)
            session.run(self._outputs, {self._input.name: np.zeros(self.input_shape(), dtype=np.float32)})
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        kernels = (event for event in events if event["cat"] == "Node" and event["name"].endswith("_kernel_time"))
        return [event["args"] for event in kernels]

    def input_shape(self) -> tuple[int, ...]:
        return self._example_shape or runtimes.example_shape(self._input.shape, self._batch)

    def _options(self) -> Any:
        options = self._onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.execution_mode = self._onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
        return options

    def _open(self, options: Any) -> Any:
        try:
            return self._onnxruntime.InferenceSession(str(self._path), options, providers=self._providers)
        except Exception as error:  # the exceptions of onnxruntime share no public base class
            raise runtimes.unreadable(self._path, self.name, first_line(error)) from error

    def _choose_providers(self, device: str) -> list[Any]:
        available = self._onnxruntime.get_available_providers()
        provider = _PROVIDER_OF_DEVICE.get(device)
        if provider not in available:
            raise RuntimeUnavailableError(
                f"onnxruntime has no provider for device {device} here, only {', '.join(available)}; "
                "use device cpu, or for cuda install onnxruntime-gpu in place of onnxruntime."
            )
        if device == "cpu":
            return [provider]
        # No TF32, so fp32 means fp32. Nodes without a CUDA kernel run on the CPU, and executed() shows them.
        return [(provider, {"use_tf32": "0"}), "CPUExecutionProvider"]


def _first_type(node: dict[str, Any]) -> str:
    """Element type of the first input: ``input_type_shape`` is [{"float": [1, 3, 32, 32]}, ...]."""
    return next(iter(node["input_type_shape"][0]), "") if node["input_type_shape"] else ""


def _thread_count() -> int:
    """Number of threads of this process; 0 without /proc."""
    tasks = Path("/proc/self/task")
    return sum(1 for _ in tasks.iterdir()) if tasks.is_dir() else 0
