"""The flow around TensorRT, with a double in its place: what is built, kept, trusted, run and reported.

Whether TensorRT builds a right and fast engine, only a machine with a GPU can show.
"""

from __future__ import annotations

import enum
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.runtimes import ModelFileError, RuntimeUnavailableError, check_executed, load, tensorrt_runtime
from pipeline.runtimes.tensorrt_runtime import TensorRtRuntime

CLASSES = 3
HALF_LAYERS = [
    {"Name": "Reformatting CopyNode for conv", "LayerType": "Reformat", "Inputs": [{"Format/Datatype": "Float"}]},
    {"Name": "conv1", "LayerType": "CaskConvolution", "Inputs": [{"Format/Datatype": "Row major linear FP16 format"}]},
    {"Name": "fc", "LayerType": "gemm", "Inputs": [{"Format/Datatype": "Half"}]},
]


class FakeDriver:
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


class FakeTensorRt(ModuleType):
    """Records what the runtime asks for. The network it "runs" gives the first CLASSES values of each image."""

    def __init__(self, version: str = "10.3.0") -> None:
        super().__init__("tensorrt")
        self.__version__ = version
        flags = {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1} if version.startswith("10") else {"STRONGLY_TYPED": 0}
        self.NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", flags)
        self.ProfilingVerbosity = enum.Enum("ProfilingVerbosity", "LAYER_NAMES_ONLY DETAILED NONE")
        self.LayerInformationFormat = enum.Enum("LayerInformationFormat", "ONELINE JSON")
        self.TensorIOMode = enum.Enum("TensorIOMode", "NONE INPUT OUTPUT")
        self.DataType = enum.Enum("DataType", "FLOAT HALF INT8")
        self.BuilderFlag = enum.Enum("BuilderFlag", "TF32 REFIT")
        self.ILogger = type("ILogger", (), {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2})
        self.layers: list[Any] = list(HALF_LAYERS)
        self.image_shape = (-1, 3, 4, 4)
        self.builds: list[dict[str, Any]] = []
        self.executions: list[tuple[int, ...]] = []
        self.parses = True
        self.plan: bytes | None = b"plan"
        self.refused: set[bytes] = set()
        self.driver = FakeDriver()

    def Runtime(self, log: Any) -> Any:  # noqa: N802
        def deserialize_cuda_engine(plan: bytes) -> Any:
            return None if plan in self.refused else FakeEngine(self)

        return SimpleNamespace(deserialize_cuda_engine=deserialize_cuda_engine)

    def Builder(self, log: Any) -> Any:  # noqa: N802
        build: dict[str, Any] = {"cleared": [], "profiles": []}
        image = SimpleNamespace(name="input", shape=self.image_shape)

        def create_network(flags: int) -> Any:
            build["flags"] = flags
            return SimpleNamespace(get_input=lambda index: image)

        def build_serialized_network(network: Any, config: Any) -> bytes | None:
            build["verbosity"] = config.profiling_verbosity
            self.builds.append(build)
            if self.plan is None:
                log.log(self.ILogger.ERROR, "no implementation for node 7")
            return self.plan

        return SimpleNamespace(
            create_network=create_network,
            create_builder_config=lambda: SimpleNamespace(
                clear_flag=build["cleared"].append, add_optimization_profile=build["profiles"].append
            ),
            create_optimization_profile=FakeProfile,
            build_serialized_network=build_serialized_network,
        )

    def OnnxParser(self, network: Any, log: Any) -> Any:  # noqa: N802
        error = SimpleNamespace(desc=lambda: "In node 3: UNSUPPORTED_NODE\ndetails")
        return SimpleNamespace(parse=lambda model: self.parses, num_errors=1, get_error=lambda index: error)


class FakeProfile:
    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        self.name, self.shapes = name, shapes


class FakeEngine:
    def __init__(self, module: FakeTensorRt) -> None:
        self._module = module
        self._shapes = {"input": module.image_shape, "energy": (-1,), "logits": (-1, CLASSES)}
        self.num_io_tensors = len(self._shapes)

    def get_tensor_name(self, index: int) -> str:
        return list(self._shapes)[index]

    def get_tensor_mode(self, name: str) -> Any:
        modes = self._module.TensorIOMode
        return modes.INPUT if name == "input" else modes.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return self._module.DataType.FLOAT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def create_engine_inspector(self) -> Any:
        return SimpleNamespace(get_engine_information=lambda format: json.dumps({"Layers": self._module.layers}))

    def create_execution_context(self) -> Any:
        return FakeContext(self._module)


