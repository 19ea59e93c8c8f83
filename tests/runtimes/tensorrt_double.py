"""A double of TensorRT that records what the runtime asks for, and of the driver's memory beside it.

Public classes and members are TensorRT's, except HELPERS; test_tensorrt_bindings.py compares them with the real ones.
"""

from __future__ import annotations

import enum
import json
import sys
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.runtimes import tensorrt_runtime

CLASSES = 3
HALF_LAYERS = [
    {"Name": "Reformatting CopyNode for conv", "LayerType": "Reformat", "Inputs": [{"Format/Datatype": "Float"}]},
    {"Name": "conv1", "LayerType": "CaskConvolution", "Inputs": [{"Format/Datatype": "Row major linear FP16 format"}]},
    {"Name": "fc", "LayerType": "gemm", "Inputs": [{"Format/Datatype": "Half"}]},
]
# What a test sets or reads, and TensorRT does not have.
HELPERS = {
    *("layers", "image_shape", "inputs", "outputs", "starts", "parses", "operator", "plan", "refused", "has_memory"),
    *("builds", "executions", "driver"),
}


def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: TensorRtDouble) -> None:
    """Let a double take the place of its module, beside a GPU and with an empty cache of engines."""
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(tensorrt_runtime, "device_problem", lambda: None)
    monkeypatch.setattr(tensorrt_runtime, "CudaDriver", lambda: module.driver)
    monkeypatch.setenv("ENERGYKD_CACHE", str(tmp_path / "cache"))


