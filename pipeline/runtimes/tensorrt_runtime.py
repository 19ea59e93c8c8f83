"""TensorRT 10.3 to 11. The engine is built from the ONNX file on the machine that runs it, and cached there.

The graph defines the precision (fp16 types, or Q/DQ for int8), and the network is strongly typed, which TensorRT 11
requires. An engine works only for one GPU, driver and TensorRT version, so engines are never sent to devices.
"""

import hashlib
import json
import os
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline import runtimes
from pipeline.portable.accuracy import Outputs
from pipeline.portable.files import atomic_file, read_object
from pipeline.portable.text import first_line
from pipeline.runtimes import ModelFileError, PrecisionError, RuntimesError, RuntimeUnavailableError
from pipeline.runtimes.cuda_driver import CudaDriver, device_problem

_INSTALL = "pip install tensorrt"
# Smallest, preferred and largest batch of an engine with dynamic batch size.
_DYNAMIC_BATCH = (1, 8, 64)
_COMPUTE = re.compile(r"conv|gemm|matmul|matrixmultiply|fullyconnected|correlation|attention|mha|xmma", re.IGNORECASE)
_NOT_COMPUTE = re.compile(r"reformat|shuffle|constant|copy|noop|signal|wait", re.IGNORECASE)
# Used if they exist: TensorRT 10 ignores EXPLICIT_BATCH, and TensorRT 11 has removed it.
_NETWORK_FLAGS = ("STRONGLY_TYPED", "EXPLICIT_BATCH")
# "Format/Datatype" is "Half" or "Float" in new versions, and a text such as "Row major linear FP16 format" in old ones.
_DATATYPE = re.compile(r"\b(Int8|FP16|Half|BF16|BFloat16|FP32|Float)\b", re.IGNORECASE)
_LONG_NAMES = {"fp16": "half", "fp32": "float"}