class FakeContext:
    def __init__(self, module: FakeTensorRt) -> None:
        self._module = module
        self._shape: tuple[int, ...] = ()
        self._addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shape = shape
        return shape[1:] == self._module.image_shape[1:]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return {"input": self._shape, "energy": self._shape[:1], "logits": (self._shape[0], CLASSES)}[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        memory = self._module.driver.memory
        assert stream == FakeDriver.stream
        assert set(self._addresses) == {"input", "energy", "logits"}
        images = memory[self._addresses["input"]][: int(np.prod(self._shape))].reshape(self._shape[0], -1)
        logits = images[:, :CLASSES].ravel()
        memory[self._addresses["logits"]][: logits.size] = logits
        self._module.executions.append(self._shape)
        return True


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeTensorRt:
    return install(monkeypatch, tmp_path, FakeTensorRt())


def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: FakeTensorRt) -> FakeTensorRt:
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(tensorrt_runtime, "CudaDriver", lambda: module.driver)
    monkeypatch.setenv("ENERGYKD_CACHE", str(tmp_path / "cache"))
    return module


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "student_fp16.onnx"
    path.write_bytes(b"onnx")
    return path


def cached_engine(tmp_path: Path) -> Path:
    [engine] = (tmp_path / "cache").rglob("*.engine")
    return engine


def open_runtime(model: Path, batch: int | None = None) -> TensorRtRuntime:
    return TensorRtRuntime(model, precision="fp16", batch=batch)


def test_without_tensorrt_the_sentence_names_the_command(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    sentence = "tensorrt is not installed; install it with `pip install tensorrt`."
    assert TensorRtRuntime.unavailable() == sentence
    with pytest.raises(RuntimeUnavailableError) as caught:
        load("tensorrt", model, precision="fp16")
    assert str(caught.value) == sentence


def test_logits_are_those_of_the_engine(fake: FakeTensorRt, model: Path) -> None:
    images = np.random.default_rng(0).standard_normal((5, 3, 4, 4)).astype(np.float32)
    runtime = open_runtime(model)
    for count in (5, 2, 2):
        logits = runtime.run(images[:count])
        np.testing.assert_array_equal(logits, images.reshape(5, -1)[:count, :CLASSES])
    assert fake.executions == [(5, 3, 4, 4), (2, 3, 4, 4), (2, 3, 4, 4)]


def test_more_images_than_the_largest_batch_run_in_parts(fake: FakeTensorRt, model: Path) -> None:
    images = np.random.default_rng(0).standard_normal((70, 3, 4, 4)).astype(np.float32)
    logits = open_runtime(model).run(images)
    np.testing.assert_array_equal(logits, images.reshape(70, -1)[:, :CLASSES])
    assert [shape[0] for shape in fake.executions] == [64, 6]


def test_image_size_that_the_engine_does_not_take_is_refused(fake: FakeTensorRt, model: Path) -> None:
    runtime = open_runtime(model)
    with pytest.raises(ValueError, match=r"takes no input of shape \[1, 3, 8, 8\]"):
        runtime.run(np.zeros((1, 3, 8, 8), dtype=np.float32))


@pytest.mark.parametrize(("version", "flags"), [("10.3.0", 0b11), ("11.4.0.106", 0b1)])
def test_network_is_strongly_typed_in_both_versions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path, version: str, flags: int
) -> None:
    module = install(monkeypatch, tmp_path, FakeTensorRt(version))
    open_runtime(model)
    [build] = module.builds
    assert build["flags"] == flags
    assert build["cleared"] == [module.BuilderFlag.TF32]
    assert build["verbosity"] == module.ProfilingVerbosity.DETAILED


@pytest.mark.parametrize(("batch", "sizes"), [(None, [1, 8, 64]), (1, [1, 1, 1])])
def test_profile_covers_the_batch_sizes(fake: FakeTensorRt, model: Path, batch: int | None, sizes: list[int]) -> None:
    open_runtime(model, batch)
    [profile] = fake.builds[0]["profiles"]
    assert profile.name == "input"
    assert [shape[0] for shape in profile.shapes] == sizes
    assert {shape[1:] for shape in profile.shapes} == {(3, 4, 4)}


def test_static_network_needs_no_profile(fake: FakeTensorRt, model: Path) -> None:
    fake.image_shape = (2, 3, 4, 4)
    open_runtime(model, 2)
    assert fake.builds[0]["profiles"] == []


def test_second_load_takes_the_engine_from_the_cache(fake: FakeTensorRt, model: Path, tmp_path: Path) -> None:
    first, second = open_runtime(model).executed().detail, open_runtime(model).executed().detail
    assert len(fake.builds) == 1
    assert (first["engine_from_cache"], second["engine_from_cache"]) == (False, True)
    assert first["engine_sha256"] == second["engine_sha256"]
    assert Path(second["engine_path"]) == cached_engine(tmp_path)