class Driver:
    """Device memory as numpy arrays by address."""

    device_name = "Test GPU"
    driver_version = "560.35.03 cuda 12060"
    stream = 7

    def __init__(self) -> None:
        self.memory: dict[int, NDArray[np.float32]] = {}

    def allocate(self, size: int) -> Any:
        address = len(self.memory) + 1
        self.memory[address] = np.zeros(size // 4, dtype=np.float32)
        return SimpleNamespace(address=address)

    def upload(self, buffer: Any, source: NDArray[np.float32]) -> None:
        self.memory[buffer.address][: source.size] = source.ravel()

    def download(self, target: NDArray[np.float32], buffer: Any) -> None:
        target.ravel()[:] = self.memory[buffer.address][: target.size]

    def synchronize(self) -> None:
        pass


class TensorRtDouble(ModuleType):
    """The module. Its network answers with the first CLASSES values of each image, and their sum as the energy."""

    def __init__(self, version: str = "10.3.0", name: str = "tensorrt") -> None:
        super().__init__(name)
        self.__version__ = version
        flags = {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1} if version.startswith("10") else {"STRONGLY_TYPED": 0}
        self.NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", flags)
        self.ProfilingVerbosity = enum.IntEnum("ProfilingVerbosity", "LAYER_NAMES_ONLY NONE DETAILED", start=0)
        self.LayerInformationFormat = enum.IntEnum("LayerInformationFormat", "ONELINE JSON", start=0)
        self.TensorIOMode = enum.IntEnum("TensorIOMode", "NONE INPUT OUTPUT", start=0)
        self.DataType = enum.IntEnum("DataType", "FLOAT HALF INT8", start=0)
        self.BuilderFlag = enum.IntEnum("BuilderFlag", {"REFIT": 4, "TF32": 6})
        self.ILogger = ILogger
        self.Runtime = partial(Runtime, self)
        self.Builder = partial(Builder, self)
        self.OnnxParser = partial(OnnxParser, self)
        self.layers: list[Any] = list(HALF_LAYERS)
        self.image_shape: tuple[int, ...] = (-1, 3, 4, 4)
        self.inputs = 1
        self.outputs = ["energy", "logits"]
        self.starts = True
        self.parses = True
        self.operator = ""
        self.plan: bytes | None = b"plan"
        self.refused: set[bytes] = set()
        self.has_memory = True
        self._engine_class, self._config_class = ICudaEngine, IBuilderConfig
        self.builds: list[dict[str, Any]] = []
        self.executions: list[tuple[int, ...]] = []
        self.driver = Driver()


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING = range(3)

    def log(self, severity: int, msg: str) -> None:
        raise NotImplementedError


class Builder:
    def __init__(self, module: TensorRtDouble, logger: ILogger) -> None:
        self._module, self._logger = module, logger
        self._flags = 0

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        self._flags = flags
        return INetworkDefinition(self._module)

    def create_builder_config(self) -> IBuilderConfig:
        return self._module._config_class()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> bytes | None:
        self._module.builds.append(
            {
                "flags": self._flags,
                "verbosity": config.profiling_verbosity,
                "cleared": config._cleared,
                "profiles": [profile._shapes for profile in config._profiles],
                "targets": config._targets,
            }
        )
        if self._module.plan is None:
            self._logger.log(ILogger.ERROR, "no implementation for node 7")
        return self._module.plan


class INetworkDefinition:
    num_inputs = num_outputs = 0

    def __init__(self, module: TensorRtDouble) -> None:
        self._module = module
        self.num_inputs, self.num_outputs = module.inputs, len(module.outputs)

    def get_input(self, index: int) -> ITensor:
        return ITensor(self._module.image_shape)


class ITensor:
    name = "input"
    shape: tuple[int, ...] = ()

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape


class OnnxParser:
    num_errors = 1

    def __init__(self, module: TensorRtDouble, network: INetworkDefinition, logger: ILogger) -> None:
        self._module = module

    def parse(self, model: bytes) -> bool:
        return self._module.parses

    def get_error(self, index: int) -> ParserError:
        return ParserError(self._module)


class ParserError:
    def __init__(self, module: TensorRtDouble) -> None:
        self._module = module

    def desc(self) -> str:
        return "In node 3: UNSUPPORTED_NODE\ndetails"

    def node_name(self) -> str:
        return ""

    def node_operator(self) -> str:
        return self._module.operator


class IBuilderConfig:
    profiling_verbosity = 0

    def __init__(self) -> None:
        self._cleared: list[int] = []
        self._profiles: list[IOptimizationProfile] = []
        self._targets: list[int] = []

    def clear_flag(self, flag: int) -> None:
        self._cleared.append(flag)

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1


class IOptimizationProfile:
    def set_shape(self, input: str, min: tuple[int, ...], opt: tuple[int, ...], max: tuple[int, ...]) -> None:
        self._shapes = {input: [min, opt, max]}


class Runtime:
    def __init__(self, module: TensorRtDouble, logger: ILogger) -> None:
        if not module.starts:
            logger.log(ILogger.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._module = module

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        return None if serialized_engine in self._module.refused else self._module._engine_class(self._module)


class ICudaEngine:
    num_io_tensors = 0

    def __init__(self, module: TensorRtDouble) -> None:
        self._module = module
        self._names = ["input", *module.outputs]
        self.num_io_tensors = len(self._names)

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_mode(self, name: str) -> int:
        modes = self._module.TensorIOMode
        return modes.INPUT if name == "input" else modes.OUTPUT

    def get_tensor_dtype(self, name: str) -> int:
        return self._module.DataType.FLOAT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return _shape(name, self._module.image_shape)

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self._module)

    def create_execution_context(self) -> IExecutionContext | None:
        return IExecutionContext(self._module) if self._module.has_memory else None


class EngineInspector:
    def __init__(self, module: TensorRtDouble) -> None:
        self._module = module

    def get_engine_information(self, format: int) -> str:
        assert format == self._module.LayerInformationFormat.JSON
        return json.dumps({"Layers": self._module.layers})


class IExecutionContext:
    def __init__(self, module: TensorRtDouble) -> None:
        self._module = module
        self._shape: tuple[int, ...] = ()
        self._addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shape = shape
        return shape[1:] == self._module.image_shape[1:]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return _shape(name, self._shape)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle == Driver.stream
        assert set(self._addresses) == {"input", *self._module.outputs}
        memory = {name: self._module.driver.memory[address] for name, address in self._addresses.items()}
        images = memory["input"][: int(np.prod(self._shape))].reshape(self._shape[0], -1)
        logits = images[:, :CLASSES]
        for name in self._module.outputs:
            values = logits.sum(axis=1) if name == "energy" else logits.ravel()
            memory[name][: values.size] = values
        self._module.executions.append(self._shape)
        return True


def _shape(name: str, image: tuple[int, ...]) -> tuple[int, ...]:
    return {"input": image, "energy": image[:1]}.get(name, (image[0], CLASSES))
