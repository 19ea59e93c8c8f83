"""The double of TensorRT with what TensorRT for RTX has beside it: targets, and kernels compiled on the GPU."""

from __future__ import annotations

import enum

from tests.runtimes import tensorrt_double
from tests.runtimes.tensorrt_double import IExecutionContext, TensorRtDouble

# What a test sets or reads, and TensorRT for RTX does not have.
HELPERS = tensorrt_double.HELPERS | {"compiled", "refused_kernels"}


class TensorRtRtxDouble(TensorRtDouble):
    """The module. ``compiled`` counts the contexts that had to compile their kernels, which are their number."""

    def __init__(self, version: str = "1.7.1.116") -> None:
        super().__init__(version, "tensorrt_rtx")
        self._engine_class, self._config_class = ICudaEngine, IBuilderConfig
        targets = {"NONE": 0, "CURRENT": 1, "SM75": 75, "SM80": 80, "SM86": 86, "SM89": 89, "SM120": 120, "SM121": 121}
        self.ComputeCapability = enum.IntEnum("ComputeCapability", targets)
        self.DynamicShapesKernelSpecializationStrategy = enum.IntEnum(
            "DynamicShapesKernelSpecializationStrategy", "LAZY EAGER NONE", start=0
        )
        self.compiled = 0
        self.refused_kernels: set[bytes] = set()


class IBuilderConfig(tensorrt_double.IBuilderConfig):
    num_compute_capabilities = 0

    def set_compute_capability(self, compute_capability: int, index: int) -> bool:
        assert index == len(self._targets) < self.num_compute_capabilities
        self._targets.append(compute_capability)
        return True


class IRuntimeCache:
    def __init__(self, module: TensorRtRtxDouble) -> None:
        self._module, self._kernels = module, b""

    def deserialize(self, blob: bytes) -> bool:
        if blob in self._module.refused_kernels:
            return False
        self._kernels = blob
        return True

    def serialize(self) -> bytes:
        return self._kernels


class IRuntimeConfig:
    dynamic_shapes_kernel_specialization_strategy = 0

    def __init__(self, module: TensorRtRtxDouble) -> None:
        self._module, self._cache = module, IRuntimeCache(module)

    def create_runtime_cache(self) -> IRuntimeCache:
        return self._cache

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        return cache is self._cache


class ICudaEngine(tensorrt_double.ICudaEngine):
    _module: TensorRtRtxDouble

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig(self._module)

    def create_execution_context(self, runtime_config: IRuntimeConfig) -> IExecutionContext | None:
        module = self._module
        strategies = module.DynamicShapesKernelSpecializationStrategy
        assert runtime_config.dynamic_shapes_kernel_specialization_strategy == strategies.EAGER
        if not runtime_config._cache._kernels:
            module.compiled += 1
            runtime_config._cache._kernels = b"kernels %d" % module.compiled
        return IExecutionContext(module) if module.has_memory else None
