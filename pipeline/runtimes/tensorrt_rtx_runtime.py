"""TensorRT for RTX 1.7, for the GPUs of PCs: plans are built in seconds, and kernels compiled on the GPU at first use.

The compiled kernels are cached beside the engine; TensorRT checks that they were made for this GPU and driver.
"""

import dataclasses
import importlib
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.portable.accuracy import Outputs
from pipeline.runtimes import Executed, RuntimeUnavailableError
from pipeline.runtimes.cuda_driver import compute_capability
from pipeline.runtimes.tensorrt_runtime import TensorRtRuntime, keep, read_kept


class TensorRtRtxRuntime(TensorRtRuntime):
    """As :class:`TensorRtRuntime`, by the other module. Kernels for the batch size in use are compiled before it runs,
    not beside it, so that no timed call meets others than the next one."""

    name: ClassVar[str] = "tensorrt_rtx"
    install: ClassVar[str] = "pip install tensorrt-rtx-cu12"

    @classmethod
    def unavailable(cls) -> str | None:
        return super().unavailable() or _target_problem(importlib.import_module(cls.name))

    def run(self, inputs: NDArray[np.float32]) -> Outputs:
        started = time.perf_counter()
        outputs = super().run(inputs)
        if not self._kernels_kept:
            self._keep_kernels(time.perf_counter() - started)
        return outputs

    def executed(self) -> Executed:
        """As in the base class; ``detail`` also tells a start with cached kernels from one without."""
        executed = super().executed()
        return dataclasses.replace(executed, detail=executed.detail | self._kernels_detail)

    def _obtain_engine(self) -> tuple[Any, dict[str, Any]]:
        if problem := _target_problem(self._tensorrt):
            raise RuntimeUnavailableError(problem)
        engine, provenance = super()._obtain_engine()
        self._kernels_path = Path(provenance["engine_path"]).with_suffix(".kernels")
        self._kernels_key = {"engine_sha256": provenance["engine_sha256"], **provenance["key"]}
        return engine, provenance

    def _configure(self, config: Any) -> None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(self._tensorrt.ComputeCapability.CURRENT, 0)

    def _create_context(self) -> Any:
        settings = self._engine.create_runtime_config()
        settings.dynamic_shapes_kernel_specialization_strategy = (
            self._tensorrt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        self._kernels = settings.create_runtime_cache()
        stored, record = read_kept(self._kernels_path, self._kernels_key)
        self._kernels_kept = bool(stored) and self._kernels.deserialize(stored)
        self._kernels_detail = {"kernels_from_cache": self._kernels_kept, "first_run_seconds_without": None}
        if self._kernels_kept:
            self._kernels_detail["first_run_seconds_without"] = record.get("first_run_seconds")
        settings.set_runtime_cache(self._kernels)
        return self._engine.create_execution_context(settings)

    def _keep_kernels(self, seconds: float) -> None:
        """Write the kernels of the first run, which took so long because they were compiled in it."""
        self._kernels_detail["first_run_seconds_without"] = round(seconds, 3)
        keep(
            self._kernels_path, bytes(self._kernels.serialize()), self._kernels_key, first_run_seconds=round(seconds, 3)
        )
        self._kernels_kept = True


def _target_problem(tensorrt: Any) -> str | None:
    """None if there are plans for the first GPU, else why not in one sentence."""
    major, minor = compute_capability()
    known = [name.removeprefix("SM") for name in tensorrt.ComputeCapability.__members__ if name.startswith("SM")]
    if f"{major}{minor}" in known:
        return None
    listed = ", ".join(f"{name[:-1]}.{name[-1]}" for name in known)
    return (
        f"TensorRT for RTX {tensorrt.__version__} has no target for this GPU of compute capability {major}.{minor}, "
        f"only for {listed}; use the runtime tensorrt on it."
    )
