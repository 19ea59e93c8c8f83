"""TensorRT 10.3 to 11. The engine is built from the ONNX file on the machine that runs it, and cached there.

An engine works only for one GPU, driver and TensorRT version, so engines are never sent to devices.
"""

import hashlib
import importlib
import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline import runtimes
from pipeline.portable.accuracy import Outputs
from pipeline.portable.files import atomic_file, read_object, sha256_file
from pipeline.runtimes import ModelFileError, PrecisionError, RuntimesError, RuntimeUnavailableError
from pipeline.runtimes.cuda_driver import CudaDriver, device_problem
from pipeline.runtimes.tensorrt_builder import FLAGS, build_engine, make_log
from pipeline.runtimes.tensorrt_layers import judge

# Smallest, preferred and largest batch of an engine with dynamic batch size.
_DYNAMIC_BATCH = (1, 8, 64)


class TensorRtRuntime:
    """Runs an .onnx file. The latency includes the copies to and from the GPU, as in the other runtimes."""

    name: ClassVar[str] = "tensorrt"  # of the Python module too
    install: ClassVar[str] = "pip install tensorrt"

    @classmethod
    def unavailable(cls) -> str | None:
        return runtimes.import_problem(cls.name, cls.install) or device_problem()

    def __init__(
        self, path: Path, *, precision: str, threads: int = 0, batch: int | None = None, device: str = "cuda"
    ) -> None:
        """As in ``Runtime``, but ``threads`` and ``device`` are not used: the device is always the first GPU.

        An engine with dynamic batch is built for 1 to 64 images; larger inputs run in parts.

        Raises:
            PrecisionError: also if the engine executes another precision than the requested one.
        """
        runtimes.check_request(path, precision, (".onnx",), self.unavailable())
        tensorrt: Any = importlib.import_module(self.name)
        self._tensorrt = tensorrt
        self._path = path
        self._requested = precision
        self._batch = batch
        self._sizes = batch_sizes(batch)
        self._driver = CudaDriver()
        self._log = make_log(tensorrt)
        try:
            self._runtime = tensorrt.Runtime(self._log)
        except TypeError as error:  # the bindings raise it if TensorRT returns a null pointer
            raise RuntimeUnavailableError(
                f"TensorRT {tensorrt.__version__} does not start here ({self._log.last_error()}); "
                f"install the one made for driver {self._driver.driver_version}."
            ) from error
        self._engine, provenance = self._obtain_engine()
        self._executed = self._inspect(provenance)
        self._context = self._create_context()
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

    def input_shape(self) -> tuple[int, ...]:
        return self._shape

    def _create_context(self) -> Any:
        return self._engine.create_execution_context()

    def _inspect(self, provenance: dict[str, Any]) -> runtimes.Executed:
        inspector = self._engine.create_engine_inspector()
        listed = inspector.get_engine_information(self._tensorrt.LayerInformationFormat.JSON)
        provider, detail = f"{self.name}:{self._driver.device_name}", {"transfers_included": True, **provenance}
        layers = json.loads(listed).get("Layers", [])
        return report(self._path, self._requested, layers, provider, self._tensorrt.__version__, detail)

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
        key = {
            "onnx_sha256": sha256_file(self._path),
            self.name: self._tensorrt.__version__,
            "gpu": self._driver.device_name,
            "driver": self._driver.driver_version,
            "batch": list(self._sizes),
            "flags": FLAGS,
        }
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        plan_path = engine_cache() / f"{digest}.engine"
        plan, record = read_kept(plan_path, key)
        engine = self._runtime.deserialize_cuda_engine(plan) if plan else None
        from_cache = engine is not None
        if engine is None:
            started = time.perf_counter()
            plan = build_engine(self._tensorrt, self._path, self._sizes, self._log, self._configure)
            record = keep(plan_path, plan, key, build_seconds=round(time.perf_counter() - started, 3))
            engine = self._runtime.deserialize_cuda_engine(plan)
            if engine is None:
                raise ModelFileError(
                    f"TensorRT cannot load the engine that it built from {self._path} ({self._log.last_error()}); "
                    "remove it and run again."
                )
        provenance = {"key": key, "engine_sha256": record["sha256"], "build_seconds": record.get("build_seconds")}
        return engine, provenance | {"engine_path": str(plan_path), "engine_from_cache": from_cache}

    def _configure(self, config: Any) -> None:
        """Set what this module's builder has beside what all have."""


def batch_sizes(batch: int | None) -> tuple[int, int, int]:
    """Smallest, preferred and largest batch of an engine; None: it takes any."""
    return _DYNAMIC_BATCH if batch is None else (batch, batch, batch)


def report(
    path: Path, requested: str, layers: list[Any], provider: str, version: str, detail: dict[str, Any]
) -> runtimes.Executed:
    """Report the precision of an engine's layers.

    Raises:
        PrecisionError: it is another than the requested one.
    """
    judged = judge(layers)
    executed = runtimes.Executed(
        precision=runtimes.summarise(judged.precisions),
        provider=provider,
        version=version,
        threads=0,
        detail={
            "layers": judged.count,
            "compute_layers": dict(judged.compute),
            "layers_not_judged": judged.unclear,
            **detail,
        },
    )
    if _contradict(requested, Counter(judged.precisions)):
        mismatch = str(runtimes.check_executed(requested, executed)).rstrip(".")
        raise PrecisionError(f"{path}: {mismatch}; export it again, or request another precision.")
    return executed


def engine_cache() -> Path:
    """Create and return the folder of built engines, in ENERGYKD_CACHE or the user's cache folder."""
    base = os.environ.get("ENERGYKD_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "energykd" / "engines"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def read_kept(path: Path, key: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """Read a file of the cache and its record; both are empty if one is missing or damaged or they do not match."""
    try:
        content = path.read_bytes()
    except OSError:
        return b"", {}
    record = read_object(_record_of(path)) or {}
    valid = (record.get("key"), record.get("sha256")) == (key, hashlib.sha256(content).hexdigest())
    return (content, record) if valid else (b"", {})


def keep(path: Path, content: bytes, key: dict[str, Any], **facts: Any) -> dict[str, Any]:
    """Write a file of the cache and its record, and return the record."""
    record = {"key": key, "sha256": hashlib.sha256(content).hexdigest(), **facts}
    for target, written in ((path, content), (_record_of(path), json.dumps(record).encode())):
        with atomic_file(target) as temporary:
            temporary.write_bytes(written)
    return record


def _record_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _contradict(requested: str, layers: Counter[str]) -> bool:
    """Return true if the precisions of the compute layers contradict the requested one. Unknown layers prove nothing.

    Q/DQ and fp16 graphs keep some layers in another precision, so the largest count decides. An fp32 graph has only
    fp32 layers.
    """
    others = max((count for name, count in layers.items() if name not in (requested, runtimes.UNKNOWN)), default=0)
    return others > (0 if requested == "fp32" else max(layers[requested], layers[runtimes.UNKNOWN]))
