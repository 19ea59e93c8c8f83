"""TensorRT for RTX 1.7, for the GPUs of PCs: engines are planned in seconds, and kernels are compiled on the GPU.

The compiled kernels are kept beside the engine. TensorRT checks that they were made for this GPU and driver.
"""

import dataclasses
import importlib
import re
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pipeline import runtimes
from pipeline.runtimes import ModelFileError
from pipeline.runtimes.cuda_driver import compute_capability
from pipeline.runtimes.tensorrt_builder import build_engine, make_log
from pipeline.runtimes.tensorrt_runtime import TensorRtRuntime, batch_sizes, keep, read_kept, report

_FP16_ALONE = (7, 5)  # compute capability


class TensorRtRtxRuntime(TensorRtRuntime):
    """As :class:`TensorRtRuntime`, with the other module."""

    name: ClassVar[str] = "tensorrt_rtx"
    install: ClassVar[str] = "pip install tensorrt-rtx-cu12"
    _kernels_record: dict[str, Any]  # of the cached kernels; empty: there are none

    @classmethod
    def unavailable(cls) -> str | None:
        return super().unavailable() or _target_problem(importlib.import_module(cls.name))

    def __init__(self, path: Path, **settings: Any) -> None:
        """As in the base class. Kernels that are not in the cache are compiled here, so that no timed call does it.

        ``executed().detail`` tells a start with kernels from the cache (``kernels_from_cache``) from one without, and
        has the seconds of the latter, from the context to the first answer (``kernel_seconds``).
        """
        super().__init__(path, **settings)
        cached = bool(self._kernels_record)
        if not cached:
            self.run(np.zeros(self._shape, np.float32))
            seconds, kernels = round(time.perf_counter() - self._started, 3), bytes(self._kernels.serialize())
            self._kernels_record = keep(self._kernels_path, kernels, self._kernels_key, kernel_seconds=seconds)
        detail = {"kernels_from_cache": cached, "kernel_seconds": self._kernels_record.get("kernel_seconds")}
        self._executed = dataclasses.replace(self._executed, detail=self._executed.detail | detail)

    @classmethod
    def plan(cls, path: Path, *, precision: str, batch: int | None = None) -> runtimes.Executed:
        """Report the plan for the default targets, which needs no GPU; arguments and errors as in the constructor."""
        runtimes.check_request(path, precision, (".onnx",), runtimes.import_problem(cls.name, cls.install))
        tensorrt: Any = importlib.import_module(cls.name)
        log = make_log(tensorrt)
        build_engine(tensorrt, path, batch_sizes(batch), log)
        return report(path, precision, log.layers(), f"the plan of {cls.name}", tensorrt.__version__, {})

    def _obtain_engine(self) -> tuple[Any, dict[str, Any]]:
        try:
            return super()._obtain_engine()
        except ModelFileError as error:
            if compute_capability() != _FP16_ALONE or self._requested == "fp16":
                raise
            raise ModelFileError(
                f"{self._path} is for {self._requested}, but on GPUs of compute capability 7.5 TensorRT for RTX takes "
                "files for fp16 alone; choose one, or the runtime tensorrt."
            ) from error

    def _configure(self, config: Any) -> None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(self._tensorrt.ComputeCapability.CURRENT, 0)

    def _create_context(self) -> Any:
        self._started = time.perf_counter()
        detail = self._executed.detail
        self._kernels_path = Path(detail["engine_path"]).with_suffix(".kernels")
        self._kernels_key = {"engine_sha256": detail["engine_sha256"], **detail["key"]}
        stored, record = read_kept(self._kernels_path, self._kernels_key)
        settings = self._engine.create_runtime_config()
        # kernels for the batch in use are compiled before it runs: beside it, the first calls would meet others
        settings.dynamic_shapes_kernel_specialization_strategy = (
            self._tensorrt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        self._kernels = settings.create_runtime_cache()
        accepted = bool(stored) and self._kernels.deserialize(stored)
        self._kernels_record = record if accepted else {}
        settings.set_runtime_cache(self._kernels)
        return self._engine.create_execution_context(runtime_config=settings)


def _target_problem(tensorrt: Any) -> str | None:
    """None if engines can be built for the first GPU, else why not in one sentence."""
    own = "{}.{}".format(*compute_capability())
    targets = re.findall(r"SM(\d+)(\d)", " ".join(tensorrt.ComputeCapability.__members__))
    known = [".".join(digits) for digits in targets]
    if own in known:
        return None
    return (
        f"TensorRT for RTX {tensorrt.__version__} has no target for this GPU of compute capability {own}, "
        f"only for {', '.join(known)}; use the runtime tensorrt on it."
    )