class TensorRtRuntime:
    """Runs an .onnx file. The latency includes the copies to and from the GPU, as in the other runtimes."""

    name: ClassVar[str] = "tensorrt"

    @staticmethod
    def unavailable() -> str | None:
        return runtimes.import_problem("tensorrt", _INSTALL) or device_problem()

    def __init__(
        self, path: Path, *, precision: str, threads: int = 0, batch: int | None = None, device: str = "cuda"
    ) -> None:
        """As in ``Runtime``, but ``threads`` and ``device`` are not used: the device is always the first GPU.

        An engine with dynamic batch is built for 1 to 64 images; larger inputs run in parts.

        Raises:
            PrecisionError: also if the engine executes another precision than the requested one.
        """
        runtimes.check_request(path, precision, (".onnx",), runtimes.import_problem("tensorrt", _INSTALL))
        import tensorrt

        self._tensorrt = tensorrt
        self._path = path
        self._batch = batch
        self._sizes = (batch, batch, batch) if batch is not None else _DYNAMIC_BATCH
        self._driver = CudaDriver()
        self._log = _make_log(tensorrt)
        try:
            self._runtime = tensorrt.Runtime(self._log)
        except TypeError as error:  # the bindings raise it if TensorRT returns a null pointer
            raise RuntimeUnavailableError(
                f"TensorRT {tensorrt.__version__} does not start here ({self._log.last_error()}); "
                f"install the one made for driver {self._driver.driver_version}."
            ) from error
        self._engine, provenance = self._obtain_engine()
        self._executed = self._inspect(precision, provenance)
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise RuntimesError(f"TensorRT has no memory to run {path} ({self._log.last_error()}); free some.")
        self._shape: tuple[int, ...] = ()
        self._prepare_buffers()

    def run(self, inputs: NDArray[np.float32]) -> Outputs:
        runtimes.check_batch(inputs, self._batch)
        largest = self._sizes[2]
        parts = [self._run_part(inputs[start : start + largest]) for start in range(0, len(inputs), largest)]
        return parts[0] if len(parts) == 1 else runtimes.joined(parts)

    def executed(self) -> runtimes.Executed:
        """Report the type of the first input of each compute layer, as listed by the engine inspector."""
        return self._executed

    def _inspect(self, requested: str, provenance: dict[str, Any]) -> runtimes.Executed:
        tensorrt = self._tensorrt
        inspector = self._engine.create_engine_inspector()
        layers = json.loads(inspector.get_engine_information(tensorrt.LayerInformationFormat.JSON)).get("Layers", [])
        # Engines with less than detailed verbosity list layers by name only.
        compute = [layer for layer in layers if isinstance(layer, dict) and _is_compute(layer)]
        precisions = [_layer_precision(layer) for layer in compute]
        executed = runtimes.Executed(
            precision=runtimes.summarise(precisions),
            provider=f"tensorrt:{self._driver.device_name}",
            version=tensorrt.__version__,
            threads=0,
            detail={
                "layers": len(layers),
                "compute_layers": {str(layer.get("Name")): _layer_precision(layer) for layer in compute},
                "transfers_included": True,
                **provenance,
            },
        )
        if _contradict(requested, Counter(precisions)):
            mismatch = str(runtimes.check_executed(requested, executed)).rstrip(".")
            raise PrecisionError(f"{self._path}: {mismatch}; export it again, or request another precision.")
        return executed

    def _run_part(self, inputs: NDArray[np.float32]) -> Outputs:
        self._set_shape(inputs.shape)
        source = np.ascontiguousarray(inputs, dtype=np.float32)
        results = [np.empty(shape, dtype=np.float32) for shape in self._output_shapes]
        self._driver.upload(self._buffers[self._input], source)
        if not self._context.execute_async_v3(self._driver.stream):
            raise RuntimesError(f"TensorRT failed to run {self._path} ({self._log.last_error()}); see its log.")
        for result, name in zip(results, self._outputs, strict=True):
            self._driver.download(result, self._buffers[name])
        self._driver.synchronize()
        logits, *energy = results
        return Outputs(logits, energy[0] if energy else None)

    def _set_shape(self, shape: tuple[int, ...]) -> None:
        if shape == self._shape:
            return
        if not self._context.set_input_shape(self._input, tuple(shape)):
            raise ValueError(f"the engine of {self._path} takes no input of shape {list(shape)}.")
        self._output_shapes = [tuple(self._context.get_tensor_shape(name)) for name in self._outputs]
        self._shape = shape

    def _prepare_buffers(self) -> None:
        """Allocate device memory for the largest batch of every input and output, and bind it to the context."""
        tensorrt, engine = self._tensorrt, self._engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == tensorrt.TensorIOMode.INPUT]
        outputs = [name for name in names if name not in inputs]
        if len(inputs) != 1 or any(engine.get_tensor_dtype(name) != tensorrt.DataType.FLOAT for name in names):
            raise ModelFileError(f"{self._path} needs one input and float32 inputs and outputs; export it again.")
        self._input = inputs[0]
        self._outputs = runtimes.output_names(outputs)
        shape = tuple(engine.get_tensor_shape(self._input))
        self._set_shape((self._sizes[2] if shape[0] < 0 else shape[0], *shape[1:]))
        self._buffers = {}
        for name in names:
            size = int(np.prod(tuple(self._context.get_tensor_shape(name)))) * np.dtype(np.float32).itemsize
            self._buffers[name] = self._driver.allocate(size)
            if not self._context.set_tensor_address(name, self._buffers[name].address):
                raise RuntimesError(f"TensorRT refused the memory for {name} of {self._path}; use a smaller batch.")

    def _obtain_engine(self) -> tuple[Any, dict[str, Any]]:
        """Load the engine from the cache if it is complete and TensorRT accepts it, else build a new one."""
        model = self._path.read_bytes()
        key = {
            "onnx_sha256": hashlib.sha256(model).hexdigest(),
            "tensorrt": self._tensorrt.__version__,
            "gpu": self._driver.device_name,
            "driver": self._driver.driver_version,
            "batch": list(self._sizes),
            "flags": "strongly_typed,no_tf32,detailed",
        }
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        plan_path = engine_cache() / f"{digest}.engine"
        plan, record = _read_cached(plan_path, key)
        engine = self._runtime.deserialize_cuda_engine(plan) if plan else None
        from_cache = engine is not None
        if engine is None:
            started = time.perf_counter()
            plan = self._build(model)
            record = {"key": key, "engine_sha256": hashlib.sha256(plan).hexdigest()}
            record["build_seconds"] = round(time.perf_counter() - started, 3)
            _write_cached(plan_path, plan, record)
            engine = self._runtime.deserialize_cuda_engine(plan)
            if engine is None:
                raise ModelFileError(
                    f"TensorRT cannot load the engine that it built from {self._path} ({self._log.last_error()}); "
                    "remove it and run again."
                )
        return engine, {**record, "engine_path": str(plan_path), "engine_from_cache": from_cache}

    def _build(self, model: bytes) -> bytes:
        tensorrt = self._tensorrt
        builder = tensorrt.Builder(self._log)
        flags = tensorrt.NetworkDefinitionCreationFlag.__members__
        network = builder.create_network(sum(1 << int(flags[flag]) for flag in _NETWORK_FLAGS if flag in flags))
        parser = tensorrt.OnnxParser(network, self._log)
        if not parser.parse(model):
            reason = parser.get_error(0).desc() if parser.num_errors else self._log.last_error()
            raise ModelFileError(f"{self._path} cannot be parsed by TensorRT ({first_line(Exception(reason))}).")
        config = builder.create_builder_config()
        config.profiling_verbosity = tensorrt.ProfilingVerbosity.DETAILED
        # TF32 is on by default and rounds the inputs of fp32 convolutions to 10 bits, so it is switched off.
        config.clear_flag(tensorrt.BuilderFlag.TF32)
        image = network.get_input(0)
        shape = tuple(image.shape)
        if min(shape[1:]) < 1:
            raise ModelFileError(
                f"{self._path} leaves the image size open, which TensorRT cannot build; export it again."
            )
        if shape[0] < 1:
            profile = builder.create_optimization_profile()
            smallest, usual, largest = ((size, *shape[1:]) for size in self._sizes)
            profile.set_shape(image.name, min=smallest, opt=usual, max=largest)
            config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise ModelFileError(
                f"TensorRT cannot build an engine from {self._path} ({self._log.last_error()}); choose another file."
            )
        return bytes(plan)