@pytest.mark.parametrize("change", ["model", "batch", "version", "gpu", "driver"])
def test_engine_of_other_circumstances_is_not_used(fake: FakeTensorRt, model: Path, change: str) -> None:
    open_runtime(model)
    if change == "model":
        model.write_bytes(b"another onnx")
    elif change == "version":
        fake.__version__ = "10.7.0"
    elif change == "gpu":
        fake.driver.device_name = "Other GPU"
    elif change == "driver":
        fake.driver.driver_version = "570.1 cuda 12080"
    open_runtime(model, 4 if change == "batch" else None)
    assert len(fake.builds) == 2


@pytest.mark.parametrize("damage", ["truncated", "swapped", "no record", "torn record", "record of another engine"])
def test_damaged_engine_is_built_again(fake: FakeTensorRt, model: Path, tmp_path: Path, damage: str) -> None:
    open_runtime(model)
    engine = cached_engine(tmp_path)
    record = engine.with_suffix(".json")
    if damage == "truncated":
        engine.write_bytes(b"pl")
    elif damage == "swapped":
        engine.write_bytes(b"evil")
    elif damage == "no record":
        record.unlink()
    elif damage == "torn record":
        record.write_text(record.read_text(encoding="utf-8")[:20], encoding="utf-8")
    else:
        content = json.loads(record.read_text(encoding="utf-8"))
        content["key"]["gpu"] = "Other GPU"
        record.write_text(json.dumps(content), encoding="utf-8")
    open_runtime(model)
    assert len(fake.builds) == 2
    assert engine.read_bytes() == b"plan"
    open_runtime(model)
    assert len(fake.builds) == 2


def test_engine_that_tensorrt_refuses_is_built_again(fake: FakeTensorRt, model: Path) -> None:
    open_runtime(model)
    fake.refused, fake.plan = {b"plan"}, b"new plan"
    assert open_runtime(model).executed().detail["engine_from_cache"] is False
    assert len(fake.builds) == 2


def test_cache_holds_no_partial_files(fake: FakeTensorRt, model: Path, tmp_path: Path) -> None:
    open_runtime(model)
    names = {path.suffix for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert names == {".engine", ".json"}


@pytest.mark.parametrize(
    ("layers", "precision"),
    [
        (HALF_LAYERS, "fp16"),
        ([{"LayerType": "CaskConvolution", "Inputs": [{"Format/Datatype": "Float"}]}], "fp32"),
        (
            [
                {
                    "LayerType": "CaskConvolution",
                    "Inputs": [{"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}],
                },
                {"LayerType": "Convolution", "Inputs": [{"Format/Datatype": "Int8"}]},
                {"LayerType": "gemm", "Inputs": [{"Format/Datatype": "Float"}]},
                {"LayerType": "kgen", "TacticName": "__myl_MulAdd", "Inputs": [{"Format/Datatype": "Float"}]},
            ],
            "mixed:int8=2,fp32=1",
        ),
        ([{"LayerType": "fusion", "TacticName": "sm80_xmma_gemm_bf16", "Inputs": [{"Datatype": "BFloat16"}]}], "bf16"),
        ([{"LayerType": "gemm", "Inputs": []}], "unknown"),
        (["conv1", "fc"], "unknown"),
    ],
)
def test_executed_precision_is_what_the_inspector_says(
    fake: FakeTensorRt, model: Path, layers: list[Any], precision: str
) -> None:
    fake.layers = layers
    executed = open_runtime(model).executed()
    assert executed.precision == precision
    assert executed.provider == "tensorrt:Test GPU"
    assert (check_executed("fp16", executed) is None) == (precision == "fp16")
    json.dumps(executed.detail)


def test_graph_that_cannot_be_parsed_is_one_sentence(fake: FakeTensorRt, model: Path) -> None:
    fake.parses = False
    with pytest.raises(ModelFileError) as caught:
        open_runtime(model)
    assert str(caught.value) == f"{model} cannot be parsed by TensorRT (In node 3: UNSUPPORTED_NODE)."


def test_failed_build_names_the_last_error_and_leaves_no_engine(
    fake: FakeTensorRt, model: Path, tmp_path: Path
) -> None:
    fake.plan = None
    with pytest.raises(ModelFileError, match=r"cannot build an engine from .* \(no implementation for node 7\)"):
        open_runtime(model)
    assert list((tmp_path / "cache").rglob("*.engine")) == []


def test_open_image_size_is_refused(fake: FakeTensorRt, model: Path) -> None:
    fake.image_shape = (-1, 3, -1, -1)
    with pytest.raises(ModelFileError, match="leaves the image size open"):
        open_runtime(model)