def engine_cache() -> Path:
    """Create and return the folder of built engines, in ENERGYKD_CACHE or the user's cache folder."""
    base = os.environ.get("ENERGYKD_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "energykd" / "engines"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def _read_cached(plan_path: Path, key: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """Read an engine and its record; both are empty if one is missing or damaged or they do not match."""
    try:
        plan = plan_path.read_bytes()
    except OSError:
        return b"", {}
    record = read_object(plan_path.with_suffix(".json")) or {}
    valid = (record.get("key"), record.get("engine_sha256")) == (key, hashlib.sha256(plan).hexdigest())
    return (plan, record) if valid else (b"", {})


def _write_cached(plan_path: Path, plan: bytes, record: dict[str, Any]) -> None:
    for path, content in ((plan_path, plan), (plan_path.with_suffix(".json"), json.dumps(record).encode())):
        with atomic_file(path) as temporary:
            temporary.write_bytes(content)


def _contradict(requested: str, layers: Counter[str]) -> bool:
    """Return true if the precisions of the compute layers contradict the requested one. Unknown layers prove nothing.

    Q/DQ and fp16 graphs keep some layers in another precision, so the largest count decides. An fp32 graph has only
    fp32 layers.
    """
    others = max((count for name, count in layers.items() if name not in (requested, runtimes.UNKNOWN)), default=0)
    return others > (0 if requested == "fp32" else max(layers[requested], layers[runtimes.UNKNOWN]))


def _is_compute(layer: dict[str, Any]) -> bool:
    kind = " ".join(str(layer.get(key, "")) for key in ("LayerType", "ParameterType", "TacticName"))
    return bool(_COMPUTE.search(kind)) and not _NOT_COMPUTE.search(str(layer.get("LayerType", "")))


def _layer_precision(layer: dict[str, Any]) -> str:
    inputs = layer.get("Inputs") or [{}]
    match = _DATATYPE.search(str(inputs[0].get("Format/Datatype", inputs[0].get("Datatype", ""))))
    if match is None:
        return runtimes.UNKNOWN
    name = match.group().lower()
    return runtimes.precision_of(_LONG_NAMES.get(name, name))


def _make_log(tensorrt: Any) -> Any:
    """Create a logger that keeps errors for error sentences. TensorRT's own logger prints to standard output."""

    class Log(tensorrt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (tensorrt.ILogger.ERROR, tensorrt.ILogger.INTERNAL_ERROR):
                self._errors.append(msg)

        def last_error(self) -> str:
            return first_line(Exception(self._errors[-1])) if self._errors else "it gave no reason"

    return Log()
